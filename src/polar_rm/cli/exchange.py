"""Verbs for the exchange of models and settings: convert, config."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from polar_rm.cli.options import verb
from polar_rm.cli.output import message, messages, print_text, print_values
from polar_rm.common.paths import no_model
from polar_rm.common.progress import status_line
from polar_rm.errors import PolarError

if TYPE_CHECKING:
    from polar_rm.common.config import Config


@verb("Exchange")
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of a reward model: official, or of xtuner, TRL or OpenRLHF.")],
    target: Annotated[Path, typer.Argument(help="New folder.")],
    to: Annotated[
        Literal["native", "internlm2"], typer.Option(help="`internlm2`: convert a native folder to the official layout.")
    ] = "native",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Precision of the written weights; default: unchanged."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the result of the conversion, then exit.")] = False,
) -> None:
    """Convert a checkpoint exactly, without running its code. Checkpoints that can't be converted exactly are refused.

    Only one shard is in memory at a time: a 7B model needs less than 4 GB.

    Examples:

        polar convert internlm/POLAR-7B models/polar-7b

        polar convert models/polar-7b models/polar-7b-lmdeploy --to internlm2
    """
    if not source.is_dir():
        raise PolarError(no_model(source))
    from polar_rm.conversion import convert as conversion

    if dry_run:
        result = conversion.plan(source, to=to, dtype=dtype)
    else:
        with status_line(messages, "converting"):
            result = conversion.convert(source, target, to=to, dtype=dtype)
    print_values(result.describe())
    if not dry_run:
        message(f"model saved in {target}")


CONFIGS = {
    "sample": "polar_rm.sampling.config:SamplingConfig",
    "corpus": "polar_rm.corpus.config:CorpusConfig",
    "references": "polar_rm.references.config:ReferencesConfig",
    "select": "polar_rm.selection.config:SelectConfig",
    "pretrain": "polar_rm.training.config:TrainConfig",
    "finetune": "polar_rm.training.config:TrainConfig",
    "scaling": "polar_rm.scaling.config:ScalingConfig",
    "rft": "polar_rm.rft.config:RftConfig",
    "serve": "polar_rm.serving.config:ServeConfig",
    "audit": "polar_rm.audit.thresholds:Thresholds",
}
"""Verbs with a config, and the class of the config, which is imported only when needed."""


@verb("Exchange")
def config(
    of: Annotated[str | None, typer.Argument(help=f"One of {', '.join(CONFIGS)}.", metavar="[VERB]")] = None,
    recipe: Annotated[str | None, typer.Option(help="Print this packaged recipe.", metavar="NAME")] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the packaged recipes.")] = False,
) -> None:
    """Explain every key of a verb's config, as YAML with defaults, or print a packaged recipe.

    Verbs also take packaged recipes by name: `polar pretrain recipe:pretrain_small ...`

    Examples:

        polar config pretrain > my.yaml

        polar config --list

        polar config --recipe pretrain_small > my.yaml
    """
    from polar_rm.common.recipes import PREFIX, read_recipe, recipe_names, recipe_summary

    if sum((of is not None, recipe is not None, list_recipes)) != 1:
        raise PolarError(f"expected one of: a verb ({', '.join(CONFIGS)}), --recipe NAME, --list")
    if list_recipes:
        for name in recipe_names():
            print_text(f"{PREFIX}{name}: {recipe_summary(name)}")
    elif recipe is not None:
        print_text(read_recipe(recipe.removeprefix(PREFIX)).rstrip("\n"))
    else:
        from polar_rm.common.config import suggestion
        from polar_rm.common.reference import explain

        if of not in CONFIGS:
            raise PolarError(f"polar {of} takes no config; verbs with one: {', '.join(CONFIGS)}{suggestion(str(of), CONFIGS)}")
        print_text(explain(config_of(of), f"Every key of `polar {of}`, with its default.").rstrip("\n"))


def config_of(name: str) -> type[Config]:
    """The class of a verb's config."""
    module, _, name_of_class = CONFIGS[name].partition(":")
    config_class: type[Config] = getattr(import_module(module), name_of_class)
    return config_class
