"""Small checkpoints in the official format, and the results of the official code on them, written from its published behaviour.

The oracle of the tokenizer is SentencePiece itself; the oracle of the model is a plain forward pass over the packed layout.
"""

from __future__ import annotations

import json
import re
from functools import cache
from io import BytesIO
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

from support import tiny

UNUSED = [f"[UNUSED_TOKEN_{n}]" for n in range(4)] + ["[UNUSED_TOKEN_130]", "[UNUSED_TOKEN_145]", "Ｅ"]
ADDED = {"[UNUSED_TOKEN_0]": "<|reward|>", "[UNUSED_TOKEN_145]": "<|im_end|>"}
REWARD = "[UNUSED_TOKEN_130]"


@cache
def sentencepiece_model(**changes: object) -> bytes:
    """A BPE model with the settings of InternLM2's: no normalisation, no space in front, byte fallback."""
    options = {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "user_defined_symbols": UNUSED,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
    }
    model = BytesIO()
    lines = [line * 3 for line in (tiny._TEXT + "aaaa   ----   Ａ Ｅ Ｆ\n" * 3).splitlines()]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines * 4), model_writer=model, **(options | changes))
    return model.getvalue()


def config(**changes: object) -> dict:
    """The keys of POLAR-7B's config, with three narrow layers and grouped queries."""
    values = {
        "architectures": ["InternLM2ForRewardModel"],
        "attn_implementation": "flash_attention_2",
        "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForRewardModel"},
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 262144,
        "model_type": "internlm2",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "reward_token_id": sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).piece_to_id(REWARD),
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"},
        "rope_theta": 50000000,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": 700,
    }
    return values | changes


def weights(config: dict, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    hidden, wide, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    packed = hidden + 2 * config["num_key_value_heads"] * (hidden // config["num_attention_heads"])
    shapes = {"model.tok_embeddings.weight": (vocabulary, hidden), "model.norm.weight": (hidden,), "v_head.weight": (1, hidden)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{i}.attention.wqkv.weight": (packed, hidden),
            f"model.layers.{i}.attention.wo.weight": (hidden, hidden),
            f"model.layers.{i}.feed_forward.w1.weight": (wide, hidden),
            f"model.layers.{i}.feed_forward.w3.weight": (wide, hidden),
            f"model.layers.{i}.feed_forward.w2.weight": (hidden, wide),
            f"model.layers.{i}.attention_norm.weight": (hidden,),
            f"model.layers.{i}.ffn_norm.weight": (hidden,),
        }
    random = torch.Generator().manual_seed(0)
    return {name: (torch.randn(shape, generator=random) * 0.4).to(dtype) for name, shape in shapes.items()}


def tokenizer_config(**changes: object) -> dict:
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {0: "<unk>", 1: "<s>", 2: "</s>"} | {processor.piece_to_id(piece): text for piece, text in ADDED.items()}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(index): {"content": text, **flags} for index, text in added.items()},
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
        "tokenizer_class": "InternLM2Tokenizer",
    } | changes


def checkpoint(folder: Path, *, tokenizer: dict | None = None, model: bytes | None = None, **changes: object) -> Path:
    """Write an official folder. changes: of its config."""
    folder.mkdir(parents=True)
    values = config(**changes)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer or tokenizer_config()))
    (folder / "tokenizer.model").write_bytes(model or sentencepiece_model())
    save_file(weights(values), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class SlowTokenizer:
    """The official slow tokenizer: it splits texts at the added tokens and encodes the parts with SentencePiece."""

    def __init__(self) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
        self.added = {t["content"]: int(i) for i, t in tokenizer_config()["added_tokens_decoder"].items()}
        self.split = re.compile("(" + "|".join(map(re.escape, self.added)) + ")")

    def encode(self, text: str) -> list[int]:
        ids = [1]
        for part in self.split.split(text):
            ids += [self.added[part]] if part in self.added else self.pieces.encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text without special tokens, with spaces cleaned up as in transformers' slow tokenizers."""
        text = self.pieces.decode([i for i in ids if i not in self.added.values()])
        for mark in (".", "?", "!", ","):
            text = text.replace(f" {mark}", mark)
        text = text.replace(" ' ", "'")
        for ending in ("n't", "'m", "'s", "'ve", "'re"):
            text = text.replace(f" {ending}", ending)
        return text


def client_ids(item, max_length: int = 16384, max_response_length: int = 4096, response_cut_side: str = "right") -> list[int]:
    """The ids on the server of the text that the official client sends."""
    slow = SlowTokenizer()
    prompt, reference, output = (slow.encode(text) for text in (item.prompt, item.reference, item.output))
    kept = slice(0, max_response_length) if response_cut_side == "right" else slice(-max_response_length, None)
    reference, output = reference[kept], output[kept]
    prompt = prompt[-((max_length - 4 - len(reference) - len(output)) // 2) :]
    prompt, reference, output = (slow.decode(ids) for ids in (prompt, reference, output))
    joiner = "" if item.wrapper == "pretrain" else "\n"
    return slow.encode(f"{prompt}{joiner}{reference}<|reward|>{prompt}{joiner}{output}{REWARD}")


def reward(config: dict, weights: dict[str, torch.Tensor], ids: list[int]) -> float:
    """The official model's score at the last token, in float32: packed attention, one head after another."""
    weights = {name: tensor.float() for name, tensor in weights.items()}
    kv_heads, heads = config["num_key_value_heads"], config["num_attention_heads"]
    dim, groups = config["hidden_size"] // heads, heads // kv_heads
    angle = torch.arange(len(ids))[:, None] / config["rope_theta"] ** (torch.arange(0, dim, 2) / dim)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
    future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * weights[f"{name}.weight"]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        return x * cos + torch.cat([-x[:, dim // 2 :], x[:, : dim // 2]], -1) * sin

    x = weights["model.tok_embeddings.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        packed = norm(x, f"{layer}.attention_norm") @ weights[f"{layer}.attention.wqkv.weight"].T
        outputs = []
        for kv in packed.split((groups + 2) * dim, dim=-1):
            *queries, key, value = kv.split(dim, dim=-1)
            for query in queries:
                logits = rotate(query) @ rotate(key).T / dim**0.5
                outputs.append(logits.masked_fill(future, -torch.inf).softmax(-1) @ value)
        x = x + torch.cat(outputs, -1) @ weights[f"{layer}.attention.wo.weight"].T
        y = norm(x, f"{layer}.ffn_norm")
        gate = torch.nn.functional.silu(y @ weights[f"{layer}.feed_forward.w1.weight"].T)
        gated = gate * (y @ weights[f"{layer}.feed_forward.w3.weight"].T)
        x = x + gated @ weights[f"{layer}.feed_forward.w2.weight"].T
    return float(norm(x, "model.norm")[-1] @ weights["v_head.weight"][0])
