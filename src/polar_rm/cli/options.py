"""What the verbs share: options, consoles, loading a config, printing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer
from rich.console import Console

if TYPE_CHECKING:
    from polar_rm.common.config import Config
    from polar_rm.records import OnBadRow


C = TypeVar("C", bound="Config")
app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Reward models pre-trained as policy discriminators (POLAR, arXiv 2507.05197).",
)
console = Console()
messages = Console(stderr=True, soft_wrap=True)
Arguments = Annotated[
    list[str],
    typer.Argument(
        help="YAML files, layered left to right, then dotted overrides such as `optim.lr=1e-4`.",
        metavar="CONFIG.yaml... [KEY=VALUE...]",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan, then exit.")]


def writable(path: Path | None) -> Path | None:
    """Told before the work whose result the file takes."""
    from polar_rm.common.files import check_target

    if path:
        check_target(path)
    return path


JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file.", callback=writable)]
ModelDir = Annotated[Path, typer.Option("--model", help="Folder of a reward model saved by polar.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option(help="Compute type of the backbone; on a GPU bfloat16 is faster.")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes CUDA where there is one.")]
BadRows = Annotated[
    Literal["error", "skip"],
    typer.Option("--on-bad-row", help="`error` stops at a bad row; `skip` writes it to a side file, counts it and goes on."),
]
Budget = Annotated[int, typer.Option("--token-budget", help="Most tokens of one packed row; decides memory, not results.", min=1)]


def load(kind: type[C], arguments: list[str]) -> C:
    from polar_rm.common.config import load_config

    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).is_file()]
    return load_config(kind, [Path(argument) for argument in arguments if argument not in overrides], overrides)


def print_text(text: str) -> None:
    """As it is: paths and texts are no markup and keep their lines."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_values(values: Iterable[tuple[str, str]]) -> None:
    for name, value in values:
        print_text(f"{name:>18}: {value}")


def report_bad(bad: OnBadRow) -> None:
    if bad.count:
        messages.print(f"{bad.count:,} bad rows were skipped, see {bad.side_file}")
