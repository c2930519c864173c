"""Generates text with a transformers model, in batches in which every sample has its own random generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from os.path import commonprefix
from threading import Event
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TopPLogitsWarper,
)
from transformers.cache_utils import DynamicLayer

from polar_rm.common.iteration import windows
from polar_rm.errors import PolarError
from polar_rm.model.language_models import load_causal_lm
from polar_rm.sampling.backends.rendering import check_chat_template, encode
from polar_rm.sampling.base import Decoding, Emit, NoSample, Outcome, Policy, PolicyDown, Request

_BATCHES_PER_WINDOW = 16  # the requests of a window are sorted by length, which saves padding


class TransformersBackend:
    """A loaded policy.

    gguf_file: name of the GGUF file with the weights, in the model's folder. n_layers: run only the first N layers.
    batch_size: number of sequences generated together.

    Raises:
        PolarError: the model can't be loaded, or lacks the chat template that the policy needs.
    """

    def __init__(
        self,
        policy: Policy,
        dtype: torch.dtype,
        device: str,
        batch_size: int,
        *,
        gguf_file: str | None = None,
        n_layers: int | None = None,
    ) -> None:
        self._take(policy, *_load(policy.model, gguf_file, n_layers, dtype, device), batch_size)

    @classmethod
    @contextmanager
    def around(cls, policy: Policy, tokenizer: Any, model: Any, batch_size: int) -> Iterator[TransformersBackend]:
        """A policy whose model is in memory already, such as one in training. Afterwards the model is as it was before.

        Raises:
            PolarError: the tokenizer lacks the chat template that the policy needs.
        """
        backend = cls.__new__(cls)
        backend._take(policy, tokenizer, model, batch_size)
        config, was_training = model.generation_config, model.training
        model.generation_config = _special_tokens_only(config, tokenizer)
        model.eval()
        try:
            yield backend
        finally:
            model.generation_config = config
            model.train(was_training)

    def _take(self, policy: Policy, tokenizer: Any, model: Any, batch_size: int) -> None:
        self.policy, self.batch_size = policy, batch_size
        self.tokenizer, self.model = tokenizer, model
        check_chat_template(policy, self.tokenizer)
        self.stops = StopStringCriteria(self.tokenizer, list(policy.stop)) if policy.stop else None
        # transformers renamed this argument within its fifth version.
        self.cache_name = "cache" if "cache" in signature(self.model.forward).parameters else "past_key_values"

    def run(self, requests: Iterable[Request], emit: Emit, stop: Event) -> None:
        """See :class:`Backend`. PolicyDown: a batch does not fit the device's memory."""
        # Models without position embeddings (ALiBi, state spaces) have no limit.
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for window in windows(requests, _BATCHES_PER_WINDOW * self.batch_size):
            encoded = [(encode(self.policy, self.tokenizer, request, context), request) for request in window]
            fitting = []
            for ids, request in encoded:
                if isinstance(ids, NoSample):
                    emit(request, ids)
                else:
                    fitting.append((ids, request))
            fitting.sort(key=lambda pair: len(pair[0]))
            for start in range(0, len(fitting), self.batch_size):
                batch = fitting[start : start + self.batch_size]
                outcomes = self._generate([ids for ids, _ in batch], [request.seed for _, request in batch], stop)
                if stop.is_set():
                    return
                for (_, request), outcome in zip(batch, outcomes, strict=True):
                    emit(request, outcome)

    @torch.inference_mode()
    def _generate(self, ids: Sequence[list[int]], seeds: Sequence[int], stop: Event) -> list[Outcome]:
        """Generate one batch. Padding follows the prefix that all prompts share; without such a prefix it is left padding."""
        width, padding, device = max(map(len, ids)), self.model.generation_config.pad_token_id, self.model.device
        try:
            shared, cache = self._shared_prefix(ids)
            gaps = [width - len(prompt) for prompt in ids]
            rows = [p[:shared] + [padding] * gap + p[shared:] for p, gap in zip(ids, gaps, strict=True)]
            masks = [[1] * shared + [0] * gap + [1] * (width - shared - gap) for gap in gaps]
            stopping = _Stop(stop, self.stops, width, len(ids))
            output = self.model.generate(
                torch.tensor(rows, device=device),
                attention_mask=torch.tensor(masks, device=device),
                **{self.cache_name: cache},
                max_new_tokens=self.policy.decoding.max_new_tokens,
                do_sample=False,  # GumbelSampler has already drawn the token
                logits_processor=LogitsProcessorList([GumbelSampler(self.policy.decoding, seeds)]),
                stopping_criteria=StoppingCriteriaList([stopping]),
            )
        except torch.OutOfMemoryError as error:
            raise PolicyDown(f"out of memory with batch_size {self.batch_size}; try a smaller batch_size") from error
        return [self._decode(row.tolist()[:length]) for row, length in zip(output[:, width:], stopping.lengths, strict=True)]

    def _shared_prefix(self, ids: Sequence[list[int]]) -> tuple[int, DynamicCache | None]:
        """Length of the prompts' common prefix (a system prompt or a template), and its keys and values, computed once.

        The length is 0 for models whose cache holds anything but keys and values of every token (sliding windows, state spaces).
        """
        shared = min(len(commonprefix(ids)), min(map(len, ids)) - 1)
        if len(ids) == 1 or shared < 1:
            return 0, None
        prefix = torch.tensor([ids[0][:shared]], device=self.model.device)
        cache = self.model(prefix, use_cache=True).get(self.cache_name)
        if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return 0, None
        cache.batch_repeat_interleave(len(ids))
        return shared, cache

    def _decode(self, ids: list[int]) -> Outcome:
        end_ids = set(_as_list(self.model.generation_config.eos_token_id))
        if end_ids:  # without end tokens no sequence ends early, and the padding id is an ordinary token
            end_ids.add(self.model.generation_config.pad_token_id)
        length = next((i for i, token in enumerate(ids) if token in end_ids), len(ids))
        is_done = length < len(ids) or length < self.policy.decoding.max_new_tokens
        text = self.tokenizer.decode(ids[:length], skip_special_tokens=True)
        return self.policy.answer(text, "stop" if is_done else "length", length)


class GumbelSampler(LogitsProcessor):  # type: ignore[misc]
    """Draws one token per sequence by the Gumbel trick: the argmax of logits plus Gumbel noise is a softmax sample.

    Every sequence has its own generator. ``generate(do_sample=True)`` has one for the batch, so that a sample would depend on the
    rest of its batch.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int]) -> None:
        self.decoding = decoding
        self.nucleus = TopPLogitsWarper(decoding.top_p)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # scores: [batch, vocabulary]. Top-p is applied after top-k, as in other libraries, so that only k values are sorted.
        values, ids = scores.float().topk(min(self.decoding.top_k or scores.shape[-1], scores.shape[-1]), dim=-1)
        values = self.nucleus(input_ids, values / self.decoding.temperature)
        uniform = torch.stack([torch.rand(values.shape[-1], generator=generator) for generator in self.generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7))).to(values.device)
        drawn = ids.gather(-1, (values + noise).argmax(-1, keepdim=True))
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends the whole batch within one token when ``stop`` is set, and a sequence at a stop string.

    width: number of prompt tokens, which are not searched: ``generate(stop_strings=...)`` would also find a stop string that
    begins in the prompt.
    lengths: new tokens of a sequence up to its stop string, None without one; later tokens only fill the batch.
    """

    def __init__(self, stop: Event, strings: StopStringCriteria | None, width: int, rows: int) -> None:
        self.stop, self.strings, self.width = stop, strings, width
        self.lengths: list[int | None] = [None] * rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        if self.stop.is_set() or self.strings is None:
            return torch.full((input_ids.shape[0],), self.stop.is_set(), device=input_ids.device)
        stopped: torch.Tensor = self.strings(input_ids[:, self.width :], scores)
        for row in stopped.nonzero().flatten().tolist():
            if self.lengths[row] is None:
                self.lengths[row] = input_ids.shape[1] - self.width
        return stopped


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _special_tokens_only(config: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """A config without the model's penalties and warpers, which are not part of a policy's decoding."""
    for key in ("bos_token_id", "eos_token_id"):
        value = getattr(config, key)
        if not all(type(each) is int and abs(each) < 1 << 31 for each in _as_list(value)):
            raise PolarError(f"{tokenizer.name_or_path}: {key} of its generation_config.json is {value!r:.60}: expected an id")
    end_ids = sorted({*_as_list(config.eos_token_id), *_as_list(tokenizer.eos_token_id)})
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (end_ids or [0])[0]
    return GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=end_ids or None, pad_token_id=padding)


def _truncate(model: Any, n_layers: int) -> None:
    layers = getattr(model.base_model, "layers", None)
    if layers is None:
        raise PolarError(f"n_layers is not supported for a {type(model).__name__}: it has no list of layers")
    if n_layers > len(layers):
        raise PolarError(f"n_layers must be 1 to {len(layers)}, not {n_layers}")
    model.base_model.layers = layers[:n_layers]


_loaded: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # the last model: policies often share it and differ in prompts only


def _load(source: str, gguf_file: str | None, n_layers: int | None, dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    key = (source, gguf_file, n_layers, dtype, device)
    if key not in _loaded:
        _loaded.clear()  # before loading the next model, because two may not fit into memory
        tokenizer, model = load_causal_lm(source, gguf_file, dtype)
        if n_layers is not None:
            _truncate(model, n_layers)
        model.generation_config = _special_tokens_only(model.generation_config, tokenizer)
        _loaded[key] = tokenizer, model.to(device).eval()
    return _loaded[key]
