"""A reward function for verl 0.9, for its reward loop with the managers naive and dapo.

    reward.custom_reward_function.path=pkg://polar_rm.rft.verl
    +reward.custom_reward_function.reward_kwargs.url=http://HOST:30000

A row of verl's data holds the reference in ``reward_model.ground_truth`` and the prompt in ``extra_info.prompt``, because verl
does not pass the prompt on. Each is a text or a list of messages. ``recipes/verl_ppo.yaml`` is the paper's PPO. Do not use the
manager rate_limited: it turns every failure into 0, which is a good reward here, and asks for one reward at a time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from polar_rm.errors import PolarError
from polar_rm.protocols import Engine
from polar_rm.records import Wrapper
from polar_rm.rewards.combining import Combine
from polar_rm.rewards.transforms import ItemTransform
from polar_rm.rft.items import client_options, score_item
from polar_rm.rft.merging import shared_merger


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    model: str | None = None,
    api_key: str | None = None,
    engine: Engine | None = None,
    prompt_key: str = "prompt",
    reference_key: str | None = None,
    wrapper: Wrapper = "sft",
    strip_thinking: bool = False,
    transform: ItemTransform = "raw",
    combine: Combine = "mean",
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
) -> dict[str, float]:
    """The reward of one response as ``score``, and ``truncated``, 1 if its texts were truncated; verl logs both. With a
    ``transform`` of :mod:`polar_rm.rewards.transforms`, ``score`` is after it, and ``raw_reward`` before.

    verl calls it concurrently for many responses; the calls of a process are merged into few requests. The options after
    ``extra_info`` are set under ``reward_kwargs``. url, model, api_key, engine: options of
    :class:`~polar_rm.client.AsyncRewardClient`; their defaults are POLAR_URL, POLAR_MODEL and POLAR_API_KEY of the worker's
    environment. prompt_key, reference_key: keys of ``extra_info``; without reference_key the reference is ``ground_truth``. It
    may be a list of several references; combine: how the rewards under them become one.
    reward_router_address: set by verl if it serves the reward model itself (``reward_model.enable``). Requests then go to that
    server, and ``model`` must name its folder. reward_model_tokenizer: set by verl too, not used.

    Raises:
        PolarError: prompt, reference, server or transform are invalid, or the transform needs a card that the server lacks.
        ScoreError: this response has no reward. Training stops, instead of learning from an invented number.
    """
    extra = extra_info or {}
    fields = [prompt_key] if reference_key is None else [prompt_key, reference_key]
    if missing := [key for key in fields if extra.get(key) is None]:
        raise PolarError(f"data source {data_source!r}: extra_info has no {missing[0]!r}; it holds {', '.join(map(repr, extra))}")
    reference = ground_truth if reference_key is None else extra[reference_key]
    item = score_item(extra[prompt_key], solution_str, reference, wrapper=wrapper, strip_thinking=strip_thinking)
    if reward_router_address:
        url = reward_router_address
    arguments = {"POLAR_URL": url, "POLAR_MODEL": model, "POLAR_API_KEY": api_key}
    options = client_options({**os.environ, **{name: value for name, value in arguments.items() if value}})
    merger = shared_merger(**options, engine=engine, transform=transform, combine=combine)
    reward = await asyncio.wrap_future(merger.submit(item))
    values = {"score": merger.transformed(reward), "truncated": float(reward.truncated)}
    return values if transform == "raw" else {**values, "raw_reward": reward.reward}
