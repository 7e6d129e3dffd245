"""Known vulnerabilities of the lock: `python -m deploy.audit`. Fails on those that are high and have a fix.

Asks the OSV database, then the package index's own, through pip-audit. An index without advisories (a mirror) makes
pip-audit say "no known vulnerabilities": so each is first asked about a version that is known to be vulnerable, and
only believed where it knows that one. A severity nobody states counts as high. What is known and accepted stands in
deploy/audit-exceptions.json with a reason and a date on which it ends.

Exit codes: 0 nothing to do; 1 a high one with a fix; 3 no database could be reached, nothing is known.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXCEPTIONS = ROOT / "deploy" / "audit-exceptions.json"
OSV = "https://api.osv.dev"
URL_VARIABLE = "MASKBRIDGE_OSV_URL"  # a mirror of OSV
TIMEOUT_S = 10
LONGEST_S = 300
MOST_SKIPPED = 0.1  # of the distributions; more means that the database does not know the index
CANARY = "jinja2==2.10"  # CVE-2019-10906
HARMLESS = {"LOW", "MODERATE", "MEDIUM"}
OK, VULNERABLE, UNKNOWN = 0, 1, 3


@dataclass(frozen=True)
class Finding:
    """One advisory that touches one locked version."""

    name: str
    version: str
    id: str
    aliases: tuple[str, ...]
    fixed_in: tuple[str, ...]
    severity: str  # LOW, MODERATE, HIGH, CRITICAL, or UNKNOWN

    @property
    def must_be_fixed(self) -> bool:
        return bool(self.fixed_in) and self.severity not in HARMLESS


def audit(lock: Path) -> list[Finding] | None:
    """All findings for a lock; None where no database could be asked."""
    for service in ("osv", "pypi"):
        report = _report(lock, service) if _knows_the_canary(service) else None
        if report is not None:
            return [_finding(one, vulnerability) for one in report for vulnerability in one.get("vulns", ())]
    return None


def accepted(today: date, file: Path = EXCEPTIONS) -> set[str]:
    """Ids that are accepted today: `{"id": …, "reason": …, "until": "2027-01-31"}`, none without a reason."""
    rows = json.loads(file.read_text())
    return {row["id"] for row in rows if row["reason"].strip() and date.fromisoformat(row["until"]) >= today}


def judge(findings: list[Finding], excused: set[str]) -> list[Finding]:
    """The findings that fail a build."""
    return [one for one in findings if one.must_be_fixed and not excused & {one.id, *one.aliases}]


def _knows_the_canary(service: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="maskbridge-audit-") as folder:
        file = Path(folder) / "canary.lock"
        file.write_text(f"{CANARY} --hash=sha256:{'0' * 64}\n")
        report = _report(file, service)
    return bool(report and report[0].get("vulns"))


def _report(lock: Path, service: str) -> list[dict[str, Any]] | None:
    """pip-audit's rows, where the service knows most of the lock."""
    program = Path(sys.executable).with_name("pip-audit")
    words = [str(program), "-r", str(lock), "--require-hashes", "--disable-pip", "-s", service, "-f", "json"]
    words += ["--progress-spinner", "off", "--timeout", str(TIMEOUT_S), "--osv-url", f"{_osv()}/v1/query"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_S, check=False)
        rows: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):  # a traceback instead of a report: no connection
        return None
    skipped = sum("skip_reason" in row for row in rows)
    return rows if rows and skipped <= MOST_SKIPPED * len(rows) else None


def _finding(row: dict[str, Any], vulnerability: dict[str, Any]) -> Finding:
    ids = [vulnerability["id"], *vulnerability.get("aliases", ())]
    severities = (_severity(one) for one in ids)
    severity = next((known for known in severities if known), "UNKNOWN")
    fixed = tuple(vulnerability.get("fix_versions", ()))
    return Finding(row["name"], row["version"], vulnerability["id"], tuple(ids[1:]), fixed, severity)


def _severity(advisory: str) -> str | None:
    """What the advisory's own database calls it; OSV carries GitHub's word for it."""
    try:
        with urllib.request.urlopen(f"{_osv()}/v1/vulns/{urllib.parse.quote(advisory)}", timeout=TIMEOUT_S) as answer:
            word = json.load(answer).get("database_specific", {}).get("severity")
    except (OSError, ValueError):
        return None
    return str(word).upper() if word else None


def _osv() -> str:
    return os.environ.get(URL_VARIABLE, OSV).rstrip("/")


def main() -> int:
    """Print the findings, one a line, and say which of them must be fixed."""
    findings = audit(ROOT / "requirements.lock")
    if findings is None:
        sys.stderr.write("no advisory database could be reached; nothing is known about the lock\n")
        return UNKNOWN
    failing = judge(findings, accepted(datetime.now(UTC).date()))
    for one in findings:
        mark = "FIX" if one in failing else "known"
        sys.stdout.write(
            f"{mark:6}{one.name} {one.version}  {one.id}  {one.severity}  fixed in {', '.join(one.fixed_in) or '-'}\n"
        )
    sys.stdout.write(f"{len(findings)} known vulnerabilities, {len(failing)} to be fixed\n")
    return VULNERABLE if failing else OK


if __name__ == "__main__":
    sys.exit(main())
