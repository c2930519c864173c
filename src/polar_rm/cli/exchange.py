"""Verbs for the exchange of models and settings: convert, config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from polar_rm.cli.configs import CONFIGS, config_of
from polar_rm.cli.options import verb
from polar_rm.cli.output import message, messages, print_text, print_values
from polar_rm.common.files import check_new_folder
from polar_rm.common.paths import check_model
from polar_rm.common.progress import status_line
from polar_rm.errors import PolarError


@verb("Exchange")
def convert(
    source: Annotated[
        Path, typer.Argument(help="A reward model, official or of xtuner, TRL or OpenRLHF: a folder or an id of the Hub.")
    ],
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
    if not dry_run:
        check_new_folder(target)
    source = check_model(source)
    from polar_rm.conversion import convert as conversion

    if dry_run:
        result = conversion.plan(source, to=to, dtype=dtype)
    else:
        with status_line(messages, "converting"):
            result = conversion.convert(source, target, to=to, dtype=dtype)
    print_values(result.describe())
    if not dry_run:
        message(f"model saved in {target}")


@verb("Exchange")
def download(
    name: Annotated[str, typer.Argument(help="A model `owner/name[@revision]`, or data `hf:datasets/owner/name`, `s3://...`.")],
    to: Annotated[Path | None, typer.Option(help="Copy it into this new folder.")] = None,
) -> None:
    """Download a model or data once and print the local path. Other verbs download what they name, too.

    Only safetensors, tokenizers, JSON and rows are downloaded, and no code. docs/models.md has the forms of names.

    Examples:

        polar download internlm/POLAR-7B

        polar download internlm/POLAR-7B@main --to models/polar-7b
    """
    from shutil import copytree

    from polar_rm.common.files import atomic_directory
    from polar_rm.common.paths import check_data
    from polar_rm.common.sources import is_remote, model_folder

    if to is not None:
        check_new_folder(to)
    is_data = "://" in name or name.startswith(("hf:datasets/", "hf:/datasets/"))
    with status_line(messages, f"looking for {name}"):
        path = check_data(name) if is_data and is_remote(name) else model_folder(name)
    if to is not None:
        if not path.is_dir():
            raise PolarError(f"{name}: it is one file or a pattern, not a folder: {path}")
        with atomic_directory(to) as partial:
            copytree(path, partial, dirs_exist_ok=True)  # the cache has links, the copy has files
        path = to
    print_text(str(path))


@verb("Exchange")
def publish(
    model: Annotated[Path, typer.Argument(help="Folder of a reward model saved by polar.")],
    repo: Annotated[
        str | None, typer.Argument(help="Repository of the Hub, `owner/name`; without it only the card is written.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="A report of `polar evaluate --json` with this model; may be repeated.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, an id of the Hub such as `apache-2.0`.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and the files that would be uploaded.")] = False,
) -> None:
    """Write a model's card (README.md) from its config, run, calibration and evaluations, and upload the model to the Hub.

    Only the files of a saved model are uploaded, in one commit, with the token of `hf auth login` or HF_TOKEN.

    Examples:

        polar publish runs/ft/model --dry-run

        polar evaluate held_out.jsonl --model runs/ft/model --json accuracy.json

        polar publish runs/ft/model me/polar-small --evaluation accuracy.json --licence apache-2.0 --private
    """
    from polar_rm.common.files import write_file
    from polar_rm.common.sources import check_own
    from polar_rm.encoding.encoder import Encoder
    from polar_rm.publishing import files_of, model_card, upload, write_card
    from polar_rm.publishing.evaluations import eval_results, read_evaluation
    from polar_rm.publishing.upload import check_name

    folder = check_model(model)
    check_own(folder)
    if repo is not None:
        check_name(repo)
    encoder_hash = Encoder.from_pretrained(folder).hash
    evaluations = [read_evaluation(path, folder, encoder_hash) for path in evaluation or []]
    card = model_card(folder, repo or folder.resolve().name, evaluations=evaluations, licence=licence)
    if dry_run:
        print_text(card)
        print_text("\n".join(sorted({"README.md", *files_of(folder)})))
        return
    path = write_card(folder, card)
    if results := eval_results(evaluations):
        write_file(folder / ".eval_results/polar.yaml", results)
    message(f"card in {path}")
    if repo is not None:
        with status_line(messages, f"uploading to {repo}"):
            address = upload(folder, repo, private=private)
        print_text(address)


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
