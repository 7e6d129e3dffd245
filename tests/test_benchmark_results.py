"""A committed result belongs to the config it names: change the config, and the benchmark has to run again."""

import json
from pathlib import Path

import pytest

from benchmarks.record import RESULTS, ROOT, config_hash


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_result_says_where_it_comes_from(path: Path) -> None:
    record = json.loads(path.read_text())
    assert {"command", "revision", "date", "machine", "versions"} <= set(record)
    configs = {record["config"]["path"]: record["config"]["sha256"]} if "config" in record else {}
    for config, sha256 in {**configs, **record.get("configs", {})}.items():
        assert config_hash(ROOT / config) == sha256, (
            f"{config} changed since {path.name} was made: run `{record['command']}` again"
        )


def test_the_demo_learns_on_every_seed() -> None:
    record = json.loads((RESULTS / "demo_seeds.json").read_text())
    trivial = max(row["foreground_iou"] for row in record["trivial"].values())
    assert len(record["mask_model"]) == 3
    assert min(row["foreground_iou"] for row in record["mask_model"]) >= trivial + 0.15
    for unet in record["unet"].values():
        for mine, theirs in zip(record["mask_model"], unet, strict=True):
            assert abs(mine["seconds"] / theirs["seconds"] - 1) <= 0.05, "the same wall-clock for both"


def test_there_are_results() -> None:
    assert list(RESULTS.glob("*.json"))
