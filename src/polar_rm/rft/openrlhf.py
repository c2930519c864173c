"""A reward function for OpenRLHF 0.11, which takes the path of this file:

    --reward.remote_url $(python -c "import polar_rm.rft.openrlhf as f; print(f.__file__)")
    --data.label_key reference  --reward.clip_range -20 20

POLAR_URL is the server's address. It, POLAR_MODEL, POLAR_API_KEY, POLAR_STRIP_THINKING and POLAR_TRANSFORM (``raw`` by default,
see :mod:`polar_rm.rewards.transforms`) are read from the environment of OpenRLHF's rollout actors. A server of ours without a key
has a route that does the same, for raw rewards: ``--reward.remote_url URL/get_reward``.

Widen the clip range. By default OpenRLHF clips rewards at -10. POLAR's rewards are sometimes lower (the published model gives
-11.03 to a wrong answer), so the worst answers would get equal rewards.
"""

from __future__ import annotations

import os
from typing import Any

from polar_rm.errors import PolarError
from polar_rm.protocols.openrlhf import openrlhf_item, openrlhf_reply
from polar_rm.rewards.calibration import sigmoid
from polar_rm.rft.items import client_options, score_item
from polar_rm.rft.merging import shared_merger


def reward_func(queries: list[str], prompts: list[str], labels: list[Any], **_: Any) -> dict[str, Any]:
    """``rewards`` (after POLAR_TRANSFORM), ``scores`` (the sigmoid of raw rewards, for dynamic filtering) and ``extra_logs``:
    lists with one value per answer.

    OpenRLHF calls it with one answer at a time, from many threads; the calls are merged into few requests. queries: prompts with
    their answers. labels: references (texts or messages), or ``{"reference": ..., "prompt": ...}`` with the prompt before the
    policy's template, which is what the reward model was trained on.

    Raises:
        PolarError: an answer, a label, a variable or the server is invalid.
        ScoreError: an answer has no reward. OpenRLHF logs both errors, and stops because the reward is missing.
    """
    merger = shared_merger(**client_options(), transform=os.environ.get("POLAR_TRANSFORM") or "raw")
    strip = _boolean("POLAR_STRIP_THINKING")
    items = [openrlhf_item(*row) for row in zip(queries, prompts, labels, strict=True)]
    stripped = [
        # An empty reference is intended here: openrlhf_item has refused all others.
        score_item(item.prompt, item.output, item.reference, strip_thinking=strip, without_reference=True)
        for item in items
    ]
    futures = [merger.submit(item) for item in stripped]
    results = [future.result() for future in futures]
    reply = openrlhf_reply(results, [sigmoid(result.reward) for result in results])
    return reply | {"rewards": [merger.transformed(result) for result in results]}


def _boolean(variable: str) -> bool:
    value = os.environ.get(variable, "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise PolarError(f"the environment variable {variable}: expected 1 or 0, not {value!r}")
