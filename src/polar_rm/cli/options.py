"""What the verbs share: the application, options, and the way from arguments to a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from polar_rm.common.paths import check_data, check_model

if TYPE_CHECKING:
    from polar_rm.common.config import Config

C = TypeVar("C", bound="Config")
Verb = TypeVar("Verb", bound=Callable[..., Any])
Panel = Literal["Data", "Training", "Use", "Evaluation", "Exchange"]

VERBS = "sample corpus inspect pretrain finetune rft quickstart score serve evaluate parity convert config".split()
"""In the order in which a user comes to need them; ``polar --help`` lists them and their panels so."""


class _Group(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=VERBS.index)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RENAMED = {"--dtype": "--precision", "--token-budget": "--row-tokens"}


class _Command(TyperCommand):
    """A verb that says what an option is called now, where it is given under the word of other verbs or of earlier versions."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # its type is click's or, of late, typer's own
            given = getattr(error, "option_name", "")
            own = {name for parameter in self.params for name in parameter.opts}
            if type(error).__name__ == "NoSuchOption" and RENAMED.get(given) in own:
                ctx.fail(f"No such option: {given}. Did you mean {RENAMED[given]}?")
            raise


def verb(panel: Panel, name: str | None = None) -> Callable[[Verb], Verb]:
    """Register a function as a verb. panel: under which heading ``polar --help`` lists it."""
    return app.command(name, cls=_Command, rich_help_panel=panel)


def _model_exists(path: Path) -> Path:
    check_model(path)
    return path


def _data_exists(path: Path | list[Path] | None) -> Path | list[Path] | None:
    for each in path if isinstance(path, list) else [path] if path else []:
        check_data(each)
    return path


def writable(path: Path | None) -> Path | None:
    """Refuses, before the work, a file that the result could not be written to."""
    from polar_rm.common.files import check_target

    if path:
        check_target(path)
    return path


DATA: dict[str, Any] = {"callback": _data_exists}
"""Arguments of an option or argument that takes files, folders or patterns which have to be there."""

MODEL: dict[str, Any] = {"callback": _model_exists}
"""Arguments of an option or argument that takes the folder of a model."""

Arguments = Annotated[
    list[str],
    typer.Argument(
        help="YAML files or packaged `recipe:NAME`s, layered left to right, then dotted overrides such as `optim.lr=1e-4`. "
        "`polar config VERB` explains every key.",
        metavar="CONFIG.yaml... [KEY=VALUE...]",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan, then exit.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file.", callback=writable)]
ModelDir = Annotated[Path, typer.Option("--model", help="Folder of a reward model saved by polar.", **MODEL)]
Precision = Annotated[
    Literal["auto", "bf16", "fp32", "fp16"],
    typer.Option(help="Of the backbone's products: `auto` takes bf16 where the hardware has it, which is faster."),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="`auto` takes CUDA where there is one.")]
_BAD_ROWS = "`error` stops at a bad row; `skip` writes it to a side file, counts it and goes on."
BadRows = Annotated[Literal["error", "skip"], typer.Option("--on-bad-row", help=_BAD_ROWS)]
BadRowsOf = Annotated[
    Literal["error", "skip"] | None, typer.Option("--on-bad-row", help=f"{_BAD_ROWS} By default as the config's `on_bad_row`.")
]
RowTokens = Annotated[
    int, typer.Option("--row-tokens", help="Most tokens of one packed row; decides memory, not results.", min=1)
]
StripPrompt = Annotated[
    bool,
    typer.Option(
        "--strip-prompt", help="Drop the prompt's messages where an answer begins with them; such rows are refused otherwise."
    ),
]


def load(kind: type[C], arguments: list[str], on_bad_row: str | None = None) -> C:
    """The config that a verb's arguments mean. on_bad_row: of the flag, which stands above all files and overrides."""
    from polar_rm.common.config import load_config

    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).is_file()]
    files = [argument for argument in arguments if argument not in overrides]
    return load_config(kind, files, [*overrides, *([f"on_bad_row={on_bad_row}"] if on_bad_row else [])])
