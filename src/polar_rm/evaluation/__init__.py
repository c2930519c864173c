"""Pairwise accuracy of contenders on the same pairs, with confidence intervals and paired differences."""

from polar_rm.evaluation.accuracy import EvaluationResult, evaluate
from polar_rm.evaluation.contenders import ModelOptions, find_contenders
from polar_rm.evaluation.data import ComparisonFiles
from polar_rm.evaluation.run import evaluate_files
from polar_rm.evaluation.suite_run import evaluate_suite

__all__ = [
    "ComparisonFiles",
    "EvaluationResult",
    "ModelOptions",
    "evaluate",
    "evaluate_files",
    "evaluate_suite",
    "find_contenders",
]
