"""A small causal language model from random weights, from which a small reward model can start.

It reads rows in the order of a reward model's sequences, all answers of a row by one policy, and so learns to continue in the
style of what it reads. From it the loss of `polar pretrain` falls within ten steps; from random weights it hardly leaves its
plateau in a hundred. `recipes/demo_model.py` and `benchmarks/proof` use it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from polar_rm.common.config import Config
from polar_rm.common.files import write_file, write_json
from polar_rm.encoding.settings import REWARD_TOKEN, SEPARATOR_TOKEN
from polar_rm.model.native import add_role_tokens
from polar_rm.model.presets import preset_shape
from polar_rm.records import Trajectory, flatten

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_WARMUP = 30  # steps


class SmallLanguageModel(Config):
    """Shape and training of the language model."""

    size: str = Field(description="Layers x width, such as 4x128, or a preset of `polar config pretrain`.")
    vocabulary: PositiveInt = Field(description="Tokens of its byte-level BPE, without the reward model's two.")
    positions: PositiveInt = Field(description="The longest sequence, in tokens.")
    steps: PositiveInt
    rows: PositiveInt = Field(description="Rows of a step.")
    row_tokens: PositiveInt
    lr: PositiveFloat
    prompt_tokens: PositiveInt = Field(description="Last tokens of a prompt; the rest is cut.")
    answer_tokens: PositiveInt = Field(description="First tokens of an answer; the rest is cut.")


Texts = Sequence[Sequence[Sequence[list[int]]]]
"""Of each policy, of each prompt: ids of the prompt and an answer."""


def train_language_model(rows: Iterable[Trajectory], settings: SmallLanguageModel, folder: Path) -> None:
    """Train tokenizer and model on the trajectories, and save them in transformers' layout."""
    rows = list(rows)
    tokenizer = train_tokenizer([row.text for row in rows], settings.vocabulary)
    texts: dict[str, dict[str, list[list[int]]]] = {}
    for row in rows:
        prompt = flatten(row.prompt)
        ids = (
            tokenizer.encode(f"{prompt}\n").ids[-settings.prompt_tokens :]
            + tokenizer.encode(row.text).ids[: settings.answer_tokens]
        )
        texts.setdefault(row.policy, {}).setdefault(prompt, []).append(ids)
    torch.manual_seed(0)
    model = _new_model(settings, tokenizer.get_vocab_size())
    ordered = [[by_prompt[prompt] for prompt in sorted(by_prompt)] for _, by_prompt in sorted(texts.items())]
    _train(model, ordered, tokenizer, settings)
    model.save_pretrained(folder)
    write_file(folder / "tokenizer.json", tokenizer.to_str())
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIALS})


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE with the two tokens of a reward model's sequences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIALS.values()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=3
    )
    tokenizer.train_from_iterator(texts, trainer)
    return add_role_tokens(tokenizer)


def _new_model(settings: SmallLanguageModel, vocabulary: int) -> LlamaForCausalLM:
    width, layers, heads, key_value_heads, feed_forward = preset_shape(settings.size)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        intermediate_size=feed_forward,
        max_position_embeddings=settings.positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def _train(model: LlamaForCausalLM, texts: Texts, tokenizer: Tokenizer, settings: SmallLanguageModel) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.05)
    rng = random.Random(0)
    for step in range(1, settings.steps + 1):
        decay = 1 - 0.95 * max(0, step - _WARMUP) / (settings.steps - _WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1, step / _WARMUP) * decay
        ids = torch.tensor([language_row(texts, tokenizer, settings.row_tokens, rng) for _ in range(settings.rows)])
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"language model: {step}/{settings.steps}, loss {loss.item():.3f}", flush=True)


def language_row(texts: Texts, tokenizer: Tokenizer, row_tokens: int, rng: random.Random) -> list[int]:
    """The ids of a row: ``[bos] prompt answer <|reward|> prompt answer [score]``, again and again, all of one policy.

    The two answers to a prompt differ where there are two.
    """
    separator, score = tokenizer.token_to_id(SEPARATOR_TOKEN), tokenizer.token_to_id(REWARD_TOKEN)
    prompts = rng.choice(texts)
    ids: list[int] = []
    while len(ids) <= row_tokens:
        answers = rng.choice(prompts)
        answers = rng.sample(answers, len(answers)) if len(answers) > 1 else answers
        ids += [0, *answers[0], separator, *answers[-1], score]
    return ids[: row_tokens + 1]
