"""A reward model before its weights are loaded: the architecture, the encoder and the source of the weights.

Reading it is fast and takes no memory, so that data can be encoded and a run planned before the model is loaded.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from polar_rm.common.memory import check_memory
from polar_rm.common.sources import model_folder
from polar_rm.common.text import first_line
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import EncoderSettings, settings_within
from polar_rm.errors import PolarError, UnsupportedModel
from polar_rm.model.backbones import (
    SUPPORTED,
    attention_name,
    dtype_of,
    find_untrained,
    keep_layers,
    load_backbone,
    not_supported,
    read_config,
    read_tokenizer,
)
from polar_rm.model.devices import memory_of
from polar_rm.model.exactness import check_structure
from polar_rm.model.folders import check_layers, check_parameters
from polar_rm.model.gguf_files import gguf_elements
from polar_rm.model.language_models import find_gguf, parse_gguf_once
from polar_rm.model.native import HEAD, add_role_tokens, padding_token, read_specials, read_untrained
from polar_rm.model.presets import preset_config, preset_shape
from polar_rm.model.weights import read_weights, tensor_shapes


@dataclass(frozen=True)
class Blueprint:
    """A reward model without its weights.

    config: the backbone's config, with the vocabulary of the saved weights. encoder: with the role tokens. specials: see
    :func:`polar_rm.model.native.read_specials`. weights: the folder with the weights; None for random weights. gguf_file: the
    GGUF file in that folder, if it holds the weights. is_new: the head is new (zeros) and the vocabulary grows by the role
    tokens. added: ids of the role tokens that the tokenizer did not have. untrained: the parts of a saved model that were never
    trained, see :func:`polar_rm.model.native.read_untrained`.
    """

    config: PretrainedConfig
    encoder: Encoder
    specials: dict[str, str]
    weights: Path | None
    gguf_file: str | None = None
    is_new: bool = True
    added: tuple[int, ...] = ()
    untrained: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> int:
        """Number of embedding rows of the model."""
        known: int = self.config.vocab_size
        return max(known, self.encoder.source.get_vocab_size()) if self.is_new else known

    @cached_property
    def on_meta(self) -> PreTrainedModel:
        """The backbone on the meta device: names and shapes of all parameters, without memory."""
        return self.skeleton()

    def skeleton(self, implementation: str | None = None, device: str = "cpu") -> PreTrainedModel:
        """A new backbone on the meta device, float32. implementation, device: for its attention, see ``RewardModel``."""
        config = copy.deepcopy(self.config)
        config.vocab_size = self.vocabulary
        try:
            with torch.device("meta"):
                backbone: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                    config, dtype=torch.float32, attn_implementation=attention_name(implementation, device)
                )
        except Exception as error:  # transformers raises all kinds of errors for values of a config
            reason = first_line(error)
            if config.model_type not in SUPPORTED:
                reason = not_supported(config, f"it can't be built with tree attention: {reason}")
            raise UnsupportedModel(f"{self.weights or config.model_type}: {reason}") from error
        self.finish_config(backbone)
        return backbone

    def load(self, dtype: str, device: str, implementation: str | None, seed: int) -> PreTrainedModel:
        """The backbone with its weights, before ``RewardModel.from_blueprint`` sets new parts. seed: for random weights.

        Raises:
            PolarError: the weights need more memory than the machine (or the GPU) has. Others: see :func:`load_backbone`.
        """
        tensors = [*self.on_meta.parameters(), *self.on_meta.buffers()]
        n_bytes = dtype_of(dtype).itemsize * sum(tensor.numel() for tensor in tensors)
        check_memory(n_bytes, f"{self.weights or 'the model'}: weights in {dtype}", *memory_of(device))
        config = copy.deepcopy(self.config)
        if self.weights is not None:
            return load_backbone(
                self.weights, config, dtype, device, implementation, new_head=self.is_new, gguf_file=self.gguf_file
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                config, dtype=dtype_of(dtype), attn_implementation=attention_name(implementation, device)
            )
        return backbone

    def untrained_roles(self) -> tuple[str, ...]:
        """Texts of the role tokens whose embeddings were never trained, as far as it is known before the weights are loaded.

        A few rows of the embedding are read, but none of a GGUF.
        """
        if not self.is_new:
            return tuple(part for part in self.untrained if part != HEAD)
        if self.weights is None:
            return ()
        existing = [index for index in (self.encoder.separator_id, self.encoder.reward_id) if index not in self.added]
        found: list[int] = []
        if existing and self.gguf_file is None:
            table = self.on_meta.get_input_embeddings().weight
            name = next(name for name, parameter in self.on_meta.named_parameters() if parameter is table)
            tensors = read_weights(self.weights)
            saved = tensors.get(name) or tensors.get(name.partition(".")[2])  # saved with a head, or without one
            found = find_untrained(saved.load(), existing) if saved else []
        return tuple(filter(None, map(self.encoder.source.id_to_token, sorted([*self.added, *found]))))

    def finish_config(self, backbone: PreTrainedModel) -> None:
        """Add what other programs need to the config of a new model.

        This happens after the backbone is built, because a padding id changes how transformers builds an embedding.
        """
        if not self.is_new:
            return
        backbone.config.pad_token_id = self.encoder.source.token_to_id(self.specials["pad_token"])
        # vLLM applies a sigmoid to one-label heads unless the config says regression.
        backbone.config.problem_type = "regression"
        backbone.config.architectures = [type(backbone).__name__]


def checkpoint_blueprint(directory: str | Path) -> Blueprint:
    """The blueprint of a native checkpoint.

    Raises:
        UnsupportedModel: the checkpoint is not a one-label reward model.
        EncoderMismatch: the folder's tokenizer or encoder settings are not those that the model was trained with.
    """
    directory = model_folder(directory)
    config = read_config(directory)
    if not (config.architectures or [""])[0].endswith("ForSequenceClassification") or config.num_labels != 1:
        raise UnsupportedModel(
            f"{directory}: a reward model is a *ForSequenceClassification checkpoint with one label, but this is "
            f"{config.architectures} with {config.num_labels}; for a language model use model.init"
        )
    encoder = Encoder.from_pretrained(directory)
    untrained = read_untrained(directory)
    blueprint = Blueprint(config, encoder, read_specials(directory), Path(directory), is_new=False, untrained=untrained)
    return _checked(blueprint)


@parse_gguf_once()
def language_model_blueprint(
    directory: str | Path,
    *,
    settings: EncoderSettings | Mapping[str, Any] | None = None,
    n_layers: int | None = None,
    gguf_file: str | None = None,
) -> Blueprint:
    """The blueprint of a reward model on a language model's backbone; arguments and errors as in
    ``RewardModel.from_causal_lm``."""
    directory = model_folder(directory)
    gguf_file = find_gguf(directory, gguf_file)
    config = read_config(directory, gguf_file)
    config.num_labels = 1
    if n_layers is not None:
        if not 1 <= n_layers <= config.num_hidden_layers:
            raise PolarError(f"n_layers must be 1 to {config.num_hidden_layers}, not {n_layers}")
        keep_layers(config, n_layers)
    tokenizer, specials = read_tokenizer(directory, gguf_file)
    positions = getattr(config, "max_position_embeddings", None)
    settings = settings if isinstance(settings, EncoderSettings) else settings_within(positions, **(settings or {}))
    warn_beyond_positions(directory, settings, config)
    encoder = Encoder(add_role_tokens(tokenizer), settings)
    specials = specials | {"pad_token": padding_token(specials)}
    return _checked(Blueprint(config, encoder, specials, directory, gguf_file, added=_added(tokenizer, encoder)))


def warn_beyond_positions(source: str | Path, settings: EncoderSettings, config: PretrainedConfig) -> None:
    """Warn where sequences may be longer than the backbone's positions. source: of the model, for the message."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and settings.max_length > positions:
        warnings.warn(
            f"{source}: max_length {settings.max_length:,} is more than the backbone's {positions:,} positions: scores of "
            "longer sequences are unreliable",
            stacklevel=3,
        )


def preset_blueprint(
    preset: str,
    tokenizer_directory: str | Path,
    *,
    settings: EncoderSettings | Mapping[str, Any] | None = None,
    gguf_file: str | None = None,
) -> Blueprint:
    """The blueprint of a randomly initialised Llama of a preset size; arguments and errors as in ``RewardModel.from_preset``."""
    preset_shape(preset)  # a wrong name is told before the tokenizer is read
    directory = model_folder(tokenizer_directory, weights=False)
    tokenizer, specials = read_tokenizer(directory, find_gguf(directory, gguf_file))
    settings = settings if isinstance(settings, EncoderSettings) else settings_within(None, **(settings or {}))
    positions = settings.max_length
    config = preset_config(preset, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=positions)
    encoder = Encoder(add_role_tokens(tokenizer), settings)
    specials = specials | {"pad_token": padding_token(specials)}
    return Blueprint(config, encoder, specials, None, added=_added(tokenizer, encoder))


def _checked(blueprint: Blueprint) -> Blueprint:
    """The blueprint, if its family can be used and its weights are about as many as its config says: a library builds what the
    config says before it looks at them. What is missing or of another shape is told by name when they are loaded.

    Raises:
        UnsupportedModel: the config asks for more layers than there are, or for more than twice as many parameters, or the
            backbone is built unlike those that we know.
    """
    assert blueprint.weights is not None
    held: dict[str, tuple[int, ...]] = {}
    if blueprint.gguf_file is None:
        check_layers(blueprint.weights)
        held = tensor_shapes(blueprint.weights)
        there = sum(map(prod, held.values()))
    else:
        there = gguf_elements(blueprint.weights / blueprint.gguf_file)
    backbone = blueprint.on_meta
    check_structure(backbone, str(blueprint.weights))
    # A new head and rows of new tokens are in no weights.
    new = (1 + blueprint.vocabulary - blueprint.config.vocab_size) * backbone.get_input_embeddings().weight.shape[1]
    check_parameters(blueprint.weights, backbone, held, there, new)
    return blueprint


def _added(tokenizer: Tokenizer, encoder: Encoder) -> tuple[int, ...]:
    return tuple(sorted({encoder.separator_id, encoder.reward_id} - set(tokenizer.get_vocab(with_added_tokens=True).values())))
