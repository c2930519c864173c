"""The learning rate schedule, and the paper's rules for pre-training."""

from __future__ import annotations

import math

from polar_rm.training.config import OptimConfig

# The paper says "in millions", but its published numbers (batch 1940 and 4343) need binary units (App. F.1).
_MEBI, _GIBI = 2.0**20, 2.0**30


def learning_rate(step: int, total_steps: int, peak: float, optim: OptimConfig) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then cosine decay to ``final_lr`` times the peak."""
    warmup = round(optim.warmup * total_steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * (optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def paper_learning_rate(parameters: float, base_tokens: float, rm_tokens: float) -> float:
    """Peak learning rate for pre-training: ``0.0002306 N^0.01125 Dp^-0.66587 Drm^0.33916`` (paper, App. F.1).

    The rule was fitted on 100M to 924M parameters; outside this range it is an extrapolation.
    """
    n, dp, drm = parameters / _MEBI, base_tokens / _GIBI, rm_tokens / _GIBI
    rate: float = 0.0002306 * n**0.01125 * dp**-0.66587 * drm**0.33916
    return rate


def paper_batch_size(parameters: float, rm_tokens: float) -> int:
    """Triples per step for pre-training: ``31.9032 N^0.06944 Drm^0.52997`` (paper, App. F.1), at least 1."""
    batch: float = 31.9032 * (parameters / _MEBI) ** 0.06944 * (rm_tokens / _GIBI) ** 0.52997
    return max(1, round(batch))
