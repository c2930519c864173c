"""Low-rank adapters with PEFT, injected into the backbone in place and merged for export."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from polar_rm.common.extras import needs
from polar_rm.model.reward_model import RewardModel
from polar_rm.training.config import LoraConfig

_ADAPTER = "default"


def adapter_settings(config: LoraConfig, **options: Any) -> Any:
    """PEFT's ``LoraConfig`` from ours. options: further arguments of it.

    Raises:
        PolarError: PEFT is not installed.
    """
    with needs("peft", "lora"):
        import peft
    return peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, **options)


def add_lora(model: RewardModel, config: LoraConfig, seed: int) -> None:
    """Freeze the backbone and add adapters to its linear layers, initialised from ``seed``; the head is trained in full.

    The head never gets an adapter: it would be lost on reload and replaced at random (trl 381, OpenRLHF 1342).
    """
    if model.untrained_tokens:
        warnings.warn(
            f"lora leaves embeddings unchanged, but those of {' and '.join(model.untrained_tokens)} were never trained and keep "
            "random values. Pre-train without lora first, or start from a saved reward model",
            stacklevel=2,
        )
    linear = sorted(
        {name.rsplit(".", 1)[-1] for name, m in model.backbone.base_model.named_modules() if isinstance(m, torch.nn.Linear)}
    )
    settings = adapter_settings(config, target_modules=linear)
    from peft import inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model.backbone.base_model, _ADAPTER)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("score."))


def merge_lora(model: RewardModel, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of the model without adapters, with ``W + scaling * B A`` as its weights, in float32."""
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {name: m for name, m in model.backbone.named_modules() if isinstance(m, LoraLayer)}
    merged = {name: tensor for name, tensor in weights.items() if "lora_" not in name and ".base_layer." not in name}
    for name, layer in layers.items():
        down, up = (weights[f"{name}.lora_{side}.{_ADAPTER}.weight"] for side in "AB")
        merged[f"{name}.weight"] = weights[f"{name}.base_layer.weight"] + layer.scaling[_ADAPTER] * (up @ down)
        if (bias := weights.get(f"{name}.base_layer.bias")) is not None:
            merged[f"{name}.bias"] = bias
    return merged
