"""docs/domains.md: its one-file domain is short, runs as it stands and leaves what the page says."""

import re
from pathlib import Path

import geopandas
import pytest

DOC = Path(__file__).resolve().parents[1] / "docs" / "domains.md"


def the_file() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    return code


def test_the_domain_is_one_file_of_under_a_hundred_lines() -> None:
    assert len(the_file().splitlines()) < 100


def test_the_domain_of_the_page_trains_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    scope: dict = {"__name__": "solar"}
    exec(compile(the_file(), str(DOC), "exec"), scope)
    data = tmp_path / "solar"
    data.mkdir()
    assert scope["main"](data, 3) == 0
    assert (data / "out" / "bundle").is_dir()
    seen = data / "seen" / "0"
    assert {"semantic.tif", "objects.gpkg", "report.html", "run.json"} <= {file.name for file in seen.iterdir()}
    labels = geopandas.read_file(data / "0.gpkg")
    assert {"panel"} <= set(labels["class"]) <= {"panel", "hot"}
