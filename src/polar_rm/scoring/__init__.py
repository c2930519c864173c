"""Scores items: one reward for each item."""

from polar_rm.scoring.files import score_file
from polar_rm.scoring.scorer import Scorer

__all__ = ["Scorer", "score_file"]
