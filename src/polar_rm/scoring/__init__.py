"""Many items in, one reward per item out."""

from polar_rm.scoring.files import score_file
from polar_rm.scoring.scorer import Scorer

__all__ = ["Scorer", "score_file"]
