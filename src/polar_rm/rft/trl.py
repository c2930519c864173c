"""Reward function for TRL's ``GRPOTrainer`` and ``RLOOTrainer``. It does not import TRL, and with a server it does not need
torch.

    reward = PolarReward("http://127.0.0.1:30000")  # or the folder of a reward model, to score in this process
    GRPOTrainer(model=..., reward_funcs=reward, train_dataset=...)  # rows {prompt, reference[, wrapper]}

A POLAR checkpoint can't be an entry of ``reward_funcs`` itself: TRL would pass it prompt and completion, but never the reference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from polar_rm.client.blocking import RewardClient
from polar_rm.common.http import is_address
from polar_rm.conversion.official import native_folder
from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem, Wrapper, flatten, group_items, references_of
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.combining import Combine, check_combine
from polar_rm.rewards.outcomes import Reward, rewards
from polar_rm.rewards.transforms import Transform, check_name, check_transform, needs_anchors, needs_card
from polar_rm.rft.items import score_item, transformed
from polar_rm.rft.measures import group_std, likeness, repetition

_Score = Callable[[Sequence[ScoreItem]], list[Reward]]
"""Rewards of items, with anchors if the transform needs them."""


class PolarReward:
    """Rewards of completions, compared with a reference from a column of the data set.

    source: a reward server's URL, which is checked immediately, or a reward model's folder. reference_column: holds strings or
    lists of messages, or lists of several of them. combine: how the rewards under several references become one, see
    :data:`polar_rm.rewards.combining.Combine`. wrapper: how the completion follows the prompt, see :class:`ScoreItem`; a row's
    column ``wrapper`` takes precedence. strip_thinking: remove thinking from completion and reference. transform: a name of
    :mod:`polar_rm.rewards.transforms`. GRPO scales groups itself, and with several ranks each rank sees a part of the batch, so
    use none with it that goes by groups or batches. calibration: in place of the card that the folder, our server or, with other
    servers, ``model`` brings. client: options of :class:`RewardClient`, such as ``api_key``, or ``model`` for servers other than
    ours.

    Raises:
        PolarError: no reward server answers at the URL, or the folder or the transform does not exist.

    TRL also logs ``polar/cut``, the share of items that were too long for the reward model, with a transform
    ``polar/raw_reward``, and the means of
    :mod:`polar_rm.rft.measures`: ``polar/repetition``, ``polar/likeness`` and ``polar/group_std``.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        reference_column: str = "reference",
        wrapper: Wrapper = "sft",
        strip_thinking: bool = False,
        transform: Transform = "raw",
        combine: Combine = "mean",
        calibration: Calibration | None = None,
        **client: Any,
    ) -> None:
        self.__name__ = "polar"  # TRL names its metrics after it: rewards/polar/mean and so on
        self.source, self.client = str(source), client
        self.reference_column, self.wrapper, self.strip_thinking = reference_column, wrapper, strip_thinking
        self.transform, self.combine = transform, combine
        self.calibration = calibration
        check_name(transform)
        check_combine(combine, transform)
        self._score: _Score | None = self._open(check=True)
        check_transform(transform, self.calibration)  # before the first batch is generated

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float]:
        """One reward per completion; prompts and completions are strings or lists of messages.

        Raises:
            PolarError: the data set has no column of references, or an item is invalid.
            ScoreError: an item has no reward. For None, TRL would assume that the reward does not apply, and continue.
        """
        references = columns.get(self.reference_column)
        if references is None:
            raise PolarError(
                f"the data set has no column {self.reference_column!r} with references (reference_column); it has "
                f"{', '.join(sorted(columns.keys() - {'trainer_state', 'log_extra', 'log_metric'})) or 'only prompts'}"
            )
        wrappers = columns.get("wrapper") or [None] * len(prompts)
        rows = zip(prompts, completions, references, wrappers, strict=True)
        items = [self._item(number, *row) for number, row in enumerate(rows, 1)]
        if self._score is None:
            self._score = self._open()
        scored = self._score(items)
        values = transformed(self.transform, items, scored, self.calibration)
        if items and (log := columns.get("log_metric")):
            for name, value in self._metrics(items, scored, values).items():
                log(name, value)
        return values

    def __getstate__(self) -> dict[str, Any]:
        """The state without connections and weights, which are opened again: some trainers send this object to another
        process."""
        return {**self.__dict__, "_score": None}

    @property
    def _is_url(self) -> bool:
        return is_address(self.source) and not Path(self.source).is_dir()

    def _open(self, *, check: bool = False) -> _Score:
        anchored = needs_anchors(self.transform)
        if self._is_url:
            client = RewardClient(self.source, **self.client)
            if check:  # before hours of work without a reward server
                try:
                    client.check()
                    if needs_card(self.transform) and self.calibration is None:
                        self.calibration = client.calibration()
                except PolarError:
                    client.close()
                    raise
            return _from_server(client, anchored, self.combine)
        if self.client:
            raise PolarError(f"{self.source} is a folder, not a URL: {', '.join(self.client)} can't be used with it")
        folder = native_folder(self.source)
        if needs_card(self.transform) and self.calibration is None:
            self.calibration = Calibration.load(folder)
            check_transform(self.transform, self.calibration)  # before the weights are loaded
        return _in_process(folder, anchored, self.combine)

    def _metrics(self, items: Sequence[ScoreItem], scored: Sequence[Reward], values: Sequence[float]) -> dict[str, float]:
        texts = [flatten(item.output) for item in items]
        metrics = {
            "polar/cut": fmean(reward.truncated for reward in scored),
            "polar/repetition": fmean(map(repetition, texts)),
            "polar/likeness": fmean(
                max(likeness(text, flatten(reference)) for reference in references_of(item))
                for text, item in zip(texts, items, strict=True)
            ),
        }
        if self.transform != "raw":
            metrics["polar/raw_reward"] = fmean(reward.reward for reward in scored)
        if (spread := group_std(values, group_items(items))) is not None:
            metrics["polar/group_std"] = spread
        return metrics

    def _item(self, number: int, prompt: Any, completion: Any, reference: Any, wrapper: Wrapper | None) -> ScoreItem:
        try:
            return score_item(prompt, completion, reference, wrapper=wrapper or self.wrapper, strip_thinking=self.strip_thinking)
        except PolarError as error:
            raise PolarError(f"completion {number} of the batch: {error}") from None


class AsyncPolarReward(PolarReward):
    """:class:`PolarReward` for TRL's event loop, in which several asynchronous reward functions run concurrently.

    Every trainer has its own event loop, while a client belongs to one loop; so the client sends requests from its own thread.
    TRL supports asynchronous objects from version 1.14 on and fails on them before; :class:`PolarReward` works with all versions.
    """

    async def __call__(  # type: ignore[override]
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float]:
        return await asyncio.to_thread(super().__call__, prompts, completions, completion_ids, **columns)


def _from_server(client: RewardClient, anchored: bool, combine: Combine) -> _Score:
    def score(items: Sequence[ScoreItem]) -> list[Reward]:
        outcomes = client.score(items, anchored=anchored, combine=combine)
        rewards(outcomes)  # raises if an item has none
        return [outcome for outcome in outcomes if isinstance(outcome, Reward)]

    return score


def _in_process(folder: Path, anchored: bool, combine: Combine) -> _Score:
    from polar_rm.model.devices import pick_device
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.scoring.scorer import Scorer

    scorer = Scorer(RewardModel.from_pretrained(folder, device=pick_device("auto")))
    return lambda items: list(scorer.score(items, anchored=anchored, combine=combine))
