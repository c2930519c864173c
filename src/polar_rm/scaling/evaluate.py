"""The held-out loss of a trained model, comparison by comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.evaluation.data import ComparisonFiles, First
from polar_rm.evaluation.pairs import bradley_terry_loss, outcomes
from polar_rm.evaluation.references import apply_reference_protocol, prompt_key
from polar_rm.model.devices import claim_device, dtype_name
from polar_rm.model.reward_model import RewardModel
from polar_rm.records import OnBadRow, side_file
from polar_rm.scaling.config import ScalingConfig
from polar_rm.scaling.results import Losses
from polar_rm.scaling.settings import split_path
from polar_rm.scoring.scorer import Scorer
from polar_rm.training.config import TrainConfig


def evaluate_splits(config: ScalingConfig, training: TrainConfig, progress: Progress = silent) -> dict[str, Losses]:
    """The losses of a finished run's model on all ``eval_splits``, in the precision of its training.

    Raises:
        ScoreError: a score is not finite.
        PolarError: a split can't be read, or is empty.
    """
    device = claim_device(training.device)
    dtype = dtype_name(training.precision, device)
    model = RewardModel.from_pretrained(training.output / "model", dtype=dtype, device=device)
    scorer = Scorer(model, row_tokens=training.row_tokens)
    return {split: _evaluate(config, training, scorer, split, progress) for split in config.eval_splits}


def _evaluate(config: ScalingConfig, training: TrainConfig, scorer: Scorer, split: str, progress: Progress) -> Losses:
    path = split_path(config, split)
    files = First(ComparisonFiles([path], bad_rows(training, split), [training.output]), config.eval_limit)
    comparisons = list(apply_reference_protocol(files, training.data.reference))
    prompts, pairs, losses, correct = [], [], [], []
    for number, scores in enumerate(scorer.score_comparisons(comparisons)):
        progress(f"evaluating {split}", number + 1, len(comparisons))
        ordered = comparisons[number].pairs()
        differences = np.array([scores[better] - scores[worse] for better, worse in ordered])
        prompts.append(prompt_key(comparisons[number]))
        pairs.append(len(ordered))
        losses.append(bradley_terry_loss(differences))
        correct.append(float(outcomes(differences).sum()))
    if not losses:
        raise PolarError(f"{path}: no comparisons")
    integers = np.arange(len(losses)), np.array(pairs, np.int64)
    return Losses(np.array(prompts, dtype=object), *integers, np.array(losses), np.array(correct))


def bad_rows(training: TrainConfig, name: str) -> OnBadRow:
    """The treatment of bad rows of a split, as the training has it. name: of the side file in the run's folder."""
    return OnBadRow(training.on_bad_row, side_file(Path(training.output) / name), strip_prompt=training.data.strip_prompt)
