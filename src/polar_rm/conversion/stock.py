"""Conversion of reward models on stock backbones that xtuner, TRL and OpenRLHF save: they differ only in the head's name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from polar_rm.common.text import first_line
from polar_rm.conversion.plan import Conversion
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import REWARD_TOKEN, SEPARATOR_TOKEN, settings_within
from polar_rm.encoding.tokenizers import load_tokenizer
from polar_rm.errors import UnsupportedModel
from polar_rm.model.backbones import SUPPORTED, read_config
from polar_rm.model.exactness import check_structure
from polar_rm.model.folders import check_layers
from polar_rm.model.native import (
    add_role_tokens,
    native_config,
    new_embeddings,
    padding_token,
    read_specials,
    tokenizer_files,
    with_named_bos,
)
from polar_rm.model.weights import LazyTensor, check_tensors, read_weights

# TRL and xtuner's to_hf write score, xtuner's own checkpoints v_head, OpenRLHF value_head or score (its value_head_prefix).
HEADS = ("score", "v_head", "value_head")


def from_stock(folder: Path) -> Conversion:
    """The conversion of a reward model on a stock backbone to a native folder.

    Role tokens that its tokenizer lacks are added with new embedding rows. Such a model was not trained with them and must be
    fine-tuned on comparisons before its scores mean anything.

    Raises:
        UnsupportedModel: the folder has no head with one output, a bias, tensors that are not part of the architecture, or an
            architecture that transformers doesn't know.
    """
    config = _read_config(folder)
    tensors = _with_stock_names(folder, read_weights(folder))
    rows = tensors["model.embed_tokens.weight"].shape[0] if "model.embed_tokens.weight" in tensors else 0
    if rows != config.vocab_size:
        raise UnsupportedModel(
            f"{folder}: vocabulary mismatch: the embedding has {rows} rows, but vocab_size is {config.vocab_size}"
        )
    tokenizer, reward_token, added = _role_tokens(folder, config)
    if tokenizer.get_vocab_size() > rows:
        if load_tokenizer(folder).get_vocab_size() > rows:
            raise UnsupportedModel(f"{folder}: vocabulary mismatch: the tokenizer has ids beyond the embedding's {rows} rows")
        config.vocab_size = tokenizer.get_vocab_size()
        table = tensors["model.embed_tokens.weight"]
        grown = (config.vocab_size, table.shape[1])
        tensors["model.embed_tokens.weight"] = table.map(partial(_grow, config.vocab_size), grown)
    skeleton = _skeleton(folder, config)
    check_tensors(folder, tensors, {name: tuple(value.shape) for name, value in skeleton.state_dict().items()})
    encoder = Encoder(tokenizer, settings_within(config.max_position_embeddings, reward_token=reward_token))
    specials = read_specials(folder)
    specials["pad_token"] = padding_token(specials)
    config.pad_token_id = tokenizer.token_to_id(specials["pad_token"])
    if config.pad_token_id == encoder.reward_id:
        raise UnsupportedModel(
            f"{folder}: the padding token is the scoring token: other loaders would score at the token before it"
        )
    source = "/".join(config.architectures or ["?"])
    config.problem_type = "regression"  # otherwise vLLM applies a sigmoid
    config.architectures = [type(skeleton).__name__]
    title = f"{source} -> {config.architectures[0]}"
    values = native_config(config.to_dict(), tensors, encoder, added)
    notes = [f"added {' and '.join(added)}, with which this model was not trained: fine-tune it on comparisons"] if added else []
    return Conversion(title, values, tensors, tokenizer_files(encoder, specials), encoder, tuple(notes))


def _read_config(folder: Path) -> PretrainedConfig:
    config = read_config(folder)
    check_layers(folder)
    if getattr(config, "normalize_reward", False) and (getattr(config, "mean", 0), getattr(config, "std", 1)) != (0, 1):
        raise UnsupportedModel(
            f"{folder}: normalize_reward is true: OpenRLHF shifts its scores, which a head without bias can't do"
        )
    config.num_labels = 1
    if config.model_type not in SUPPORTED:
        check_structure(_skeleton(folder, config), str(folder))
    return config


def _skeleton(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """The classifier on the meta device: names and shapes of its tensors, without memory."""
    try:
        with torch.device("meta"):
            backbone: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    except (ValueError, TypeError, AttributeError, KeyError):
        raise UnsupportedModel(f"{folder}: transformers has no sequence classification for {config.model_type!r}") from None
    except Exception as error:  # on a bad value transformers raises any type of error
        raise UnsupportedModel(f"{folder}: {first_line(error)}") from error
    return backbone


def _with_stock_names(folder: Path, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors with names as in ``*ForSequenceClassification``: the head is ``score``, the backbone ``model``."""
    heads = [head for head in HEADS if f"{head}.weight" in tensors]
    if len(heads) != 1:
        known = ", ".join(f"{head}.weight" for head in HEADS)
        fault = "no reward head" if not heads else f"more than one reward head, {' and '.join(heads)}"
        raise UnsupportedModel(f"{folder}: {fault} (known: {known}); for a language model use model.init of polar pretrain")
    named = {}
    for name, tensor in tensors.items():
        outer = name.partition(".")[0]
        if name == f"{heads[0]}.bias":
            if tensor.load().any():  # SGLang's Qwen classes require a bias, so checkpoints for it have zeros
                raise UnsupportedModel(f"{folder}: tensor {name!r} is not zero, but a native head has no bias")
        elif outer == heads[0]:
            named["score" + name.removeprefix(outer)] = tensor
        elif name == "lm_head.weight":
            continue  # a leftover of the language model, on which no score depends
        else:
            named[name if outer == "model" else f"model.{name}"] = tensor
    return named


def _role_tokens(folder: Path, config: Any) -> tuple[Tokenizer, str, list[str]]:
    """The tokenizer with both role tokens as special tokens, the scoring token's text, and the tokens that were added."""
    source = with_named_bos(load_tokenizer(folder), folder, read_specials(folder))
    reward_id: Any = getattr(config, "reward_token_id", None)  # a key of xtuner
    is_id = type(reward_id) is int and 0 <= reward_id < 1 << 31
    reward = source.id_to_token(reward_id) if is_id else REWARD_TOKEN if reward_id is None else None
    if reward is None:
        raise UnsupportedModel(f"{folder}: reward_token_id {reward_id} is not an id of its tokenizer")
    new = [text for text in (SEPARATOR_TOKEN, reward) if source.token_to_id(text) is None]
    return add_role_tokens(source, reward), reward, new


def _grow(vocabulary: int, table: torch.Tensor) -> torch.Tensor:
    return torch.cat([table, new_embeddings(table, vocabulary - table.shape[0], seed=0)])
