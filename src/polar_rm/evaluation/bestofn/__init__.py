"""Best of n: what picking by a reward model yields by a gold measure, and where picking harder does harm."""

from polar_rm.evaluation.bestofn.run import BestOfN, best_of_n, best_of_n_files

__all__ = ["BestOfN", "best_of_n", "best_of_n_files"]
