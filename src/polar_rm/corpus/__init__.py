"""Building comparisons from trajectories: contrastive ones for pre-training, ranked ones for fine-tuning, and splits of both.

Plain texts give comparisons, too: a true continuation and those of other texts.

``polar corpus`` runs :func:`polar_rm.corpus.build.build` on files of any size; the functions here take trajectories in memory.
Nothing in this package imports torch.
"""

from polar_rm.corpus.pairing import build_comparisons, build_ranked
from polar_rm.records import is_held_out

__all__ = ["build_comparisons", "build_ranked", "is_held_out"]
