"""``polar calibrate``: scores pairs, fits the temperature and the posterior, and writes both into the model's folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polar_rm.calibration.abstention import abstention_curve, certainty
from polar_rm.calibration.data import ScoredPairs, score_pairs, survey
from polar_rm.calibration.laplace import information, out_of_fold_deviations, posterior
from polar_rm.calibration.report import (
    MANY_PAIRS,
    MANY_PROMPTS,
    SCHEMA,
    CalibrationReport,
    ReliabilityReport,
    Rewards,
)
from polar_rm.calibration.temperature import (
    Reliability,
    fit_temperature,
    folds_of,
    out_of_fold_temperatures,
    reliability,
)
from polar_rm.common.files import check_target
from polar_rm.common.identity import model_identity
from polar_rm.common.locks import owned
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation import ComparisonFiles
from polar_rm.evaluation.data import First
from polar_rm.evaluation.pairs import bradley_terry_loss
from polar_rm.records import Comparison, OnBadRow
from polar_rm.rewards.calibration import CARD, Calibration, Distribution
from polar_rm.rewards.scale import Scale
from polar_rm.rewards.uncertainty import UNCERTAINTY, Uncertainty
from polar_rm.scoring.scorer import Scorer


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """scale: the calibration card and the uncertainty for the model's folder. report: the results for people."""

    scale: Scale
    report: CalibrationReport


def calibrate(
    scorer: Scorer,
    comparisons: Iterable[Comparison],
    *,
    model: str = "",
    seed: int = 0,
    progress: Progress = silent,
) -> CalibrationResult:
    """Calibrate a model on comparisons.

    comparisons: a list or ``ComparisonFiles``, not a generator, because they are read twice. model: the name in the report. seed:
    seed of the bootstrap. progress: called with the numbers of comparisons that are done and of all.

    Raises:
        PolarError: the comparisons can't calibrate a model; raised before anything is scored.
        NoTemperature: the rewards determine no temperature. ScoreError: a score is not finite.
    """
    if iter(comparisons) is comparisons:
        raise PolarError("comparisons are read twice: pass a list or ComparisonFiles instead of a generator")
    pairs = score_pairs(scorer, comparisons, total=survey(comparisons).n_comparisons, progress=progress)
    return fit(pairs, model=model, encoder_hash=scorer.model.encoder.hash, seed=seed)


def fit(pairs: ScoredPairs, *, model: str = "", encoder_hash: str = "", seed: int = 0) -> CalibrationResult:
    """Fit temperature and posterior to scored pairs, and measure them. Arguments and errors are those of :func:`calibrate`."""
    differences, prompts = pairs.differences, pairs.prompts
    temperature = fit_temperature(differences)
    folds = folds_of(prompts)
    temperatures = out_of_fold_temperatures(differences, folds)
    all_pairs = np.arange(len(differences))
    head = posterior(information(pairs.features, all_pairs, differences, temperature), pairs.features.head)
    deviations = out_of_fold_deviations(pairs.features, differences, folds, temperature, head.precision)
    before, after = reliability(differences), reliability(differences / temperatures)
    card = Calibration.from_rewards(
        pairs.raw.tolist(),
        anchored=Distribution.from_rewards(pairs.anchored.tolist()) if len(pairs.anchored) > 1 else None,
        temperature=temperature,
        n_pairs=len(differences),
        n_prompts=int(prompts.max()) + 1,
        ece_before=before.error,
        ece_after=after.error,
    )
    curve = abstention_curve(differences, certainty(differences, temperatures, deviations), prompts, seed=seed)
    report: CalibrationReport = {
        "schema": SCHEMA,
        "model": model,
        "encoder_hash": encoder_hash,
        "data": [],
        "limit": None,
        "n_pairs": card.n_pairs,
        "n_prompts": card.n_prompts,
        "accuracy": curve[0]["accuracy"],
        "ci95": curve[0]["ci95"],
        "temperature": temperature,
        "loss_before": bradley_terry_loss(differences),
        "loss_after": bradley_terry_loss(differences / temperatures),
        "before": _bins(before),
        "after": _bins(after),
        "abstention": curve,
        "rewards": {"raw": _short(card), **({"anchored": _short(card.anchored)} if card.anchored else {})},
        "head": {
            "prior_precision": head.precision,
            "determined": head.determined,
            "hidden": len(head.factor),
            "deviation": float(np.median(deviations)),
        },
        "warnings": _warnings(card),
    }
    return CalibrationResult(Scale(card, Uncertainty(head.factor.astype(np.float32), head.precision)), report)


def calibrate_files(
    model_dir: str | Path,
    files: Sequence[str | Path],
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    row_tokens: int = 8192,
    on_bad_row: OnBadRow | None = None,
    outputs: Sequence[str | Path] = (),
    limit: int | None = None,
    progress: Progress = silent,
) -> CalibrationReport:
    """Load a native checkpoint, :func:`calibrate` it on files, and write card and uncertainty into its folder.

    The call locks the folder and writes both files at the end, so an interrupted run changes nothing. limit: use only this many
    first comparisons, for a trial: the report says so, and the model keeps what it has.

    Raises:
        PolarError: the folder, a file or an option is invalid, another process writes the folder, or the model changed during the
            calibration.
        NoTemperature, ScoreError: see :func:`calibrate`.
    """
    from polar_rm.model.native import untrained_warning
    from polar_rm.model.reward_model import RewardModel

    model_dir = Path(model_dir)
    check_target(model_dir / CARD)
    check_target(model_dir / UNCERTAINTY)
    with owned(model_dir, "calibrate"):
        read = ComparisonFiles(files, on_bad_row, outputs)
        comparisons = First(read, limit)
        counts = survey(comparisons)
        progress("calibrate", 0, counts.n_comparisons, "loading")
        identity = model_identity(model_dir)
        scorer = Scorer(RewardModel.from_pretrained(model_dir, dtype=dtype, device=device), row_tokens=row_tokens)
        pairs = score_pairs(scorer, comparisons, total=counts.n_comparisons, progress=progress)
        result = fit(pairs, model=str(model_dir), encoder_hash=scorer.model.encoder.hash, seed=seed)
        if model_identity(model_dir) != identity:
            raise PolarError(f"{model_dir}: the model was changed while it was calibrated; run the command again")
        if limit is None:
            save(result.scale, model_dir)
    report = result.report
    if scorer.model.untrained:
        report["warnings"].append(untrained_warning(model_dir, scorer.model.untrained))
    report["data"], report["limit"] = [dict(file) for file in read.describe()], limit
    if limit is not None:
        report["warnings"].append(f"a trial with at most the first {limit:,} comparisons: the model keeps the scale that it had")
    report["warnings"] += read.warnings()
    return report


def save(scale: Scale, model_dir: str | Path) -> None:
    """Write card and uncertainty into the folder of their model, each atomically.

    If the process dies between the two, the folder has a card and an uncertainty of two calibrations. Both remain valid, because
    both describe this model in units of its raw reward.
    """
    if scale.uncertainty:
        scale.uncertainty.save(model_dir)
    if scale.calibration:
        scale.calibration.save(model_dir)


def _bins(bins: Reliability) -> ReliabilityReport:
    return {
        "confidence": bins.confidence.tolist(),
        "accuracy": bins.accuracy.tolist(),
        "counts": bins.counts.tolist(),
        "error": bins.error,
        "noise": bins.noise,
    }


def _short(rewards: Distribution) -> Rewards:
    quantiles = [rewards.quantiles[percent] for percent in (5, 25, 50, 75, 95)]
    return {"n": rewards.n, "mean": rewards.mean, "std": rewards.std, "quantiles": quantiles}


def _warnings(card: Calibration) -> list[str]:
    lines = []
    if card.n_pairs < MANY_PAIRS or card.n_prompts < MANY_PROMPTS:
        lines.append(f"the scale is uncertain: it was fitted to only {card.n_pairs:,} pairs of {card.n_prompts:,} prompts")
    if card.anchored is None:
        lines.append("no pair has a reference: the card has no anchored rewards")
    return lines
