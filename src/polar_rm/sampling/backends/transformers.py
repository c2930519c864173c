"""Policies that run in this process, on transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    TopPLogitsWarper,
)

from polar_rm.checkpoints.sources import gguf_in, gguf_options, model_folder
from polar_rm.errors import PolarError
from polar_rm.sampling.policies import Decoding, Policy, Request


@dataclass(frozen=True, slots=True)
class Sample:
    """finish_reason: ``stop`` at the end of text, ``length`` at the limit. n_tokens: generated, without the end of text."""

    text: str
    finish_reason: str
    n_tokens: int


class TransformersPolicy:
    """A loaded policy. Raises PolarError when its model can't be loaded or has no chat template that it needs."""

    def __init__(self, policy: Policy, *, dtype: torch.dtype, device: str) -> None:
        self.policy = policy
        self.tokenizer, self.model = _load(policy.model, policy.gguf_file, policy.n_layers, dtype, device)
        if policy.kind == "chat" and not self.tokenizer.chat_template:
            raise PolarError(f"policy {policy.name!r}: {policy.model} has no chat template; a base policy needs none")

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request]) -> list[Sample]:
        """One sample per request, generated as one batch, padded on the left.

        Raises:
            PolarError: a prompt and the tokens asked for exceed the model's context.
        """
        ids = [self._encode(request) for request in requests]
        decoding, context = self.policy.decoding, self.model.config.max_position_embeddings
        for request, prompt in zip(requests, ids, strict=True):
            if len(prompt) + decoding.max_new_tokens > context:
                raise PolarError(
                    f"policy {self.policy.name!r}, prompt {request.prompt_id!r}: {len(prompt)} tokens and "
                    f"{decoding.max_new_tokens} new ones exceed the context of {context}"
                )
        width = max(map(len, ids))
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        batch = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in ids], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in ids], device=self.model.device)
        output = self.model.generate(
            batch,
            attention_mask=mask,
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([_Draw(decoding, [request.seed for request in requests])]),
            pad_token_id=padding,
            stop_strings=list(self.policy.stop) or None,
            tokenizer=self.tokenizer,
        )
        return [self._decode(row.tolist()) for row in output[:, width:]]

    def _encode(self, request: Request) -> list[int]:
        if self.policy.kind == "base":
            ids: list[int] = self.tokenizer(self.policy.text(request.prompt))["input_ids"]
            return ids
        messages = self.policy.messages(request.prompt)
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        rendered: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return rendered

    def _decode(self, ids: list[int]) -> Sample:
        ends = {self.tokenizer.eos_token_id, self.tokenizer.pad_token_id, *_listed(self.model.generation_config.eos_token_id)}
        length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
        cuts = [text.find(stop) for stop in self.policy.stop if stop in text]
        is_done = length < len(ids) or length < self.policy.decoding.max_new_tokens or bool(cuts)
        if self.policy.kind == "base":  # the blank behind "Answer:" belongs to the template
            text = (text[: min(cuts)] if cuts else text).strip()
        return Sample(text, "stop" if is_done else "length", length)


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token a sequence, drawn by the Gumbel trick: the argmax of logits plus Gumbel noise is a softmax sample.

    Every sequence has a generator of its own. ``generate(do_sample=True)`` has one for the batch: there a sample depends on
    what it was batched with.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int]) -> None:
        self.decoding = decoding
        self.nucleus = TopPLogitsWarper(decoding.top_p)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # scores: [batch, vocabulary]. The nucleus is looked for among the top k alone, as everywhere: sorting them is cheap.
        values, ids = scores.float().topk(self.decoding.top_k or scores.shape[-1], dim=-1)
        values = self.nucleus(input_ids, values / self.decoding.temperature)
        uniform = torch.stack([torch.rand(values.shape[-1], generator=generator) for generator in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7))).to(values.device)
        drawn = ids.gather(-1, (values + noise).argmax(-1, keepdim=True))
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


def _listed(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


@lru_cache(maxsize=2)  # policies that share a model differ in prompts and decoding only
def _load(source: str, named: str | None, n_layers: int | None, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    folder = model_folder(source)
    gguf_file = gguf_in(folder, named)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
        options = gguf_options(gguf_file)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise PolarError(f"{folder}: {str(error).splitlines()[0]}") from error
    if n_layers is not None:
        model.model.layers = model.model.layers[:n_layers]
    return tokenizer, model.to(device).eval()
