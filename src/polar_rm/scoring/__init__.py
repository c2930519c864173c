"""Many items in, one reward per item out."""

from polar_rm.scoring.files import score_file
from polar_rm.scoring.scorer import Scored, Scorer

__all__ = ["Scored", "Scorer", "score_file"]
