"""Conversion of the official layout, InternLM2ForRewardModel, to a native Llama checkpoint and back. No remote code is run.

Both layouts compute the same function: RoPE, RMSNorm and the order of the heads are Llama's. Only the names differ, and InternLM2
has q, k and v in one matrix ``wqkv``: for each key/value head the rows of its group of q heads, then those of k, then those of v.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken

from polar_rm.common.files import read_json
from polar_rm.common.text import first_line
from polar_rm.conversion.layouts import ARCHITECTURE
from polar_rm.conversion.plan import Conversion
from polar_rm.conversion.sentencepiece import fast_tokenizer
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.settings import SEPARATOR_TOKEN, settings_within
from polar_rm.errors import PolarError, UnsupportedModel
from polar_rm.model.native import native_config, read_specials, tokenizer_config, tokenizer_files
from polar_rm.model.weights import LazyTensor, check_tensors, read_weights

HEAD = "v_head.weight"

# A native folder keeps these official files in a subfolder, so that the conversion back is complete.
_OFFICIAL_FOLDER = "internlm2"
_OFFICIAL_FILES = ("config.json", "tokenizer_config.json", "tokenizer.model")

# Keys required in both configs. The official class has the defaults of another model, so no default is assumed.
_SAME_KEYS = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings rms_norm_eps "
    "bos_token_id eos_token_id pad_token_id"
).split()

# Llama's names -> InternLM2's, for one layer and outside layers.
_LAYER = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTER = {
    "model.embed_tokens.weight": "model.tok_embeddings.weight",
    "model.norm.weight": "model.norm.weight",
    "score.weight": HEAD,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model, which determine the names and shapes of its tensors in both layouts."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    feed_forward: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """The sizes in the content of an InternLM2 or Llama ``config.json``."""
        heads = config["num_attention_heads"]
        return cls(
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            config["hidden_size"] // heads,
            config["hidden_size"],
            config["intermediate_size"],
            config["vocab_size"],
        )

    @property
    def groups(self) -> int:
        """Number of query heads that share a key/value head."""
        return self.heads // self.kv_heads

    def names(self) -> dict[str, str]:
        """Llama's name -> InternLM2's name of every tensor that both layouts have."""
        layers = range(self.layers)
        inner = {f"model.layers.{i}.{a}.weight": f"model.layers.{i}.{b}.weight" for i in layers for a, b in _LAYER.items()}
        return _OUTER | inner

    def internlm2(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes of all tensors of an official checkpoint."""
        hidden, feed_forward, q_rows = self.hidden, self.feed_forward, self.heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "attention.wqkv": (q_rows + 2 * self.kv_heads * self.head_dim, hidden),
            "attention.wo": (hidden, q_rows),
            "feed_forward.w1": (feed_forward, hidden),
            "feed_forward.w3": (feed_forward, hidden),
            "feed_forward.w2": (hidden, feed_forward),
            "attention_norm": (hidden,),
            "ffn_norm": (hidden,),
        }
        inner = {f"model.layers.{i}.{name}.weight": shape for i in range(self.layers) for name, shape in shapes.items()}
        return inner | {
            "model.tok_embeddings.weight": (self.vocabulary, hidden),
            "model.norm.weight": (hidden,),
            HEAD: (1, hidden),
        }

    def llama(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes of all tensors of a native checkpoint."""
        official = self.internlm2()
        shapes = {llama: official[name] for llama, name in self.names().items()}
        for i in range(self.layers):
            for part, rows in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                shapes[f"model.layers.{i}.self_attn.{part}_proj.weight"] = (rows * self.head_dim, self.hidden)
        return shapes

    def unpack(self, part: str, wqkv: torch.Tensor) -> torch.Tensor:
        """wqkv [kv_heads * (groups + 2) * head_dim, hidden] -> the rows of ``part``, q, k or v, [heads * head_dim, hidden]."""
        rows = {"q": slice(0, self.groups), "k": slice(self.groups, self.groups + 1), "v": slice(self.groups + 1, None)}[part]
        return wqkv.view(self.kv_heads, self.groups + 2, self.head_dim, self.hidden)[:, rows].reshape(-1, self.hidden)

    def pack(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`unpack`."""
        per_head = [part.view(self.kv_heads, -1, self.head_dim, self.hidden) for part in (q, k, v)]
        return torch.cat(per_head, dim=1).reshape(-1, self.hidden)


def from_internlm2(folder: Path) -> Conversion:
    """The conversion of an official folder to a native one.

    Raises:
        UnsupportedModel: the native checkpoint would not give exactly the same scores; the message has the reason.
    """
    config = read_json(folder / "config.json")
    _check_official(folder, config)
    shape = Shape.of(config)
    tensors = read_weights(folder)
    if HEAD not in tensors:
        raise UnsupportedModel(f"{folder}: no reward head: tensor {HEAD!r} is missing")
    check_tensors(folder, tensors, shape.internlm2())
    encoder = _official_encoder(folder, config)
    native = {llama: tensors[name] for llama, name in shape.names().items()}
    for name, rows in shape.llama().items():
        if name not in native:  # q, k or v
            layer, _, part = name.removesuffix("_proj.weight").partition(".self_attn.")
            native[name] = tensors[f"{layer}.attention.wqkv.weight"].map(partial(shape.unpack, part), rows)
    notes = ["clean_up: the encoder removes spaces before punctuation, as the official client does"]
    if config.get("rope_scaling"):
        notes.append(f"dynamic RoPE becomes plain RoPE: it takes effect only beyond {config['max_position_embeddings']:,} tokens")
    files = tokenizer_files(encoder, read_specials(folder))
    files |= {f"{_OFFICIAL_FOLDER}/{name}": (folder / name).read_bytes() for name in _OFFICIAL_FILES}
    values = _llama_config(config, shape)
    title = f"{ARCHITECTURE} -> LlamaForSequenceClassification"
    return Conversion(title, native_config(values, native, encoder), native, files, encoder, tuple(notes))


def to_internlm2(folder: Path) -> Conversion:
    """The conversion of a native Llama folder to an official one, for LMDeploy and set-ups that need the official layout.

    The tokenizer is our fast one, which gives the right ids everywhere. The official ``tokenizer.model`` is written beside it if
    the folder keeps it.

    Raises:
        UnsupportedModel: the layout can't express the model.
    """
    config = read_json(folder / "config.json")
    _check_llama(folder, config)
    encoder = Encoder.from_pretrained(folder)
    shape = Shape.of(config)
    tensors = read_weights(folder)
    check_tensors(folder, tensors, shape.llama())
    official = {name: tensors[llama] for llama, name in shape.names().items()}
    for name, rows in shape.internlm2().items():
        if name not in official:
            attention = name.removesuffix("attention.wqkv.weight") + "self_attn."
            parts = [tensors[f"{attention}{part}_proj.weight"] for part in "qkv"]
            official[name] = LazyTensor(
                rows, parts[0].dtype, partial(lambda parts: shape.pack(*(p.load() for p in parts)), parts)
            )
    official = {name: official[name] for name in shape.internlm2()}
    files, original, notes = _official_files(folder, encoder)
    scaling = original.get("rope_scaling")
    values = original | {key: config[key] for key in _SAME_KEYS}
    values |= {
        "architectures": [ARCHITECTURE],
        "model_type": "internlm2",
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": "silu",
        "bias": False,
        "tie_word_embeddings": False,
        "pretraining_tp": 1,
        "rope_theta": _plain_theta(config),
        "rope_scaling": scaling if values["max_position_embeddings"] >= encoder.settings.max_length else None,
        "reward_token_id": encoder.reward_id,
        "torch_dtype": str(official["model.tok_embeddings.weight"].dtype).removeprefix("torch."),
    }
    values.pop("auto_map", None)
    notes.append("no auto_map: LMDeploy does not need it; for the official remote code add its .py files and this key")
    title = f"LlamaForSequenceClassification -> {ARCHITECTURE}"
    return Conversion(title, values, official, files, encoder, tuple(notes))


def _check_official(folder: Path, config: Mapping[str, Any]) -> None:
    numbers = [*_SAME_KEYS, "rope_theta", "reward_token_id"]
    kinds: dict[str, tuple[type, ...]] = dict.fromkeys(("rms_norm_eps", "rope_theta"), (int, float))
    missing = [key for key in numbers if type(config.get(key)) not in kinds.get(key, (int,))]
    if missing:
        raise UnsupportedModel(f"{folder / 'config.json'}: it has no number {missing[0]!r}")
    scaling = config.get("rope_scaling")
    kind = (scaling.get("type") or scaling.get("rope_type")) if scaling else "default"
    divisible = config["hidden_size"] % config["num_attention_heads"] == 0
    kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    refusals = [
        # Without the key, the official class creates biases.
        (config.get("bias", True), "bias is true: its attention has biases"),
        (config.get("tie_word_embeddings"), "tie_word_embeddings is true: its head would be tied to the embedding"),
        (config.get("hidden_act") != "silu", f"hidden_act is {config.get('hidden_act')!r}, but our Llama layers use silu"),
        (kind not in ("default", "dynamic"), f"rope_scaling is {kind!r}, which changes every position"),
        (not divisible or config["num_attention_heads"] % kv_heads, "the numbers of its heads do not divide evenly"),
    ]
    _refuse(folder, refusals)


def _check_llama(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("architectures") != ["LlamaForSequenceClassification"]:
        raise UnsupportedModel(
            f"{folder}: only LlamaForSequenceClassification can become internlm2, but this is {config.get('architectures')}"
        )
    missing = [key for key in _SAME_KEYS if config.get(key) is None]
    if missing:
        raise UnsupportedModel(f"{folder / 'config.json'}: it has no {missing[0]!r}")
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    refusals = [
        (config.get("attention_bias") or config.get("mlp_bias"), "its layers have biases"),
        (config.get("hidden_act", "silu") != "silu", f"hidden_act is {config.get('hidden_act')!r}, but the layout uses silu"),
        ((config.get("head_dim") or head_dim) != head_dim, "its head_dim is not hidden_size / num_attention_heads"),
        (_plain_theta(config) is None, "its RoPE is scaled"),
    ]
    _refuse(folder, refusals)


def _refuse(folder: Path, refusals: list[tuple[Any, str]]) -> None:
    for is_wrong, reason in refusals:
        if is_wrong:
            raise UnsupportedModel(f"{folder}: it can't be converted exactly: {reason}")


def _plain_theta(config: Mapping[str, Any]) -> float | None:
    """RoPE's theta from a config of transformers 4 or 5; None if positions are scaled."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return None
    theta = rope.get("rope_theta", config.get("rope_theta"))
    return None if theta is None else float(theta)


def _llama_config(config: Mapping[str, Any], shape: Shape) -> dict[str, Any]:
    theta = float(config["rope_theta"])
    return {
        "architectures": ["LlamaForSequenceClassification"],
        "model_type": "llama",
        **{key: config[key] for key in _SAME_KEYS},
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "initializer_range": config.get("initializer_range", 0.02),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "problem_type": "regression",  # otherwise vLLM applies a sigmoid
        "use_cache": True,
    }


def official_encoder(folder: Path) -> Encoder:
    """The encoder of an official folder, of which only config and tokenizer are read.

    Raises:
        UnsupportedModel: its tokenizer can't be converted exactly, or it is not POLAR's.
    """
    config = read_json(folder / "config.json")
    _check_official(folder, config)
    return _official_encoder(folder, config)


def _official_encoder(folder: Path, config: Mapping[str, Any]) -> Encoder:
    values = read_json(folder / "tokenizer_config.json")
    try:
        added = {int(index): AddedToken(**token) for index, token in values.get("added_tokens_decoder", {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        place = folder / "tokenizer_config.json"
        raise PolarError(f"{place}: added_tokens_decoder: expected tokens by their ids: {first_line(error)}") from error
    texts = {token.content: index for index, token in added.items()}
    if SEPARATOR_TOKEN not in texts:
        raise UnsupportedModel(f"{folder / 'tokenizer_config.json'}: it has no token {SEPARATOR_TOKEN!r}: not a POLAR model")
    if texts[SEPARATOR_TOKEN] == config["reward_token_id"]:
        raise UnsupportedModel(
            f"{folder}: {SEPARATOR_TOKEN!r} is the scoring token here, so the model takes no references: an older InternLM2 "
            "reward model, not POLAR"
        )
    if values.get("add_eos_token"):
        raise UnsupportedModel(f"{folder / 'tokenizer_config.json'}: it adds an EOS to every text, but POLAR adds none")
    bos = read_specials(folder).get("bos_token") if values.get("add_bos_token", True) else None
    tokenizer, reward_token = fast_tokenizer(folder / "tokenizer.model", added, config["reward_token_id"], bos)
    size = tokenizer.get_vocab_size()
    if size != config["vocab_size"]:
        raise UnsupportedModel(f"{folder}: vocabulary mismatch: {size} pieces, but vocab_size is {config['vocab_size']}")
    if config["pad_token_id"] == config["reward_token_id"]:
        raise UnsupportedModel(f"{folder}: pad_token_id is the scoring token: other loaders would score at the token before it")
    return Encoder(tokenizer, settings_within(config["max_position_embeddings"], reward_token=reward_token, clean_up=True))


def _official_files(folder: Path, encoder: Encoder) -> tuple[dict[str, bytes], dict[str, Any], list[str]]:
    """Tokenizer files for the conversion back, the original official config if the folder keeps it, and notes about them."""
    specials = read_specials(folder)
    files = tokenizer_files(encoder, specials)
    original = folder / _OFFICIAL_FOLDER
    if not original.is_dir():
        note = f"no tokenizer.model: a native folder has one in {_OFFICIAL_FOLDER}/ only if it was converted; copy that folder"
        return files, {}, [note]
    config = read_json(original / "config.json")
    if _official_encoder(original, config).fingerprint != encoder.fingerprint:
        raise PolarError(f"{original}: its tokenizer is not this model's")
    official = read_json(original / "tokenizer_config.json") | tokenizer_config(encoder, specials)
    official.pop("auto_map", None)
    files["tokenizer_config.json"] = json.dumps(official, indent=2, ensure_ascii=False).encode()
    files["tokenizer.model"] = (original / "tokenizer.model").read_bytes()
    return files, config, []
