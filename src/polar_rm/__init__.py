"""Reward models pre-trained as policy discriminators (POLAR, arXiv 2507.05197).

    import polar_rm

    scorer = polar_rm.load("package:demo")
    scorer.score_outputs(prompt="2 + 2?", reference="4", outputs=["4", "5"])

Names are imported on first use, so that ``polar_rm.records``, ``polar_rm.encoding`` and the clients work without torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polar_rm.client.blocking import RewardClient
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.records import Comparison, ScoreItem, Trajectory
    from polar_rm.scoring.scorer import Scorer

__all__ = ["Comparison", "RewardClient", "RewardModel", "ScoreItem", "Scorer", "Trajectory", "__version__", "load"]

_MODULES = {
    "Comparison": "polar_rm.records",
    "RewardClient": "polar_rm.client.blocking",
    "RewardModel": "polar_rm.model.reward_model",
    "ScoreItem": "polar_rm.records",
    "Scorer": "polar_rm.scoring.scorer",
    "Trajectory": "polar_rm.records",
}


def load(directory: str | Path, *, dtype: str = "float32", device: str = "auto") -> Scorer:
    """Load a saved reward model for scoring.

    directory: a folder, ``package:demo``, or an id of the Hub such as ``owner/name@revision``; an official POLAR checkpoint is
    converted first.
    dtype: of the backbone: float32, bfloat16, float16 or, after ``polar quantize``, int8; scores are float32. device: cpu, cuda,
    mps, or auto, which takes a GPU where there is one.

    Raises:
        PolarError: the folder does not exist, holds no reward model, or was changed since it was saved.
    """
    from polar_rm.conversion.official import native_folder
    from polar_rm.model.devices import pick_device
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.rewards.scale import Scale
    from polar_rm.scoring.scorer import Scorer

    directory = native_folder(directory)
    model = RewardModel.from_pretrained(directory, dtype=dtype, device=pick_device(device))
    return Scorer(model, scale=lambda: Scale.load(directory))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("polar-rm")
        except PackageNotFoundError:  # a source tree without installation
            return "0+unknown"
    if name not in _MODULES:
        raise AttributeError(f"module 'polar_rm' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
