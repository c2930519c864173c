"""The reward model: a stock transformers backbone, a bias-free linear head, and attention over prefix trees."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.errors import PolarError
from polar_rm.model.backbones import SUPPORTED, add_embeddings, find_untrained
from polar_rm.model.blueprint import Blueprint, checkpoint_blueprint, language_model_blueprint, preset_blueprint
from polar_rm.model.exactness import check_family
from polar_rm.model.int8 import Int8Record, check_int8
from polar_rm.model.language_models import parse_gguf_once
from polar_rm.model.native import HEAD, save_native, untrained_warning
from polar_rm.model.packing import PackedRow
from polar_rm.model.products import attach_products, quantize
from polar_rm.model.skipping import hidden_at_scores, skip_unused_work

# A mask that transformers takes for a prepared one and passes on unread. Without a mask it would check on the host whether
# positions restart, which waits for the device in every row.
_UNREAD_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)


class RewardModel(nn.Module):
    """r(prompt, reference, candidate) for every candidate of a row of prefix trees.

    ``backbone`` is the transformers ``*ForSequenceClassification`` model itself; none of its modules is replaced. Attention is
    the function that its config names. :mod:`polar_rm.model.skipping` attaches functions that skip or split work without a
    change of scores, and :mod:`polar_rm.model.products` one that multiplies faster on some CPUs. The head and the scores are
    float32 whatever type the backbone computes in (open-instruct 1387). ``untrained`` names the parts that were never trained:
    :data:`polar_rm.model.native.HEAD`, and role tokens by their texts. It is saved with the model.
    """

    def __init__(self, backbone: PreTrainedModel, encoder: Encoder, specials: Mapping[str, str]) -> None:
        super().__init__()
        self.untrained: tuple[str, ...] = ()
        self.backbone = backbone
        self.encoder = encoder
        self.specials = dict(specials)
        backbone.score.float()
        if backbone.config.model_type in SUPPORTED:
            skip_unused_work(backbone)
        attach_products(backbone.base_model)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, dtype: str = "float32", device: str = "cpu", implementation: str | None = None
    ) -> Self:
        """Load a native checkpoint, and warn if its head or role tokens were never trained.

        dtype: the backbone's type: float32, bfloat16, float16, or int8 for CPUs, which needs the record of ``polar quantize``.
        implementation: the name of a registered tree attention; by default the fast one for the device.

        Raises:
            UnsupportedModel: the checkpoint is not a one-label reward model, its family fails the equality check, or weights are
                missing or not finite.
            EncoderMismatch: the folder's tokenizer or encoder settings are not those that the model was trained with.
        """
        blueprint = checkpoint_blueprint(directory)
        model = cls.from_blueprint(blueprint, dtype=dtype, device=device, implementation=implementation)
        if model.untrained:
            warnings.warn(untrained_warning(directory, model.untrained), stacklevel=2)
        return model

    @classmethod
    @parse_gguf_once()
    def from_causal_lm(
        cls,
        directory: str | Path,
        *,
        settings: EncoderSettings | Mapping[str, Any] | None = None,
        n_layers: int | None = None,
        gguf_file: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        implementation: str | None = None,
        seed: int = 0,
    ) -> Self:
        """A reward model on a language model's backbone, with a zero-initialised head (the first loss is ln 2) and role tokens.

        directory: a folder or ``package:NAME`` (see :func:`model_folder`). gguf_file: the GGUF to use, if there are several.
        settings: the encoder's settings, or some of them by name; default lengths are the official ones, or shorter if the
        backbone has fewer positions. n_layers: keep only the first layers, for a small model from a pre-trained one's lower part.
        seed: for the embeddings of added tokens.
        """
        blueprint = language_model_blueprint(directory, settings=settings, n_layers=n_layers, gguf_file=gguf_file)
        return cls.from_blueprint(blueprint, dtype=dtype, device=device, implementation=implementation, seed=seed)

    @classmethod
    def from_preset(
        cls,
        preset: str,
        tokenizer_directory: str | Path,
        *,
        settings: EncoderSettings | Mapping[str, Any] | None = None,
        gguf_file: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        implementation: str | None = None,
        seed: int = 0,
    ) -> Self:
        """A reward model on a randomly initialised Llama of a preset size, with another model's tokenizer."""
        blueprint = preset_blueprint(preset, tokenizer_directory, settings=settings, gguf_file=gguf_file)
        return cls.from_blueprint(blueprint, dtype=dtype, device=device, implementation=implementation, seed=seed)

    @classmethod
    @parse_gguf_once()
    def from_blueprint(
        cls,
        blueprint: Blueprint,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        implementation: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Load the model of a blueprint; arguments and errors as in the methods above, which build a blueprint and call this."""
        record = _int8_record(blueprint, device) if dtype == "int8" else None
        backbone = blueprint.load("float32" if record else dtype, device, implementation, seed)
        untrained = blueprint.untrained
        if blueprint.is_new:
            roles = _untrained_roles(backbone, blueprint)
            untrained = (HEAD, *filter(None, map(blueprint.encoder.source.id_to_token, roles)))
            known = blueprint.encoder.source.get_vocab(with_added_tokens=True).values()
            add_embeddings(backbone, blueprint.vocabulary, known, roles, seed)
            nn.init.zeros_(backbone.score.weight)
        blueprint.finish_config(backbone)
        model = cls(backbone, blueprint.encoder, blueprint.specials).to(device).eval()
        # Earlier versions did not record untrained parts, but a head of zeros was never trained.
        is_zero = HEAD not in untrained and not backbone.score.weight.any()
        model.untrained = (HEAD, *untrained) if is_zero else untrained
        check_family(backbone, blueprint.encoder, str(blueprint.weights or backbone.config.model_type))
        if record:
            quantize(backbone.base_model, record.float32_layers)
        return model

    def forward(self, row: PackedRow) -> torch.Tensor:
        """Scores of all candidates of the row, tree by tree: float32 [n_candidates]."""
        return self.scores(self.features(row))

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """The head's scores of features: float32 [n_candidates, hidden] -> float32 [n_candidates]."""
        scores: torch.Tensor = self.backbone.score(features)[:, 0]
        return scores.clone()  # FSDP2 registers its backward hook on the returned tensor, and warns about a view

    def features(self, row: PackedRow) -> torch.Tensor:
        """The head's inputs at the score positions of all candidates, tree by tree: float32 [n_candidates, hidden]."""
        output = self.backbone.base_model(
            input_ids=row.ids,
            attention_mask=_UNREAD_MASK,
            position_ids=row.tree.positions[None],
            use_cache=False,  # with a cache, transformers takes all trees for one document and leaks between them
            tree=row.tree,
            **({"prefixes": row.prefixes} if row.prefixes else {}),
        )
        hidden: torch.Tensor = hidden_at_scores(self.backbone, output.last_hidden_state, row.tree)
        return hidden.float()

    def save(self, directory: str | Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a native checkpoint atomically. weights: a state dict to write in place of this module's own, such as the
        trainer's float32 master weights."""
        values = weights or self.backbone.state_dict()
        save_native(directory, self.backbone.config, values, self.encoder, self.specials, self.untrained)

    @property
    def untrained_tokens(self) -> tuple[str, ...]:
        """Role tokens whose embeddings were never trained."""
        return tuple(part for part in self.untrained if part != HEAD)

    def mark_trained(self, *, embeddings: bool = True) -> None:
        """Record that the head was trained. embeddings: the embeddings of the role tokens were trained too."""
        self.untrained = () if embeddings else self.untrained_tokens

    @property
    def head(self) -> NDArray[np.float32]:
        """The head's weights, float32 [hidden]. A reward is their dot product with the features."""
        weight: torch.Tensor = self.backbone.score.weight
        values: NDArray[np.float32] = weight.detach()[0].float().cpu().numpy()
        return values

    @property
    def device(self) -> torch.device:
        """The device of the head."""
        weight: torch.Tensor = self.backbone.score.weight
        return weight.device


def _int8_record(blueprint: Blueprint, device: str) -> Int8Record:
    """What to quantise in a saved model. Raises a PolarError if it was not measured, or int8 can't be used here."""
    check_int8(device)
    if blueprint.is_new or blueprint.weights is None:
        raise PolarError("int8 is for saved reward models: save this one, and measure what int8 does to it: polar quantize DIR")
    return Int8Record.load(blueprint.weights)


def _untrained_roles(backbone: PreTrainedModel, blueprint: Blueprint) -> list[int]:
    """Ids of the role tokens that were never trained: added tokens, and unused tokens of the language model's tokenizer."""
    roles = [blueprint.encoder.separator_id, blueprint.encoder.reward_id]
    existing = [index for index in roles if index not in blueprint.added]
    table = backbone.get_input_embeddings().weight.detach()
    return sorted([*blueprint.added, *find_untrained(table, existing)])
