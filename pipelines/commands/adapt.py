"""`maskbridge adapt`: a trained model to scenes or studies of another domain, without their labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipelines.adaptation.adapt import Adaptation

NAME = "adapt"
EXAMPLE = "Example: maskbridge adapt models:/crowns@champion site/*.tif --out runs/site --strategy self_training"
NOT_BETTER = 4  # exit code, as of a refused promotion


def command(
    model: Annotated[str, typer.Argument(help="Bundle folder, or models:/name@alias.")],
    scenes: Annotated[
        list[str], typer.Argument(help="Scenes or studies of the target; a run config stands for its sources.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapted bundle.")],
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="resolution, input_statistics, norm_statistics, style, self_training or test_time; may be repeated. "
            "[default: the first three]",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of training: style, and each round of self_training.")] = 100,
    seed: Annotated[int, typer.Option(help="Of crops and of training.")] = 0,
    source: Annotated[Path | None, typer.Option(help="style: run config of the labelled source data.")] = None,
    score_on: Annotated[Path | None, typer.Option(help="Run config of labelled target data, to judge by only.")] = None,
    upper_bound: Annotated[str | None, typer.Option(help="A model trained on the target's labels, beside.")] = None,
) -> None:
    """Adapt a trained model to scenes or studies of another domain. Their labels are never opened.

    With --score-on, source model and adapted model are scored side by side afterwards. Exit code 4: the adapted one is
    not shown to be better, and is not written.
    """
    from pipelines.commands.checks import model_adapter, writable_folder
    from pipelines.config import load_config

    model_adapter(model)
    writable_folder(out)
    scored_on, dressed = (load_config(path) if path else None for path in (score_on, source))
    addresses = [address for scene in scenes for address in _pixels_of(scene)]

    from pipelines.adaptation.adapt import USUAL, Request
    from pipelines.adaptation.target import Effort
    from pipelines.tracked_domains import adapt_tracked

    request = Request(
        tuple(strategy or USUAL), Effort(steps=steps, seed=seed), dressed, scored_on, upper_bound
    )  # fmt: skip
    made = adapt_tracked(model, addresses, out, request)
    _show(made)
    if made.bundle is None:
        raise typer.Exit(NOT_BETTER)
    typer.echo(str(made.bundle))


def _pixels_of(scene: str) -> list[str]:
    """The sources a config names, and nothing else of it; another address as it is."""
    if Path(scene).suffix not in (".yaml", ".yml"):
        return [scene]
    import glob

    from pipelines.config import load_config
    from pipelines.labelled import resolve

    found = [str(resolve(item.source)) for item in load_config(Path(scene)).data]
    # Patterns of volumes are still patterns, see `pipelines.config`.
    return [path for one in found for path in (sorted(glob.glob(one)) if glob.has_magic(one) else [one])]  # noqa: PTH207


def _show(made: Adaptation) -> None:
    for name, scores in made.scores.items():
        shown = {key: value for key, value in scores.items() if isinstance(value, int | float)}
        typer.echo(f"{name:<12} " + "  ".join(f"{key} {value:.3f}" for key, value in shown.items()), err=True)
    for name, one in made.verdict.differences.items():
        interval = f"{one.low:+.3f} to {one.high:+.3f} in 95 % of {one.units} places or patients drawn anew"
        typer.echo(f"{name} adapted - source: {one.mean:+.3f}, {interval}", err=True)
    if not made.scores:
        typer.echo("whether it is better nobody has measured; --score-on CONFIG does", err=True)
    elif made.better:
        typer.echo(f"better by {made.verdict.metric}", err=True)
    else:
        why = "too little labelled data to tell" if made.better is None else f"not shown to be by {made.verdict.metric}"
        typer.echo(f"better: {why}; nothing is written, the source model stays", err=True)
