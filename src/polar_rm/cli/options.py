"""Shared parts of the verbs: the application, options, and the conversion of arguments to a config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from polar_rm.cli.unknown import advice
from polar_rm.common.devices import DEVICE_HELP, DeviceName
from polar_rm.common.limits import MAX_ROW_TOKENS
from polar_rm.common.paths import check_data
from polar_rm.common.problems import Problems
from polar_rm.common.sources import HUB, PACKAGE, is_model_id, model_folder
from polar_rm.conversion.official import native_folder

if TYPE_CHECKING:
    from polar_rm.common.config import Config

C = TypeVar("C", bound="Config")
Verb = TypeVar("Verb", bound=Callable[..., Any])
Panel = Literal["Data", "Training", "Use", "Evaluation", "Exchange"]

VERBS = (
    "sample corpus encode references select inspect pretrain finetune scaling rft quickstart score serve "
    "evaluate bestofn audit calibrate quantize parity convert download publish config"
).split()
"""The verbs in the order of ``polar --help``, which is the order in which a user needs them."""


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


class _Command(TyperCommand):
    """A verb that refuses an option given twice, of which the last would win silently, and that advises about unknown ones."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        # Typer from 0.29 on puts brackets and dots around a metavar, which has its own: [[CONFIG.yaml... KEY=VALUE...]]...
        arguments = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "argument"]
        return [*([self.options_metavar] if self.options_metavar else []), *map(_in_usage, arguments)]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            _, _, given = self.make_parser(ctx).parse_args(list(args))
            for parameter, count in Counter(given).items():
                # Flags without an opposite may be repeated: that changes nothing.
                takes_one = isinstance(parameter, TyperOption) and not parameter.multiple
                is_plain_flag = getattr(parameter, "is_flag", False) and not parameter.secondary_opts
                if count > 1 and takes_one and not is_plain_flag:
                    ctx.fail(f"{max(parameter.opts, key=len)} is given {count} times; it takes one value.")
            return super().parse_args(ctx, args)
        except Exception as error:  # its class is click's or, in recent versions, typer's
            option = str(getattr(error, "option_name", ""))
            options = {name for parameter in self.params for name in parameter.opts}
            if type(error).__name__ == "NoSuchOption" and (text := advice(_verb_of(ctx), option, options)):
                ctx.fail(f"No such option: {option}. {text}")
            raise


def _verb_of(ctx: Any) -> str:
    """The verb's name; for a step such as ``polar scaling run`` that of the whole."""
    parent = ctx.parent.info_name if ctx.parent else None
    return str(parent if parent in VERBS else ctx.info_name)


def _in_usage(argument: Any) -> str:
    if argument.metavar:
        return str(argument.metavar)
    name = argument.name.upper()
    return f"{name if argument.required else f'[{name}]'}{'...' if argument.nargs != 1 else ''}"


def verb(panel: Panel, name: str | None = None, *, group: typer.Typer | None = None) -> Callable[[Verb], Verb]:
    """Register a function as a verb.

    panel: its heading in ``polar --help``. group: of :func:`verb_group`, for ``polar VERB STEP``.
    """
    if group is not None:
        return group.command(name, cls=_Command)
    return app.command(name, cls=_Command, rich_help_panel=panel)


def verb_group(name: str, panel: Panel, help_text: str) -> typer.Typer:
    """Register a verb that consists of steps, ``polar NAME STEP``. panel: its heading in ``polar --help``."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.add_typer(group, name=name, help=help_text, rich_help_panel=panel)
    return group


def _model_exists(path: Path) -> Path:
    return native_folder(path)


def _data_exists(path: Path | list[Path] | None) -> Path | list[Path] | None:
    return [check_data(each) for each in path] if isinstance(path, list) else check_data(path) if path else path


def writable(path: Path | None) -> Path | None:
    """Refuse a file to which the result can't be written, before the work begins."""
    from polar_rm.common.files import check_target

    if path:
        check_target(path)
    return path


DATA: dict[str, Any] = {"callback": _data_exists}
"""Settings of a parameter for existing data; the function gets its local path."""

MODEL: dict[str, Any] = {"callback": _model_exists}
"""Settings of a parameter for a reward model; the function gets its local folder."""

Arguments = Annotated[
    list[str],
    typer.Argument(
        help="YAML files or packaged recipes (`recipe:NAME`), merged left to right, then overrides such as `optim.lr=1e-4`. "
        "`polar config VERB` explains every key.",
        metavar="CONFIG.yaml... [KEY=VALUE...]",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan, then exit.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result as JSON to this file.", callback=writable)]
ModelDir = Annotated[
    Path,
    typer.Option(
        "--model", help="A reward model: a folder saved by polar, an official one, or an id of the Hub (docs/models.md).", **MODEL
    ),
]
Precision = Annotated[
    Literal["auto", "bf16", "fp32", "fp16", "int8"],
    typer.Option(
        help="Precision of the backbone; `auto` takes bf16 where the hardware has it, which is faster. "
        "`int8` is for CPUs and needs `polar quantize` first."
    ),
]
Device = Annotated[DeviceName, typer.Option(help=DEVICE_HELP)]
_BAD_ROWS = "`error`: stop at a bad row. `skip`: count it, write it to a side file and continue."
BadRows = Annotated[Literal["error", "skip"], typer.Option("--on-bad-row", help=_BAD_ROWS)]
BadRowsOf = Annotated[
    Literal["error", "skip"] | None, typer.Option("--on-bad-row", help=f"{_BAD_ROWS} Default: the config's `on_bad_row`.")
]
RowTokens = Annotated[
    int,
    typer.Option(
        "--row-tokens",
        help="Maximum number of tokens of a packed row; affects memory, not results.",
        min=1,
        max=MAX_ROW_TOKENS,
    ),
]
StripPrompt = Annotated[
    bool,
    typer.Option(
        "--strip-prompt", help="Remove the prompt's messages from answers that begin with them; such rows are refused otherwise."
    ),
]
References = Annotated[
    Path | None, typer.Option(help="Add references from rows {id, reference} or {prompt, reference} of this file.", **DATA)
]
Combined = Annotated[
    Literal["mean", "best"],
    typer.Option(
        "--combine",
        help="For rows with several `references`: the `mean` of the raw rewards, or the `best` anchored reward, whose 0 is the "
        "reference itself.",
    ),
]
TableFormat = Annotated[
    str | None,
    typer.Option(
        help="Print the tables as `md`, `latex` or `csv`, or write them to a .md, .tex or .csv file.", metavar="FORMAT|FILE"
    ),
]
KeyEnv = Annotated[
    str | None, typer.Option(help="NAME of the environment variable with the key of servers among the contenders.")
]


def _local(name: str | Path) -> str | Path:
    # The name of a package stays: the folder of an environment says less in the records of a run.
    return name if str(name).startswith(PACKAGE) else model_folder(name)


def _tokenizer(name: str | Path) -> str | Path:
    return name if str(name).startswith(PACKAGE) else model_folder(name, weights=False)


def _reward(name: str | Path) -> str | Path:
    from polar_rm.common.http import is_address

    return name if is_address(str(name)) and not Path(name).is_dir() else native_folder(name)


def load(kind: type[C], arguments: list[str], on_bad_row: str | None = None, problems: Problems | None = None) -> C:
    """The config for a verb's arguments, with local paths for the models and data that it names.

    on_bad_row: of the option, which takes precedence over files and overrides. problems: of the caller, who looks for more and
    raises all; without it they are raised here.

    Raises:
        PolarError: all that is wrong with the keys; and then all names of models and data that mean nothing.
    """
    from polar_rm.common.config import load_config, with_local_sources

    found = Problems() if problems is None else problems
    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).is_file()]
    files = [argument for argument in arguments if argument not in overrides]
    config = load_config(kind, files, [*overrides, *([f"on_bad_row={on_bad_row}"] if on_bad_row else [])])

    def noting(find: Callable[[str | Path], str | Path], downloads: bool = True) -> Callable[[str | Path], str | Path]:
        def local(name: str | Path) -> str | Path:
            if found and downloads and is_model_id(str(name).removeprefix(HUB)):
                return name  # nothing is downloaded for a command that can't run
            with found.noted():
                return find(name)
            return name

        return local

    config = with_local_sources(config, {"data": noting(check_data, downloads=False)})  # before a model is downloaded
    kinds = {"model": _local, "tokenizer": _tokenizer, "reward": _reward}
    config = with_local_sources(config, {name: noting(find) for name, find in kinds.items()})
    if problems is None:
        found.check()
    return config
