"""Pairwise accuracy of reward models, with intervals, next to baselines on the same pairs."""

from polar_rm.evaluation.accuracy import EvaluationResult, evaluate
from polar_rm.evaluation.run import ComparisonFiles, evaluate_files

__all__ = ["ComparisonFiles", "EvaluationResult", "evaluate", "evaluate_files"]
