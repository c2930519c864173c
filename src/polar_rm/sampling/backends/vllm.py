"""Policies that run on vLLM in this process, for throughput on a GPU without a server."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Event
from typing import Any, Literal

from pydantic import Field, model_validator

from polar_rm.common.extras import needs
from polar_rm.common.iteration import windows
from polar_rm.common.sources import model_folder
from polar_rm.common.text import first_line
from polar_rm.errors import PolarError
from polar_rm.model.language_models import check_language_model
from polar_rm.sampling.backends.rendering import check_chat_template, encode
from polar_rm.sampling.base import Emit, Machine, NoSample, Policy, Request

_BATCHES_PER_CALL = 8  # vLLM schedules the requests of a call itself; results are stored after each call


class VLLMPolicy(Policy):
    """A policy that runs in this process on vLLM, which schedules all requests itself."""

    backend: Literal["vllm"] = "vllm"
    engine: dict[str, Any] = Field(
        {}, description="Further arguments of vllm.LLM, such as {tensor_parallel_size: 2, max_model_len: 8192}."
    )

    @model_validator(mode="after")
    def _holds_no_reserved_key(self) -> VLLMPolicy:
        for key, instead in {"model": "model", "revision": "revision", "dtype": "precision"}.items():
            if key in self.engine:
                raise ValueError(f"policy {self.name!r}: engine can't hold {key}; see the key {instead}")
        return self

    def open(self, machine: Machine) -> VLLMBackend:
        """See :meth:`Policy.open`."""
        return VLLMBackend(self, machine)


class VLLMBackend:
    """A loaded policy. Raises PolarError when vLLM is missing or can't load the model."""

    def __init__(self, policy: VLLMPolicy, machine: Machine) -> None:
        with needs("vllm", f"policy {policy.name!r}: backend vllm"):
            import vllm
        self.policy, self.batch_size, self.parameters = policy, machine.batch_size, vllm.SamplingParams
        check_language_model(policy.model)
        dtype = {"auto": "auto", "bf16": "bfloat16", "fp32": "float32"}[machine.precision]
        try:
            self.llm = vllm.LLM(str(model_folder(policy.model)), revision=policy.revision, dtype=dtype, **policy.engine)
        except (OSError, ValueError, RuntimeError, TypeError) as error:  # TypeError: an unknown argument
            raise PolarError(f"policy {policy.name!r}: vLLM can't load {policy.model}: {first_line(error)}") from error
        self.tokenizer = self.llm.get_tokenizer()
        check_chat_template(policy, self.tokenizer)

    def run(self, requests: Iterable[Request], emit: Emit, stop: Event) -> None:
        """See :class:`Backend`."""
        context = self.llm.llm_engine.model_config.max_model_len
        for window in windows(requests, _BATCHES_PER_CALL * self.batch_size):
            if stop.is_set():
                return
            fitting: list[tuple[Request, list[int]]] = []
            for request in window:
                ids = encode(self.policy, self.tokenizer, request, context)
                if isinstance(ids, NoSample):
                    emit(request, ids)
                else:
                    fitting.append((request, ids))
            prompts = [{"prompt_token_ids": ids} for _, ids in fitting]
            outputs = self.llm.generate(prompts, [self._parameters(request) for request, _ in fitting], use_tqdm=False)
            for (request, _), output in zip(fitting, outputs, strict=True):
                [sample] = output.outputs
                emit(request, self.policy.answer(sample.text, sample.finish_reason, len(sample.token_ids)))

    def _parameters(self, request: Request) -> Any:
        decoding = self.policy.decoding
        return self.parameters(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k or -1,
            max_tokens=decoding.max_new_tokens,
            seed=request.seed,
            stop=list(self.policy.stop) or None,
        )
