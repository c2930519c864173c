"""Limits on what TRL logs: a run whose policy leaves them is warned about or stopped."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, Literal, Self, TypedDict

from pydantic import Field, PositiveInt, model_validator

from polar_rm.common.config import Config
from polar_rm.errors import PolarError

COLUMNS = {
    "reward": "reward",
    "kl": "kl",
    "length": "completions/mean_length",
    "repetition": "polar/repetition",
    "likeness": "polar/likeness",
    "group_std": "polar/group_std",
}
"""Quantity -> the column of ``metrics.jsonl`` that has it."""


class Limit(Config):
    """The range that a quantity must not leave, and what happens if it does."""

    min: float | None = Field(None, description="Lowest value.")
    max: float | None = Field(None, description="Highest value.")
    relative: bool = Field(False, description="min and max are multiples of the quantity's first mean, such as 0.5 and 2.")
    action: Literal["warn", "stop"] = Field("warn", description="warn: go on. stop: save a checkpoint and end; exit code 1.")

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("set min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is more than max {self.max:g}")
        return self


class MonitorConfig(Config):
    """Limits on the means of the last logged rows. A quantity that returns into its range and leaves it again is told again."""

    window: PositiveInt = Field(
        8, description="Number of logged rows whose mean is compared; nothing is told before there are as many."
    )
    reward: Limit | None = Field(None, description="Mean reward.")
    kl: Limit | None = Field(None, description="KL divergence from the starting policy, in nats a token; needs trainer.beta > 0.")
    length: Limit | None = Field(None, description="Mean number of tokens of a completion.")
    repetition: Limit | None = Field(
        Limit(max=0.5), description="Share of word 4-grams that occurred before in their completion, a mean over completions."
    )
    likeness: Limit | None = Field(None, description="F1 of the words that a completion shares with its reference, 0 to 1.")
    group_std: Limit | None = Field(
        None, description="Standard deviation of the rewards of one prompt; near 0 there is nothing to learn from."
    )

    @model_validator(mode="after")
    def _rewards_have_no_zero(self) -> Self:
        if self.reward and self.reward.relative:
            raise ValueError("reward: a multiple of a reward means nothing, because rewards have no zero; set relative=false")
        return self

    def limits(self) -> dict[str, Limit]:
        """The limits that are set, by quantity."""
        found = {name: getattr(self, name) for name in COLUMNS}
        return {name: limit for name, limit in found.items() if limit is not None}

    def absolute(self) -> dict[str, list[float]]:
        """The bounds of all limits that are no multiples, by quantity."""
        limits = {name: limit for name, limit in self.limits().items() if not limit.relative}
        return {name: [bound for bound in (each.min, each.max) if bound is not None] for name, each in limits.items()}


class Event(TypedDict):
    """A quantity has left its range. value: its mean. limit: the bound that it passed. reason: all that in one line."""

    step: int
    quantity: str
    value: float
    limit: float
    action: str
    reason: str


class Monitor:
    """Reads the rows that TRL logs, and collects events. The same rows always give the same events."""

    def __init__(self, config: MonitorConfig) -> None:
        self.config = config
        self.events: list[Event] = []
        self._recent: dict[str, deque[float]] = {name: deque(maxlen=config.window) for name in COLUMNS}
        self._first: dict[str, float] = {}
        self._outside: set[str] = set()

    @property
    def stopped(self) -> Event | None:
        """The event that ends the run."""
        return next((event for event in self.events if event["action"] == "stop"), None)

    def read(self, rows: Iterable[Mapping[str, Any]]) -> list[Event]:
        """The new events of rows; rows without a reward, such as the summary of a run, are passed over.

        Raises:
            PolarError: a quantity with a limit is not logged.
        """
        before = len(self.events)
        for row in rows:
            if "reward" in row:
                self._read(row)
        return self.events[before:]

    def _read(self, row: Mapping[str, Any]) -> None:
        limits = self.config.limits()
        for name, name_in_row in COLUMNS.items():
            value = row.get(name_in_row)
            if value is None:
                if name in limits:
                    raise PolarError(f"monitor.{name}: TRL logs no {name_in_row!r} in this run; remove the limit")
                continue
            recent = self._recent[name]
            recent.append(float(value))
            if len(recent) == self.config.window:
                self._first.setdefault(name, fmean(recent))
                if name in limits:
                    self._compare(name, limits[name], int(row["step"]), fmean(recent))

    def _compare(self, name: str, limit: Limit, step: int, value: float) -> None:
        scale = self._first[name] if limit.relative else 1.0
        low, high = (None if bound is None else bound * scale for bound in (limit.min, limit.max))
        passed = high if high is not None and value > high else low if low is not None and value < low else None
        if passed is None:
            self._outside.discard(name)
        elif name not in self._outside:
            self._outside.add(name)
            reason = self._reason(name, limit, step, value, passed)
            self.events.append(
                {"step": step, "quantity": name, "value": value, "limit": passed, "action": limit.action, "reason": reason}
            )

    def _reason(self, name: str, limit: Limit, step: int, value: float, passed: float) -> str:
        side = "above" if value > passed else "below"
        bound = limit.max if side == "above" else limit.min
        scale = f", {bound:g} times its first mean" if limit.relative else ""
        rows = f", the mean of {self.config.window} rows," if self.config.window > 1 else ""
        line = f"step {step}: {name} {value:.4g}{rows} is {side} its limit {passed:.4g}{scale}"
        if name == "reward" or "reward" not in self._first:
            return line
        before, now = self._first["reward"], fmean(self._recent["reward"])
        return f"{line}; the reward went from {before:.4g} to {now:.4g} meanwhile"
