"""The reward model: a stock transformers backbone, a bias-free linear head, and attention over prefix trees."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.model.backbones import SUPPORTED, add_embeddings, untrained
from polar_rm.model.blueprint import Blueprint, checkpoint_blueprint, language_model_blueprint, preset_blueprint
from polar_rm.model.exactness import check_family
from polar_rm.model.language_models import gguf_parsed_once
from polar_rm.model.native import save_native
from polar_rm.model.packing import PackedRow
from polar_rm.model.skipping import at_scores, leave_out_work

# A mask that transformers takes for a prepared one and hands on unread. Without any it would look, on the host, whether positions
# restart: a wait for the device in every row.
_PREPARED = torch.ones(1, 1, 1, 1, dtype=torch.bool)


class RewardModel(nn.Module):
    """r(prompt, reference, candidate) for every candidate of a row of prefix trees.

    ``backbone`` is the transformers ``*ForSequenceClassification`` model itself; no module of it is replaced. Attention is the
    function that its config names; what :mod:`polar_rm.model.skipping` attaches leaves out or divides work without a change to
    scores. The head and the scores are float32 whatever the backbone computes in (open-instruct 1387). ``untrained_tokens``: role
    tokens whose embeddings are new and were never trained, empty for a saved model.
    """

    def __init__(self, backbone: PreTrainedModel, encoder: Encoder, specials: Mapping[str, str]) -> None:
        super().__init__()
        self.untrained_tokens: tuple[str, ...] = ()
        self.backbone = backbone
        self.encoder = encoder
        self.specials = dict(specials)
        backbone.score.float()
        if backbone.config.model_type in SUPPORTED:
            leave_out_work(backbone)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, dtype: str = "float32", device: str = "cpu", implementation: str | None = None
    ) -> Self:
        """Load a native checkpoint.

        dtype: of the backbone: float32, bfloat16 or float16. implementation: name of a registered tree attention; by default
        the fast one for the device.

        Raises:
            UnsupportedModel: not a one-label reward model, a family that fails the equality check, missing or NaN weights.
            EncoderMismatch: the folder's tokenizer or encoder settings are not those it was trained with.
        """
        return cls.from_blueprint(checkpoint_blueprint(directory), dtype=dtype, device=device, implementation=implementation)

    @classmethod
    @gguf_parsed_once()
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
        """A reward model on a language model's backbone: zero-initialised head (the first loss is ln 2), role tokens added.

        directory: a folder or ``package:NAME`` (see :func:`model_folder`). gguf_file: which GGUF in it, where there are several.
        settings: the encoder's, or some of them by name; lengths that are not given are the official ones, or shorter where the
        backbone has fewer positions. n_layers: keep only the first layers (a small model of a pre-trained one's lower half).
        seed: of the embeddings of added tokens.
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
        """A randomly initialised Llama of a preset size, with another model's tokenizer."""
        blueprint = preset_blueprint(preset, tokenizer_directory, settings=settings, gguf_file=gguf_file)
        return cls.from_blueprint(blueprint, dtype=dtype, device=device, implementation=implementation, seed=seed)

    @classmethod
    @gguf_parsed_once()
    def from_blueprint(
        cls,
        blueprint: Blueprint,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        implementation: str | None = None,
        seed: int = 0,
    ) -> Self:
        """The model with its weights; arguments and errors as of the methods above, which are this and a blueprint."""
        backbone = blueprint.load(dtype, device, implementation, seed)
        if blueprint.is_new:
            new = _untrained_roles(backbone, blueprint)
            known = blueprint.encoder.source.get_vocab(with_added_tokens=True).values()
            add_embeddings(backbone, blueprint.vocabulary, known, new, seed)
            nn.init.zeros_(backbone.score.weight)
        blueprint.mark(backbone)
        model = cls(backbone, blueprint.encoder, blueprint.specials).to(device).eval()
        model.untrained_tokens = tuple(filter(None, map(blueprint.encoder.source.id_to_token, new))) if blueprint.is_new else ()
        check_family(backbone, blueprint.encoder, str(blueprint.weights or backbone.config.model_type))
        return model

    def forward(self, row: PackedRow) -> torch.Tensor:
        """Scores of all candidates of the row, tree by tree: float32 [n_candidates]."""
        output = self.backbone.base_model(
            input_ids=row.ids,
            attention_mask=_PREPARED,
            position_ids=row.tree.positions[None],
            use_cache=False,  # with a cache, transformers takes restarting positions for one document and leaks between trees
            tree=row.tree,
        )
        ends = at_scores(self.backbone, output.last_hidden_state, row.tree)
        scores: torch.Tensor = self.backbone.score(ends.float())[:, 0]
        return scores.clone()  # FSDP2 hooks its backward to what is returned, and warns of a view

    def save(self, directory: str | Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a native checkpoint atomically. ``weights``: the state dict to write instead of this module's own (the
        trainer's float32 master weights)."""
        save_native(directory, self.backbone.config, weights or self.backbone.state_dict(), self.encoder, self.specials)

    @property
    def device(self) -> torch.device:
        """Where its head is."""
        weight: torch.Tensor = self.backbone.score.weight
        return weight.device


def _untrained_roles(backbone: PreTrainedModel, blueprint: Blueprint) -> list[int]:
    """Ids of the role tokens that the language model never saw: added ones, and those that its tokenizer has for no use."""
    roles = [blueprint.encoder.separator_id, blueprint.encoder.reward_id]
    had = [index for index in roles if index not in blueprint.added]
    return sorted([*blueprint.added, *untrained(backbone, had)])
