"""A reward function for OpenRLHF 0.11, whose option takes this file's path:

    --reward.remote_url $(python -c "import polar_rm.rft.openrlhf as f; print(f.__file__)")
    --data.label_key reference  --reward.clip_range -20 20

POLAR_URL names the server; it, POLAR_MODEL, POLAR_API_KEY and POLAR_STRIP_THINKING are read from the environment of OpenRLHF's
rollout actors. Where the server is ours and needs no key, its route does the same: ``--reward.remote_url URL/get_reward``.

Widen the clip. OpenRLHF cuts rewards at -10 by default, and POLAR's go below (the published model gives -11.03 to a wrong
answer), so the worst answers would look alike.
"""

from __future__ import annotations

import os
from typing import Any

from polar_rm.errors import PolarError
from polar_rm.protocols.base import sigmoid
from polar_rm.protocols.openrlhf import openrlhf_item, openrlhf_reply
from polar_rm.rft.items import client_options, score_item
from polar_rm.rft.merging import shared_merger


def reward_func(queries: list[str], prompts: list[str], labels: list[Any], **_: Any) -> dict[str, Any]:
    """``rewards`` (raw), ``scores`` (their sigmoid, for dynamic filtering) and ``extra_logs``: lists with one value per answer.

    OpenRLHF calls it with one answer at a time, from many threads; the calls are merged into few requests. queries: prompts with
    their answers. labels: references, texts or messages, or ``{"reference": ..., "prompt": ...}`` with the prompt as it was
    before the policy's template, which is what the reward model was trained on.

    Raises:
        PolarError: an answer, a label, a variable or the server is not what it should be.
        ScoreError: an answer has no reward. OpenRLHF logs either, and stops when it misses the reward.
    """
    merger = shared_merger(**client_options())
    strip = _switch("POLAR_STRIP_THINKING")
    items = [openrlhf_item(*row) for row in zip(queries, prompts, labels, strict=True)]
    stripped = [
        # An empty reference has been said to be meant, or the item would have been refused.
        score_item(item.prompt, item.output, item.reference, strip_thinking=strip, without_reference=True)
        for item in items
    ]
    futures = [merger.submit(item) for item in stripped]
    results = [future.result() for future in futures]
    return openrlhf_reply(results, [sigmoid(result.reward) for result in results])


def _switch(variable: str) -> bool:
    value = os.environ.get(variable, "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise PolarError(f"the environment variable {variable}: expected 1 or 0, not {value!r}")
