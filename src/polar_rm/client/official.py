"""A drop-in for the official POLAR client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from polar_rm.client.blocking import RewardClient
from polar_rm.common.http import server_url
from polar_rm.common.paths import check_model
from polar_rm.conversion.layouts import is_official
from polar_rm.encoding.encoder import Encoder
from polar_rm.encoding.sequences import TokenSequence, render, tokenize
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.errors import PolarError
from polar_rm.protocols import Engine
from polar_rm.rewards.outcomes import rewards


class RewardModelClient:
    """Drop-in replacement of POLAR's and XTuner's client: the same constructor and calls, so that a script changes one import.

    It differs where the official client is wrong: a failure raises an error instead of returning None, token ids are sent instead
    of text (fast tokenizers split the scoring token in a text), and tokenizers need no remote code. path: a native or official
    checkpoint, a folder or an id of the Hub, of which only the tokenizer is read; its limits are the default.
    server_address: ``HOST:PORT``, with or without a scheme. timeout: seconds of one attempt.
    deadline: seconds of one call with all its attempts.

    Raises:
        PolarError: the address or the type of server is invalid, or ``path`` is no checkpoint.
    """

    def __init__(
        self,
        path: str | Path,
        max_length: int | None = None,
        max_response_length: int | None = None,
        response_cut_side: Literal["right", "left"] | None = None,
        server_type: Literal["sglang", "vllm", "lmdeploy"] = "sglang",
        server_address: str = "127.0.0.1:30000",
        *,
        timeout: float = 120.0,
        deadline: float = 600.0,
    ) -> None:
        if server_type not in ("sglang", "vllm", "lmdeploy"):
            raise PolarError(f"unknown server_type {server_type!r}; known: sglang, vllm, lmdeploy")
        self._url = server_url(server_address)
        self._options = {"timeout": timeout, "deadline": deadline}
        saved = _encoder(path)
        options = {"max_length": max_length, "max_response_length": max_response_length, "response_cut_side": response_cut_side}
        changes: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
        settings: EncoderSettings = replace(saved.settings, **changes)
        self.encoder = Encoder(saved.source, settings)
        self.server_type: Engine = server_type
        self._clients: dict[Engine, RewardClient] = {}

    def __call__(self, data: Any) -> list[float]:
        """Raw rewards of items ``{prompt, reference, output[, wrapper]}`` or rendered texts.

        Raises:
            PolarError: an item can't be encoded.
            ScoreError: an item got no reward.
        """
        return self._request(data, self.server_type)

    def encode(self, data: Any) -> str | list[str]:
        """The rendered text of one item, or of each in a list; texts pass through."""
        if isinstance(data, list):
            return [text if isinstance(text, str) else render(self._ids(text), self.encoder) for text in data]
        return data if isinstance(data, str) else render(self._ids(data), self.encoder)

    def sglang_request_reward(self, data: Any) -> list[float]:
        """Raw rewards from SGLang or our server."""
        return self._request(data, "sglang")

    def vllm_request_reward(self, data: Any) -> list[float]:
        """Raw rewards from vLLM with either pooling task, or from our server."""
        return self._request(data, "vllm")

    def lmdeploy_request_reward(self, data: Any) -> list[float]:
        """Raw rewards from LMDeploy, or from our server with ``--pooling-flavour lmdeploy``."""
        return self._request(data, "lmdeploy")

    def _request(self, data: Any, engine: Engine) -> list[float]:
        items = data if isinstance(data, list) else [data]
        sequences = [self._ids(item) for item in items]
        if engine not in self._clients:
            self._clients[engine] = RewardClient(self._url, engine=engine, **self._options)
        return rewards(self._clients[engine].score_ids(sequences))

    def _ids(self, item: Any) -> list[int]:
        if isinstance(item, str):
            ids = tokenize(item, self.encoder)
            TokenSequence.from_ids(ids, self.encoder)  # raises if the text is no rendered item
            return ids
        try:
            [(_, tree)] = self.encoder.encode_outputs(
                item["prompt"], item["reference"], [item["output"]], item.get("wrapper", "sft")
            )
        except (TypeError, KeyError) as error:
            raise PolarError(f"expected an item with prompt, reference and output, or a rendered text: {error!r}") from None
        return tree.sequence(0)


def _encoder(path: str | Path) -> Encoder:
    folder = check_model(path, weights=False)
    if not is_official(folder):
        return Encoder.from_pretrained(folder)
    from polar_rm.conversion.internlm2 import official_encoder  # it needs torch

    return official_encoder(folder)
