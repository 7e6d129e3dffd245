"""The command line: quick to answer, every failure one line and an exit code, only results on stdout."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from adapters.errors import InputError
from pipelines import cli
from pipelines.commands import checks, demo, models, predict
from pipelines.commands.progress import Progress, clock, plain_line

HEAVY = (
    "torch", "timm", "prefect", "mlflow", "monai", "rasterio", "geopandas", "pandas", "numpy", "scipy",
    "pydantic", "transformers", "segmentation_models_pytorch",
)  # fmt: skip
VERBS = (
    "plan", "train", "evaluate", "predict", "count", "adapt", "drift", "demo", "inspect", "models", "promote",
    "rollback", "sync", "convert", "export", "doctor",
)  # fmt: skip


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, pipelines.cli; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_help_answers_in_under_half_a_second() -> None:
    took = []
    for _ in range(5):  # the best of five: other tests may share the cores
        began = time.perf_counter()
        done = python("-m", "pipelines.cli", "--help")
        took.append(time.perf_counter() - began)
        if took[-1] < 0.5:
            break
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)
    assert min(took) < 0.5, took


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"Example: maskbridge {verb}" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"maskbridge {version('maskbridge')}\n"


def test_no_arguments_show_the_help_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    seen = capsys.readouterr()
    assert "Usage: maskbridge" in seen.out + seen.err
    assert "error" not in seen.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nosuch"], "nosuch"),
        (["predict"], "'model'"),
        (["predict", "bundle", "scene.tif"], "--out"),
        (["predict", "bundle", "scene.tif", "--out", "o", "--task", "count"], "--task"),
        (["predict", "bundle", "scene.tif", "--out", "o", "--score", "2"], "--score"),
        (["predict", "bundle", "scene.tif", "--out", "o", "--tile", "many"], "--tile"),
        (["train", "c.yaml", "--out", "o", "--minutes", "0"], "--minutes"),
        (["demo", "trees"], "trees"),
        (["doctor", "--nosuch"], "--nosuch"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    (line,) = seen.err.splitlines()
    assert line.startswith("error: ") and named in line and "--help" in line


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """A verb `fail KIND` that raises each kind of failure; the rest of the command line is the real one."""
    app = typer.Typer()

    @app.callback()
    def nothing() -> None:
        """Keeps `fail` a verb."""

    @app.command("fail")
    def fail(kind: str) -> None:
        if kind == "pydantic":
            from pipelines.config import PredictOptions

            PredictOptions(tile=-1)
        raise {
            "input": InputError("scene.tif: not a raster,\n expected GeoTIFF"),
            "fault": RuntimeError("the 7th cog\nis loose"),
            "full": OSError(28, "No space left on device", "out/semantic.tif"),
            "memory": MemoryError(),
            "interrupt": KeyboardInterrupt(),
            "pipe": BrokenPipeError(),
        }[kind]

    monkeypatch.setattr(cli, "app", app)
    return app


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        ("input", 2, "error: scene.tif: not a raster, expected GeoTIFF"),
        (
            "fault",
            1,
            "internal error: RuntimeError: the 7th cog is loose; run again with --debug for the traceback",
        ),
        ("full", 2, "error: out/semantic.tif: No space left on device"),
        ("memory", 1, "error: out of memory; a smaller --tile or --batch needs less"),
        ("pydantic", 2, "error: tile: Input should be greater than 0"),
    ],
)
def test_a_failure_is_one_line(
    failing: typer.Typer, kind: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["fail", kind]) == code
    seen = capsys.readouterr()
    assert seen.err.splitlines() == [said]
    assert seen.out == ""


def test_debug_shows_the_traceback(failing: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fail", "fault"], debug=True) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1].startswith("internal error")


def test_interrupted_says_how_to_go_on(failing: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fail", "interrupt"]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("interrupted: ")
    assert "--resume" in cli._resume_hint(["train", "c.yaml"])


def test_a_reader_that_left_is_no_failure(
    failing: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.run(["fail", "pipe"]) == 0


@pytest.mark.parametrize(
    ("words", "rest", "debug"),
    [
        (["predict", "m", "--debug", "s"], ["predict", "m", "s"], True),
        (["--debug", "doctor"], ["doctor"], True),
        (["inspect", "--", "--debug"], ["inspect", "--", "--debug"], False),
        (["doctor"], ["doctor"], False),
    ],
)
def test_debug_may_stand_anywhere(
    words: list[str], rest: list[str], debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASKBRIDGE_DEBUG", raising=False)
    assert cli._take_debug(words) == (rest, debug)


def test_an_output_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match=r"taken/deep.*is a file"):
        checks.writable_folder(tmp_path / "taken" / "deep")
    with pytest.raises(InputError, match=r"taken: .*is a file"):
        checks.writable_folder(tmp_path / "taken")
    if Path("/proc/self").is_dir():  # nobody, root included, can make a file there
        with pytest.raises(InputError, match="cannot be written to"):
            checks.writable_folder(Path("/proc/self/out"))


def test_a_good_output_folder_is_left_unmade(tmp_path: Path) -> None:
    checks.writable_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_predict_gives_every_flag_to_the_pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The wrapper's whole work: flags to options, checks before the work, a path a scene on stdout."""
    calls = []
    monkeypatch.setattr(checks, "model_adapter", lambda model: f"adapter of {model}")
    monkeypatch.setattr(checks, "scene_fits", lambda *arguments: calls.append(("checked", *arguments[:2])))
    pipeline = type(sys)("pipelines.prediction")

    def predict_scene(source, model, out, options, *, write, executor, overwrite, on_progress):  # type: ignore[no-untyped-def]
        given = {**options.model_dump(exclude_defaults=True), **write.model_dump(exclude_defaults=True)}
        calls.append(("predicted", source, model, out, given, overwrite))
        folder = out / Path(source).stem
        folder.mkdir()
        (folder / "run.json").write_text('{"lost_pixels": 0}')
        return folder

    pipeline.predict_scene = predict_scene  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.prediction", pipeline)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    flags = (
        "--tile 256 --overlap 32 --task panoptic --score 0.25 --min-area 9 --tta flip --device cpu "
        "--precision fp32 --batch 2 --overwrite --flatgeobuf --layers --confidence --stac --simplify 0.5 "
        "--regularise 0.6"
    )
    words = ["predict", "bundle", "a.tif", "b.tif", "--out", str(tmp_path), *flags.split()]
    assert cli.run(words) == 0
    expected = {
        "tile": 256, "overlap": 32, "task": "panoptic", "score": 0.25, "min_area": 9, "tta": "flip",
        "device": "cpu", "precision": "fp32", "batch": 2,
        "flatgeobuf": True, "layers": True, "confidence": True, "stac": True, "simplify_m": 0.5,
        "regularise_m": 0.6,
    }  # fmt: skip
    assert calls == [
        ("checked", "a.tif", "adapter of bundle"),
        ("checked", "b.tif", "adapter of bundle"),
        ("predicted", "a.tif", "bundle", tmp_path, expected, True),
        ("predicted", "b.tif", "bundle", tmp_path, expected, True),
    ]
    assert out.getvalue().split() == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_predict_without_flags_takes_the_defaults_of_the_options() -> None:
    import inspect

    from pipelines.config import PredictOptions

    for name, parameter in inspect.signature(predict.command).parameters.items():
        if name in PredictOptions.model_fields:
            assert parameter.default == PredictOptions.model_fields[name].default, name


def test_models_as_table_and_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "crowns", "version": "3", "aliases": ["champion"], "scores": {"pq": 0.4321}, "note": None}]
    registry = type(sys)("pipelines.registry")
    registry.list_models = lambda: rows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.registry", registry)
    models.command(as_json=True)
    assert json.loads(capsys.readouterr().out) == rows
    models.command()
    text = capsys.readouterr().out
    assert all(word in text for word in ("models:/crowns/3", "champion", "pq", "0.432"))
    rows.clear()
    models.command()
    seen = capsys.readouterr()
    assert seen.out == "" and "maskbridge demo" in seen.err


def test_demo_names_are_the_two_of_the_issue() -> None:
    assert [str(name) for name in demo.Demo] == ["crowns", "buildings"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (725, "12:05"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_plain_line_has_an_eta() -> None:
    assert plain_line("tiles", 12, 40, 12) == "tiles  12/40  30 %  0:12 elapsed  about 0:28 left"
    assert plain_line("tiles", 40, 40, 60) == "tiles  40/40  100 %  1:00 elapsed"
    assert plain_line("reading", 5, None, 3, "loss 0.4") == "reading  5  0:03 elapsed  loss 0.4"


def test_plain_progress_speaks_seldom_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(terminal=False, every=60) as progress:
        for done in range(50):
            progress("tiles", done, 50)
    assert capsys.readouterr() == ("", "")
    with Progress(terminal=False, every=0) as progress:
        progress("train", 3, 10, loss=0.51234, rate=1)
    seen = capsys.readouterr()
    assert seen.out == "" and "3/10" in seen.err and "loss 0.5123" in seen.err and "rate 1" in seen.err


def test_a_bar_on_a_terminal_shows_stage_and_share(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(terminal=True) as progress:
        progress("tiles", 0, 4)
        progress("tiles", 4, 4, objects=17)
        progress("report", 1, None)
    seen = capsys.readouterr()
    assert seen.out == "" and "tiles" in seen.err and "100%" in seen.err and "objects 17" in seen.err
