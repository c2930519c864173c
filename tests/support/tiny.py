"""Small models and tokenizers that tests build quickly, without downloads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from polar_rm.encoding.settings import EncoderSettings
from polar_rm.model.reward_model import RewardModel

CONFIGS: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
}

_TEXT = """The quick brown fox jumps over the lazy dog while a slow green turtle watches from the river bank.
What is the capital of China? Beijing. Shanghai is larger, but it is not the capital of the country.
It's 12,345.6 metres high, isn't it? We don't know; they've measured it twice and got 7 and 8.
def f(x):\n    return x ** 2\n\nprint(f(3))\n\tnaïve Ünïcode 中文 日本 🙂
"""


@cache
def tokenizer(bos: bool = False) -> Tokenizer:
    """A byte-level BPE tokenizer of about 400 tokens, as in GPT-2 and Llama 3, with special tokens. bos: add BOS to texts."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    specials = [AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(
        [_TEXT] * 4,
        trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    template = [processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])] if bos else []
    built.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), *template])
    return built


def config(family: str, **changes: object) -> PretrainedConfig:
    """A config with two layers, grouped-query attention and the vocabulary of :func:`tokenizer`."""
    values = {
        "vocab_size": tokenizer().get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "sliding_window": None,
        "initializer_range": 0.2,  # large, so that attention is far from uniform and a wrong mask changes the scores
        "pad_token_id": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if family == "llama":
        del values["sliding_window"]
    return CONFIGS[family](**(values | changes))


def causal_lm(folder: Path, family: str = "llama", *, bos: bool = False, **changes: object) -> Path:
    """Write a folder with a random language model and its tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config(family, **changes)).save_pretrained(folder)
    tokenizer(bos).save(str(folder / "tokenizer.json"))
    specials = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **specials}))
    return folder


def gpt_neox(folder: Path, **changes: object) -> Path:
    """Write a folder with a random language model of a family that is not known, but is exact."""
    size = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return with_config(folder, GPTNeoXConfig(**size, max_position_embeddings=2048, **changes))


def with_config(folder: Path, config: PretrainedConfig) -> Path:
    """Write a folder with a random language model of any family, and the tokenizer."""
    causal_lm(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def reward_model(
    folder: Path, family: str = "llama", *, head: bool = True, settings: EncoderSettings | None = None
) -> RewardModel:
    """A reward model on a random language model. head: the head is random instead of zero, and the model counts as trained."""
    model = RewardModel.from_causal_lm(causal_lm(folder, family), settings=settings or EncoderSettings())
    if head:
        torch.nn.init.normal_(model.backbone.score.weight, generator=torch.Generator().manual_seed(1))
        model.mark_trained()
    return model.eval()
