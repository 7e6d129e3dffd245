"""Aliases, tags and ledger around the gate; the gate itself is judged in test_gate.py."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from adapters.errors import InputError
from pipelines import cli
from pipelines.bundle import Bundle
from pipelines.config import RunConfig
from pipelines.promotion import gate as gate_module
from pipelines.promotion import ledger
from pipelines.promotion.aliases import aliases
from pipelines.promotion.frozen import changes, data_digest, load_frozen
from pipelines.promotion.gate import Gate
from pipelines.promotion.policy import Policy, Verdict, load_policy
from pipelines.promotion.promote import Promotion, Request, promote
from pipelines.promotion.rollback import rollback
from pipelines.registry import register
from pipelines.tracking_store import connect
from tests.pipelines.promotion import colours


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def registry(champion: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with versions 1, 2 and 3 of the model `fields`; every test works on a copy."""
    file = tmp_path_factory.mktemp("registry") / "mlflow.db"
    for _ in range(3):
        register(champion.folder, "fields", uri=f"sqlite:///{file}")
    return file


@pytest.fixture
def uri(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MASKBRIDGE_CACHE", str(tmp_path / "cache"))
    address = f"sqlite:///{shutil.copy(registry, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address


@pytest.fixture
def configs(data_files: list[Path]) -> list[RunConfig]:
    return load_frozen(data_files)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the data is asked for: what follows the verdict is tested here."""

    def ask(self: Gate, verdicts, candidate, champion, expected) -> None:
        verdict = gate_module.check_data(self.data, expected, candidate.provenance)
        verdicts.append(verdict)
        if not verdict.passed:
            raise gate_module._Ended
        verdicts.append(Verdict("quality", True, "fine", {"rows": [row("iou of class brick")]}))

    monkeypatch.setattr(Gate, "_ask", ask)


def row(what: str) -> dict:
    return {"what": what, "candidate": 0.9, "champion": 0.8, "worst": 0.05, "blocks": 9}


def where(uri: str) -> dict[str, str]:
    return aliases(connect(uri), uri, "fields")


def tags(uri: str, version: str) -> dict[str, str]:
    return connect(uri).get_model_version("fields", version).tags


def take(version: str, configs: Sequence[RunConfig], uri: str, **settings) -> Promotion:
    return promote(Request("fields", version, **settings), configs, uri=uri)


def test_aliases_tags_and_ledger_follow_a_promotion(uri, configs, lenient, tmp_path: Path) -> None:
    first = promote(Request("fields", "1"), configs, tmp_path / "out", uri=uri)
    assert first.promoted and first.previous is None and where(uri) == {"champion": "1"}
    second = take("2", configs, uri)
    assert where(uri) == {"champion": "2", "previous": "1"}
    assert tags(uri, "2")["gate.decision"] == "promoted"
    assert tags(uri, "2")["gate.data_digest"] == second.report.digest
    newest, oldest = ledger.read("fields", uri)
    assert (newest.action, newest.version, newest.previous, newest.data) == (
        "promoted", "2", "1", second.report.digest
    )  # fmt: skip
    assert newest.id == second.entry == tags(uri, "2")["gate.run"]
    assert newest.who == ledger.who() and newest.run == connect(uri).get_model_version("fields", "2").run_id
    assert newest.metrics["quality/iou of class brick/candidate"] == 0.9
    assert (oldest.version, oldest.previous) == ("1", None)
    files = {file.path for file in connect(uri).list_artifacts(newest.id)}
    assert files == {"promotion.json", "promotion.md"}
    told = json.loads((tmp_path / "out" / "promotion.json").read_text())
    assert told["passed"] and told["version"] == "1" and len(told["data"]) == 2
    assert "| iou of class brick | 0.800 | 0.900 | 0.050 |" in (tmp_path / "out" / "promotion.md").read_text()


def test_the_challenger_is_the_candidate_and_none_after_it(uri, configs, lenient) -> None:
    client = connect(uri)
    client.set_registered_model_alias("fields", "challenger", "2")
    assert promote(Request("fields"), configs, uri=uri).version == "2"
    assert where(uri) == {"champion": "2"}
    assert promote(Request("fields"), configs, uri=uri).version == "3"  # the newest
    with pytest.raises(InputError, match="models:/fields/3: is @champion already"):
        promote(Request("fields"), configs, uri=uri)


def test_a_refusal_moves_nothing_and_is_recorded(uri, configs, lenient, world: Path, tmp_path: Path) -> None:
    """The first promotion freezes the data; corrected labels are other data, until somebody says so."""
    take("1", configs, uri)
    colours.frozen(tmp_path, "south", seed=7)
    other = [configs[0], *load_frozen([tmp_path / "south.yaml"])]
    refused = take("2", other, uri)
    assert not refused.promoted and refused.report.refused_by == ("data",)
    assert "south/south.tif has other pixels" in refused.report.refusal and "north" not in refused.report.refusal
    assert where(uri) == {"champion": "1"}
    entry = ledger.read("fields", uri)[0]
    assert (entry.action, entry.version, entry.previous, entry.rules) == ("refused", "2", "1", ("data",))
    assert entry.says == refused.report.refusal == tags(uri, "2")["gate.report"]
    assert tags(uri, "2")["gate.rules"] == "data" and tags(uri, "2")["gate.decision"] == "refused"
    assert take("2", other, uri, new_data=True).promoted and where(uri)["champion"] == "2"
    assert take("3", other, uri).promoted  # frozen anew
    assert not take("1", configs, uri).promoted


def test_the_digest_of_an_evaluation_must_be_the_datas(uri, configs, lenient) -> None:
    assert take("1", configs, uri, digest="0" * 64).report.refused_by == ("data",)
    digest = data_digest(configs, colours.adapter())
    assert take("1", configs, uri, digest=digest).promoted
    one_domain = data_digest(configs[1:], colours.adapter())
    assert take("2", configs, uri, digest=one_domain).promoted


def test_a_dry_run_records_nothing(uri, configs, lenient) -> None:
    assert take("1", configs, uri, dry_run=True).promoted
    assert where(uri) == {} and ledger.read("fields", uri) == [] and "gate.decision" not in tags(uri, "1")


def test_a_champion_that_changed_meanwhile_stays(uri, configs, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(self: Gate, verdicts, candidate, champion, expected) -> None:
        connect(uri).set_registered_model_alias("fields", "champion", "3")
        verdicts.append(Verdict("data", True, "fine"))

    monkeypatch.setattr(Gate, "_ask", ask)
    with pytest.raises(InputError, match="version 3 became @champion while version 2 was judged against none"):
        take("2", configs, uri)
    assert where(uri) == {"champion": "3"} and ledger.read("fields", uri) == []  # the entry's run has failed


def test_rollback_goes_back_and_further_back(uri, configs, lenient) -> None:
    for version in ("1", "2", "3"):
        take(version, configs, uri)
    assert where(uri) == {"champion": "3", "previous": "2"}
    done = rollback("fields", uri=uri)
    assert (done.version, done.left, done.previous) == ("2", "3", "1") and done.alias_s < 1
    assert where(uri) == {"champion": "2", "previous": "1"}
    entry = ledger.read("fields", uri)[0]
    assert (entry.action, entry.version, entry.previous) == ("rolled back", "2", "3")
    assert "gate.rolled_back" in tags(uri, "3")
    assert rollback("fields", uri=uri).previous is None and where(uri) == {"champion": "1"}
    with pytest.raises(InputError, match="has no @previous to go back to"):
        rollback("fields", uri=uri)
    assert rollback("fields", version="3", uri=uri).version == "3"
    with pytest.raises(InputError, match="version 3 is @champion already"):
        rollback("fields", version="3", uri=uri)
    with pytest.raises(InputError, match="no model of that name"):
        rollback("roads", uri=uri)
    with pytest.raises(InputError, match="9"):
        rollback("fields", version="9", uri=uri)


def test_rollback_moves_the_alias_even_where_the_rest_fails(
    uri, configs, lenient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for version in ("1", "2"):
        take(version, configs, uri)

    def away(*_: object) -> None:
        raise InputError("the store is away")

    monkeypatch.setattr("pipelines.promotion.rollback.read", away)
    assert rollback("fields", uri=uri).version == "1" and where(uri)["champion"] == "1"
    assert "the rest was not recorded: the store is away" in caplog.text


def test_the_digest_is_of_contents(configs, world: Path, tmp_path: Path) -> None:
    digest = data_digest(configs, colours.adapter())
    assert data_digest(configs[::-1], colours.adapter()) == digest
    renamed = configs[0].model_copy(update={"name": "elsewhere"})
    assert data_digest([renamed, configs[1]], colours.adapter()) == digest
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in world.glob("north.*"):
        shutil.copy(file, moved)
    here = [load_frozen([moved / "north.yaml"])[0].model_copy(), configs[1]]
    item = here[0].data[0].model_copy(update={"source": str(moved / "north.tif"), "labels": str(moved / "north.gpkg")})
    here[0] = here[0].model_copy(update={"data": (item,)})
    assert data_digest(here, colours.adapter()) == digest
    labels = item.label_options
    boxed = item.model_copy(update={"label_options": replace(labels, rectangles_are_boxes=True)})
    assert data_digest([here[0].model_copy(update={"data": (boxed,)}), configs[1]], colours.adapter()) != digest
    assert changes({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == (
        "a is gone; c is new; b has other pixels, labels or windows"
    )


def test_the_command_says_what_is_wrong_in_a_line(uri, data_files, capsys, tmp_path: Path) -> None:
    north = str(data_files[0])
    assert cli.run(["promote", "roads", "-d", north]) == 2
    assert "no model of that name is registered" in capsys.readouterr().err
    assert cli.run(["promote", "fields", "-d", str(tmp_path / "none.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "policy.yaml").write_text("margn: 0.1\n")
    assert cli.run(["promote", "fields", "-d", north, "--policy", str(tmp_path / "policy.yaml")]) == 2
    assert "did you mean `margin`?" in capsys.readouterr().err
    assert cli.run(["promote", "fields", "-d", north, "-d", north]) == 2
    assert "two data configs are named alike" in capsys.readouterr().err
    assert cli.run(["rollback", "fields"]) == 2
    assert "fields: has no @champion to roll back" in capsys.readouterr().err


def test_the_command_promotes_refuses_and_rolls_back(uri, data_files, lenient, capsys) -> None:
    north = str(data_files[0])
    for version in ("1", "2"):
        assert cli.run(["promote", "fields", "--version", version, "-d", north]) == 0
    assert "models:/fields/2 is @champion, @previous is version 1" in capsys.readouterr().out
    assert cli.run(["promote", "fields", "--version", "3", "-d", str(data_files[1])]) == 4
    told = capsys.readouterr()
    assert "models:/fields/3 refused by data" in told.out and "REFUSED  data" in told.err
    assert cli.run(["rollback", "fields"]) == 0
    assert "models:/fields/1 is @champion again (was 2)" in capsys.readouterr().out


def test_policies_are_read_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("margin: 0.01\nslower: 2\n")
    assert load_policy(tmp_path / "policy.yaml") == Policy(margin=0.01, slower=2)


@pytest.mark.slow
def test_rollback_ends_in_five_seconds(uri, configs, lenient) -> None:
    """As a user types it: a fresh process with all its imports. Best of three, for the machine may be busy."""
    import subprocess
    import sys

    took = []
    for _ in range(3):
        for version in ("1", "2"):
            if where(uri).get("champion") != version:
                take(version, configs, uri)
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", "rollback", "fields"], capture_output=True, text=True, timeout=120
        )
        took.append(time.monotonic() - started)
        assert done.returncode == 0, done.stderr
        assert "models:/fields/1 is @champion again" in done.stdout
    assert min(took) < 5, took
