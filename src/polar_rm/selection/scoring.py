"""Scores of inputs that hold none, by a reward model: files as ``polar score`` writes them, which can be continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from polar_rm.common.checksums import check_files, describe_files, read_sealed, write_sealed
from polar_rm.common.files import sha256
from polar_rm.common.progress import Progress
from polar_rm.errors import Damaged
from polar_rm.records import OnBadRow, count_rows
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.transforms import check_transform
from polar_rm.selection.config import SelectConfig

if TYPE_CHECKING:
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.scoring.remote import RemoteModel


def check_model_scale(config: SelectConfig) -> Scale:
    """The scale of the model's rewards.

    Raises:
        PolarError: the transform needs a calibration card, but the model has none, or one of another model.
    """
    scale = Scale() if config.transform == "raw" or config.model is None else Scale.load(config.model)
    check_transform(config.transform, scale.calibration)
    return scale


def score_inputs(config: SelectConfig, inputs: tuple[Path, ...], hashes: list[str], progress: Progress) -> list[Path]:
    """Score all input files; returns a file of scores for each. Finished files are kept, an unfinished one is continued.

    The files are in ``OUTPUT/_scores``, from where another run can take them; readers of folders pass this name over. hashes:
    SHA-256 of each input.

    Raises:
        PolarError: as in :func:`polar_rm.scoring.files.score_file`.
    """
    scale = check_model_scale(config)
    model: RewardModel | RemoteModel | None = None
    targets = []
    work = config.output / "_scores"
    work.mkdir(exist_ok=True)
    folder_hash = sha256(str(config.model))
    for number, (source, digest) in enumerate(zip(inputs, hashes, strict=True)):
        target = work / f"scores-{number:05d}.jsonl"
        facts = work / f"scores-{number:05d}.json"
        settings = {"transform": config.transform, "precision": config.precision, "strip_prompt": config.strip_prompt}
        identity = {"model": folder_hash, "input": digest, **settings}
        if not _is_done(target, facts, identity):
            target.unlink(missing_ok=True)
            model = model or _load(config)
            _score(config, model, scale, (source, target), identity, progress)
            write_sealed(facts, {"identity": identity, "files": describe_files(work, [target.name])})
        targets.append(target)
    return targets


def _is_done(target: Path, facts: Path, identity: dict[str, Any]) -> bool:
    try:
        saved = read_sealed(facts)
        check_files(target.parent, saved["files"], full=True)
    except Damaged:  # missing, or not what was written
        return False
    return bool(saved["identity"] == identity)


def _load(config: SelectConfig) -> RewardModel | RemoteModel:
    from polar_rm.model.devices import claim_device, dtype_name  # torch takes long to load
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.scoring.remote import RemoteModel

    if config.engine == "ray":
        return RemoteModel.of(str(config.model), precision=config.precision, device=config.device, actors=config.ray)
    claimed = claim_device(config.device)
    return RewardModel.from_pretrained(str(config.model), dtype=dtype_name(config.precision, claimed), device=claimed)


def _score(
    config: SelectConfig,
    model: RewardModel | RemoteModel,
    scale: Scale,
    files: tuple[Path, Path],
    identity: dict[str, Any],
    progress: Progress,
) -> None:
    from polar_rm.scoring.files import score_file

    source, target = files
    bad = OnBadRow(config.on_bad_row, target.with_suffix(".rejected"), strip_prompt=config.strip_prompt)
    total = count_rows(source)
    options: dict[str, Any] = {"transform": config.transform, "scale": scale, "row_tokens": config.row_tokens}
    for rows in score_file(model, source, target, identity=identity, on_bad_row=bad, **options):
        progress(f"scoring {source.name}", rows, max(total, rows) if total else None)
