"""What a run is made of before its first step: model and plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from polar_rm.encoding.encoder import Encoder
from polar_rm.errors import ConfigError
from polar_rm.model.reward_model import RewardModel
from polar_rm.training.config import EncoderConfig, TrainConfig
from polar_rm.training.parallel import World


def build_model(config: TrainConfig, where: World) -> RewardModel:
    """The model that a run starts from, in float32 master precision."""
    source = config.model
    implementation = None if config.attention == "auto" else config.attention
    options: dict[str, Any] = {"device": str(where.device), "implementation": implementation}
    if source.resume_from:
        model = RewardModel.from_pretrained(source.resume_from, **options)
        if source.encoder:
            model.encoder = with_lengths(model.encoder, source.encoder, source.resume_from)
        return model
    settings = source.encoder.settings() if source.encoder else None
    options |= {"settings": settings, "gguf_file": source.gguf_file, "seed": config.seed}
    if source.init:
        return RewardModel.from_causal_lm(source.init, n_layers=source.n_layers, **options)
    assert source.preset is not None  # checked by the config
    assert source.tokenizer is not None
    return RewardModel.from_preset(source.preset, source.tokenizer, **options)


def with_lengths(encoder: Encoder, wanted: EncoderConfig, source: Path) -> Encoder:
    """The same encoder with other limits; the template must stay what the model was trained with."""
    settings = replace(encoder.settings, **wanted.model_dump(exclude_unset=True))
    if settings.template != encoder.settings.template:
        raise ConfigError(
            f"model.encoder.template: {source} was trained with {encoder.settings.template!r}, not {settings.template!r}"
        )
    return Encoder(encoder.source, settings)
