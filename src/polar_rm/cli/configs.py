"""The verbs that have a config, and its class."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polar_rm.common.config import Config

CONFIGS = {
    "sample": "polar_rm.sampling.config:SamplingConfig",
    "corpus": "polar_rm.corpus.config:CorpusConfig",
    "encode": "polar_rm.training.encode_config:EncodeConfig",
    "references": "polar_rm.references.config:ReferencesConfig",
    "select": "polar_rm.selection.config:SelectConfig",
    "pretrain": "polar_rm.training.config:TrainConfig",
    "finetune": "polar_rm.training.config:TrainConfig",
    "scaling": "polar_rm.scaling.config:ScalingConfig",
    "rft": "polar_rm.rft.config:RftConfig",
    "serve": "polar_rm.serving.config:ServeConfig",
    "audit": "polar_rm.audit.thresholds:Thresholds",
}
"""Verbs with a config, and the class of the config, which is imported only when needed."""


def config_of(name: str) -> type[Config]:
    """The class of a verb's config."""
    module, _, name_of_class = CONFIGS[name].partition(":")
    config_class: type[Config] = getattr(import_module(module), name_of_class)
    return config_class
