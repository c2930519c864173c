"""The verb score, for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from polar_rm.cli.options import DATA, BadRows, Combined, Device, ModelDir, Precision, RowTokens, StripPrompt, verb
from polar_rm.cli.output import message, messages, report_bad
from polar_rm.common.limits import MAX_ACTORS
from polar_rm.common.progress import show_progress, status_line
from polar_rm.errors import PolarError
from polar_rm.rewards.transforms import ItemTransform

if TYPE_CHECKING:
    from polar_rm.common.actors import RayActors
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.records import OnBadRow
    from polar_rm.rewards.combining import Combine
    from polar_rm.rewards.scale import Scale
    from polar_rm.scoring.remote import RemoteModel

_Source = Annotated[
    Path,
    typer.Option(
        "--input", help="Items {prompt, reference or references, output[, wrapper]}: JSON, CSV, Parquet, Arrow.", **DATA
    ),
]
_Target = Annotated[
    Path, typer.Option("--output", help="JSONL of {row, reward, n_tokens, truncated, notes, metadata}, or a folder of them.")
]
_Transform = Annotated[
    ItemTransform,
    typer.Option(
        help="Rows also get its `score`. `anchored`: 0 is the reference itself. `probability`: P(output over the reference). "
        "`percentile` and `probability` need `polar calibrate`."
    ),
]


_EachTurn = Annotated[
    bool,
    typer.Option(
        "--each-turn", help="Rows also get `turns`: the reward at the end of every message of the assistant in the output."
    ),
]


_Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="`local`: this machine. `ray`: actors of a Ray cluster (`docs/scale.md`).")
]
_Actors = Annotated[int, typer.Option(help="With `--engine ray`: number of actors; each loads the model.", min=1, max=MAX_ACTORS)]
_Cpus = Annotated[float, typer.Option(help="CPU cores of an actor.", min=0.001)]
_Gpus = Annotated[float, typer.Option(help="GPUs of an actor; `--device auto` is CUDA if there are any.", min=0)]


@verb("Use")
def score(
    model: ModelDir,
    source: _Source,
    target: _Target,
    transform: _Transform = "raw",
    combine: Combined = "mean",
    each_turn: _EachTurn = False,
    precision: Precision = "fp32",
    device: Device = "auto",
    row_tokens: RowTokens = 8192,
    on_bad_row: BadRows = "error",
    strip_prompt: StripPrompt = False,
    engine: _Engine = "local",
    actors: _Actors = 1,
    actor_cpus: _Cpus = 1.0,
    actor_gpus: _Gpus = 0.0,
) -> None:
    """Score a file of items: one raw reward per item, in the order of the input.

    Of a folder or a pattern each file gets a file of scores in the folder `--output`. Adjacent items with the same prompt and
    reference share their prefix. After an interruption the same command continues.

    Examples:

        polar score --model package:demo --input items.jsonl --output scores.jsonl

        polar score --model runs/rm/model --input items.jsonl --output scores.jsonl --transform probability

        polar score --model runs/rm/model --input items/ --output scores/

        polar score --model runs/rm/model --input talks.jsonl --output turns.jsonl --each-turn

        polar score --model runs/rm/model --input items.jsonl --output scores.jsonl --engine ray --actors 8 --actor-gpus 1
    """
    from polar_rm.common.files import sha256
    from polar_rm.common.locks import owned
    from polar_rm.records import OnBadRow, side_file

    resources = _resources(engine, actors, actor_cpus, actor_gpus)
    targets = _targets(source, target)
    chosen: dict[str, Any] = {"transform": transform, "combine": combine, "each_turn": each_turn}
    scale = _scale(model, **chosen)
    with owned(target, "score"):
        with status_line(messages, f"loading {model}"):
            reward_model, dtype = _load(model, precision, device, resources)
        identity = {
            "model": sha256(model),
            "encoder_hash": reward_model.encoder.hash,
            "dtype": dtype,
            "strip_prompt": strip_prompt,
            **{name: value for name, value in chosen.items() if value not in ("raw", "mean", False)},
        }
        bad = {file: OnBadRow(on_bad_row, side_file(scores), strip_prompt=strip_prompt) for file, scores in targets.items()}
        todo = _unfinished(targets, target, identity)
        rows = _score(reward_model, todo, bad, scale=scale, row_tokens=row_tokens, **chosen)
    finished = f" ({len(targets) - len(todo):,} of {len(targets):,} files were finished)" if len(todo) < len(targets) else ""
    message(f"{rows:,} items scored into {target}{finished}")
    for each in bad.values():
        report_bad(each)


def _scale(model: Path, *, transform: ItemTransform, combine: Combine, each_turn: bool) -> Scale:
    """The scale of the model's rewards, which is read where the rows need it."""
    from polar_rm.rewards.scale import Scale
    from polar_rm.scoring.lines import check_rows

    scale = Scale() if transform in ("raw", "tanh") and combine == "mean" else Scale.load(model)
    check_rows(scale, transform=transform, combine=combine, each_turn=each_turn)
    return scale


def _targets(source: Path, target: Path) -> dict[Path, Path]:
    """The input files, each with its file of scores: ``target`` itself, or a file in the folder ``target``."""
    from polar_rm.records import find_files
    from polar_rm.scoring.files import check_paths, targets_of

    files = [source] if source.is_file() else find_files(source, [target])
    is_one = len(files) == 1 and (source.is_file() or target.suffix == ".jsonl")
    targets = {files[0]: target} if is_one else targets_of(files, target)
    for each in targets.items():
        check_paths(*each)
    return targets


def _unfinished(targets: dict[Path, Path], target: Path, identity: dict[str, Any]) -> list[tuple[Path, Path, dict[str, Any]]]:
    """The files that have no scores yet, with their targets and identities. A folder of scores is claimed for its inputs."""
    from polar_rm.common.files import claim_folder, sha256

    hashes = {file: sha256(file) for file in targets}
    is_folder = target not in targets.values()
    if is_folder:
        inputs = {str(scores.relative_to(target)): hashes[file] for file, scores in targets.items()}
        claim_folder(target, {**identity, "inputs": inputs}, "scores")
    missing = {file: scores for file, scores in targets.items() if not (is_folder and scores.exists())}
    return [(file, scores, {**identity, "input": hashes[file]}) for file, scores in missing.items()]


def _score(
    model: RewardModel | RemoteModel,
    todo: Sequence[tuple[Path, Path, dict[str, Any]]],
    bad: Mapping[Path, OnBadRow],
    **options: Any,
) -> int:
    """Score files and show how far it is; returns the number of rows. todo: files, their targets and identities."""
    from polar_rm.records import count_rows
    from polar_rm.scoring.files import score_file

    totals = [count_rows(source) for source, _, _ in todo]
    total = None if None in totals else sum(filter(None, totals))
    before = 0
    with show_progress(messages, unit="items") as progress:
        for number, (source, target, identity) in enumerate(todo, 1):
            rows, status = 0, f"{source.name}, {number} of {len(todo)}" if len(todo) > 1 else ""
            for rows in score_file(model, source, target, identity=identity, on_bad_row=bad[source], **options):
                progress("scoring", before + rows, max(total, before + rows) if total else None, status)
            before += rows
    return before


def _resources(engine: str, actors: int, cpus: float, gpus: float) -> RayActors | None:
    """The actors of a Ray cluster; None for this machine."""
    from polar_rm.common.actors import RayActors

    resources = RayActors(actors=actors, cpus=cpus, gpus=gpus)
    if engine == "local" and resources != RayActors():
        raise PolarError("--actors, --actor-cpus and --actor-gpus need --engine ray")
    return resources if engine == "ray" else None


def _load(folder: Path, precision: str, device: str, actors: RayActors | None) -> tuple[RewardModel | RemoteModel, str]:
    """The model, and the type that it computes in."""
    from polar_rm.model.devices import claim_device, dtype_name
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.scoring.remote import RemoteModel

    if actors:
        remote = RemoteModel.of(folder, precision=precision, device=device, actors=actors)
        return remote, remote.dtype
    claimed = claim_device(device)
    dtype = dtype_name(precision, claimed)
    return RewardModel.from_pretrained(folder, dtype=dtype, device=claimed), dtype
