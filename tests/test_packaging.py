"""What is shipped: four packages with their data in the wheel, a lock of hashes without addresses."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_four_packages_and_their_data(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: setuptools leaves a build folder behind
    subprocess.run(["git", "-C", str(ROOT), "checkout-index", "-a", f"--prefix={source}/"], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"maskformer", "adapters", "pipelines", "flows"}
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", *sorted(packages)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(tracked) <= set(names), "every module, template and demo config is shipped"


def test_every_line_of_the_lock_is_pinned_and_hashed() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[A-Za-z0-9._-]+(\[[^\]]*\])?==\S+", entry) and "--hash=sha256:" in entry, entry.splitlines()[
            0
        ]


def test_the_versions_that_break_each_other_are_kept_apart() -> None:
    lock = (ROOT / "requirements.lock").read_text()

    def version(name: str) -> tuple[int, ...]:
        (found,) = set(re.findall(rf"^{name}==([\d.]+)", lock, re.MULTILINE))
        return tuple(int(part) for part in found.split("."))

    assert version("fastapi") < (0, 151), "prefect's server does not start on newer ones"
    assert version("sqlalchemy") < (2, 1), "prefect's scheduler silently schedules nothing"
    assert "\nlightning==" not in lock and "\npytorch-lightning==" not in lock
