"""The command line `maskbridge`: registers the verbs and turns every failure into one readable line.

Imports nothing heavier than typer at module level, so that `--help` answers in a tenth of a second; what a
verb needs (torch 2 s, mlflow 1.6 s, prefect 1.1 s) it imports inside its own body.

Exit codes: 0 done; 1 a fault of the program; 2 bad input or bad usage; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from pipelines import telemetry
from pipelines.commands import (
    adapt,
    convert,
    count,
    demo,
    doctor,
    drift,
    evaluate,
    export,
    inspect,
    models,
    plan,
    predict,
    promote,
    rollback,
    sync,
    train,
)

OK, FAULT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
HOUSES = ("maskformer", "adapters", "pipelines", "flows")


class LogFormat(StrEnum):
    """What stderr holds."""

    TEXT = "text"
    JSON = "json"


app = typer.Typer(
    name="maskbridge",
    help="One MaskFormer, carried between satellites and scanners: tile, predict, stitch exactly, track.",
    epilog="Start with: maskbridge demo · then, on your own data: plan, train, evaluate, predict",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    plan,
    train,
    evaluate,
    adapt,
    drift,
    predict,
    count,
    demo,
    inspect,
    models,
    promote,
    rollback,
    sync,
    convert,
    export,
    doctor,
):
    app.command(module.NAME, epilog=module.EXAMPLE)(module.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"maskbridge {version('maskbridge')}")
        raise typer.Exit()


@app.callback()
def _everywhere(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and log more; works anywhere.")] = False,
    log_format: Annotated[
        LogFormat, typer.Option("--log-format", help="json: stderr is JSON lines with the run's id; works anywhere.")
    ] = LogFormat.TEXT,
) -> None:
    """Options of every verb. `main` takes them out of the arguments, so they may stand anywhere."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the installed command: runs it and leaves the process with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    words, debug = _take_debug(words)
    words, as_json = _take_log_format(words)
    _quieten(debug)
    if as_json or os.environ.get("MASKBRIDGE_LOG_FORMAT") == LogFormat.JSON:
        from pipelines import json_logs

        json_logs.start()
    sys.exit(run(words, debug))


def run(words: list[str], debug: bool = False) -> int:
    """Run one command line and return its exit code. A failure is one line on stderr."""
    try:
        code = app(words, prog_name="maskbridge", standalone_mode=False)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # `maskbridge models | head`: the reader has gone, which is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:  # noqa: BLE001 - the boundary: nothing behind it may show a bare traceback
        if debug:
            import traceback

            traceback.print_exc()
        line, code = explain(error)
        if line:
            typer.echo(line, err=True)
        return code
    if code == INTERRUPTED:
        typer.echo(_resume_hint(words), err=True)
    return code if isinstance(code, int) else OK


def explain(error: Exception) -> tuple[str, int]:
    """The one line and the exit code for what went wrong."""
    from adapters.errors import InputError

    if isinstance(error, InputError):
        return f"error: {_one_line(error)}", BAD_INPUT
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # usage: click's or typer's own copy
        context = getattr(error, "ctx", None)
        where = f" ({context.command_path} --help shows the usage)" if context else ""
        fault = _one_line(error.format_message())  # empty where no argument at all was given: the help is out
        return f"error: {fault}{where}" if fault else "", BAD_INPUT
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):  # pydantic, not imported here
        faults = (f"{'.'.join(map(str, e['loc'])) or 'value'}: {e['msg']}" for e in error.errors())
        return f"error: {_one_line('; '.join(faults))}", BAD_INPUT
    if isinstance(error, OSError) and error.strerror:
        return f"error: {error.filename or 'output'}: {_one_line(error.strerror)}", BAD_INPUT
    if isinstance(error, MemoryError):
        return "error: out of memory; a smaller --tile or --batch needs less", FAULT
    kind = type(error).__name__
    return (
        f"internal error: {kind}: {_one_line(error)[:300]}; run again with --debug for the traceback",
        FAULT,
    )


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """Lift `--debug` out of the words wherever it stands before a `--`; MASKBRIDGE_DEBUG=1 does the same."""
    end = words.index("--") if "--" in words else len(words)
    rest = [word for word in words[:end] if word != "--debug"] + words[end:]
    return rest, len(rest) < len(words) or os.environ.get("MASKBRIDGE_DEBUG") == "1"


def _take_log_format(words: list[str]) -> tuple[list[str], bool]:
    """Lift `--log-format json` or `text` out of the words; any other value stays, and is refused as bad usage."""
    end = words.index("--") if "--" in words else len(words)
    for number, word in enumerate(words[:end]):
        name, equals, value = word.partition("=")
        if name == "--log-format":
            last = number + (1 if equals else 2)
            value = value if equals else "".join(words[number + 1 : last])
            if value in set(LogFormat):
                return words[:number] + words[last:], value == LogFormat.JSON
    return words, False


def _quieten(debug: bool) -> None:
    """Keep stderr for progress and errors; libraries' warnings and GDAL's lines show with `--debug` only."""
    telemetry.opt_out()
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", level=logging.ERROR)
    for house in HOUSES:
        logging.getLogger(house).setLevel(logging.DEBUG if debug else logging.WARNING)
    if debug:
        return
    warnings.simplefilter("ignore")
    for noisy in ("rasterio", "fiona", "pyogrio", "mlflow", "alembic", "prefect"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")


def _resume_hint(words: list[str]) -> str:
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb == "train":
        return "interrupted: the same command with --resume goes on from the last checkpoint"
    if verb == "demo":
        return "interrupted: run it again; what is fetched and the finished shards are kept"
    if verb == "predict":
        return "interrupted: nothing half-written is left; run it again"
    return "interrupted: nothing was changed; run it again"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


if __name__ == "__main__":
    main()
