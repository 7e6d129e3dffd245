"""What is installed is known: licences and bill of materials equal the lock; advisories are looked up and judged."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from deploy import audit, licences
from deploy.compose_file import ROOT
from deploy.sbom import bill

LOCK = ROOT / "requirements.lock"


def test_the_list_of_licences_is_of_this_lock() -> None:
    written = {}
    for line in (ROOT / "THIRD_PARTY.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 5 and cells[1] not in {"name", "---"}:
            written[cells[1]] = (tuple(cells[2].split(", ")), cells[3])
    locked = licences.locked(LOCK)
    assert {name: versions for name, (versions, _) in written.items()} == locked, "run `make licences`"
    unknown = [name for name, (_, licence) in written.items() if not licence or licence == "see its own files"]
    assert not unknown
    # Copyleft that would reach our own code; text-unidecode may be taken under the Artistic licence.
    strong = [name for name, (_, licence) in written.items() if "GPL" in licence and "LGPL" not in licence]
    assert strong == ["text-unidecode"] and "Artistic" in written["text-unidecode"][1]


def test_the_bill_of_materials_is_the_lock() -> None:
    made = bill(LOCK)
    assert made["bomFormat"] == "CycloneDX" and made["specVersion"] == "1.6"
    components: dict[str, set[str]] = {}
    for component in made["components"]:
        components.setdefault(component["name"].lower(), set()).add(component["version"])
        assert component["purl"].startswith("pkg:pypi/")
        assert any(reference.get("hashes") for reference in component["externalReferences"])
    assert {name: tuple(sorted(versions)) for name, versions in components.items()} == licences.locked(LOCK)
    text = json.dumps(made)
    assert str(Path.home()) + "/" not in text and str(ROOT) not in text


def finding(**settings) -> audit.Finding:
    given = {"name": "x", "version": "1", "id": "GHSA-1", "aliases": ("CVE-1",), "fixed_in": ("2",), "severity": "HIGH"}
    return audit.Finding(**{**given, **settings})


def test_high_ones_with_a_fix_fail_unless_excused_for_a_reason_and_a_time(tmp_path: Path) -> None:
    file = tmp_path / "exceptions.json"
    rows = [
        {"id": "CVE-1", "reason": "not reached", "until": "2027-01-31"},
        {"id": "CVE-2", "reason": " ", "until": "2099-01-01"},
    ]
    file.write_text(json.dumps(rows))
    assert audit.accepted(date(2027, 1, 31), file) == {"CVE-1"}
    assert audit.accepted(date(2027, 2, 1), file) == set()
    bad = [finding(), finding(severity="CRITICAL", id="GHSA-2", aliases=()), finding(severity="UNKNOWN", id="GHSA-3")]
    fine = [finding(severity="MODERATE"), finding(severity="LOW"), finding(fixed_in=())]
    assert audit.judge([*bad, *fine], set()) == bad
    assert [one.id for one in audit.judge(bad, {"CVE-1"})] == ["GHSA-2"], "an alias excuses too"
    audit.accepted(date(2026, 1, 1))  # the project's own file is well formed


ADVISORIES = {
    "GHSA-bad": {"severity": "HIGH", "of": "jinja2"},
    "GHSA-mild": {"severity": "LOW", "of": "jinja2"},
}


class Database(http.server.BaseHTTPRequestHandler):
    """OSV's two questions, about a package of one bad and one mild advisory."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        mine = [name for name, advisory in ADVISORIES.items() if advisory["of"] == asked["package"]["name"]]
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.1.6"}]}]
        package = {"name": "jinja2", "ecosystem": "PyPI"}
        affected = [{"package": package, "ranges": ranges}]
        self._answer({"vulns": [{"id": name, "summary": "x", "affected": affected} for name in mine]} if mine else {})

    def do_GET(self) -> None:
        self._answer({"database_specific": {"severity": ADVISORIES[self.path.rpartition("/")[2]]["severity"]}})

    def _answer(self, said: dict) -> None:
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Database)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(audit.URL_VARIABLE, f"http://127.0.0.1:{server.server_port}")
    yield server.server_address[0]
    server.shutdown()


def test_a_database_is_asked_and_believed(database: str, tmp_path: Path) -> None:
    lock = tmp_path / "small.lock"
    hashes = " \\\n    --hash=sha256:" + "0" * 64
    lock.write_text(f"jinja2==2.10{hashes}\nsix==1.17.0{hashes}\n")
    found = audit.audit(lock)
    assert found is not None
    assert sorted((one.name, one.id, one.severity, one.fixed_in) for one in found) == [
        ("jinja2", "GHSA-bad", "HIGH", ("3.1.6",)),
        ("jinja2", "GHSA-mild", "LOW", ("3.1.6",)),
    ]
    assert [one.id for one in audit.judge(found, set())] == ["GHSA-bad"]


def test_an_index_that_knows_nothing_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip-audit calls it "no known vulnerabilities", with every distribution skipped."""
    rows = [{"name": "a", "skip_reason": "not found"}, {"name": "b", "version": "1", "vulns": []}]
    done = subprocess.CompletedProcess([], 0, json.dumps({"dependencies": rows}), "No known vulnerabilities found")
    monkeypatch.setattr(audit.subprocess, "run", lambda *words, **settings: done)
    assert audit.audit(tmp_path / "x.lock") is None


def test_nothing_known_to_be_dangerous_is_locked() -> None:
    """Skips, in CI too, where no advisory database can be reached: that says something about the network only."""
    done = subprocess.run([sys.executable, "-m", "deploy.audit"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode == audit.UNKNOWN:
        pytest.skip("no advisory database can be reached from here")
    assert done.returncode == audit.OK, done.stdout
