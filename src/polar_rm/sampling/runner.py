"""Runs a sampling plan. Every sample is stored when it arrives, and an interrupted run continues with the missing ones."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from polar_rm.common.locks import owned
from polar_rm.common.progress import Progress, silent
from polar_rm.errors import PolarError
from polar_rm.sampling.base import Policy, Request, Sample
from polar_rm.sampling.config import SamplingConfig
from polar_rm.sampling.engines import PolicyFailed, PolicyStarted, SampleArrived, SamplingEvent, by_key, local, ray
from polar_rm.sampling.identity import identities
from polar_rm.sampling.output import remove_stale, trajectories_path, write_manifest, write_trajectories
from polar_rm.sampling.plan import SamplingPlan, make_plan
from polar_rm.sampling.store import OutcomeRow, Store

_TELL_AFTER_S = 1.0
_log = logging.getLogger("polar_rm.sampling")


@dataclass(slots=True)
class PolicyStatus:
    """The progress of a policy.

    planned, sampled: numbers of samples, over all runs. failures: numbers of requests without a sample, by their last failure.
    final: number of failures that would recur on another attempt. error: why the policy gave up.
    reason: the message of its most frequent failure.
    asked, tokens, seconds: of this run; seconds count from when the model is loaded.
    """

    policy: str
    planned: int
    sampled: int
    failures: Counter[str] = field(default_factory=Counter)
    final: int = 0
    error: str | None = None
    reason: str | None = None
    asked: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second in this run."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def missing(self) -> int:
        """Number of samples that the same command would request again."""
        return self.planned - self.sampled - (self.final if self.sampled else 0)

    def to_json(self) -> dict[str, Any]:
        """All fields and properties, for a file."""
        # asdict can't copy a Counter before Python 3.12.
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"failures": dict(self.failures), "missing": self.missing, "tokens_per_s": self.tokens_per_s}


@dataclass(frozen=True)
class SamplingReport:
    """The result of a run. path: the trajectories. unplanned: number of samples in the store that this config does not plan."""

    path: Path
    n_trajectories: int
    policies: list[PolicyStatus]
    unplanned: int

    def to_json(self) -> dict[str, Any]:
        """All fields, for a file. ``complete``: no policy has missing samples."""
        policies = [status.to_json() for status in self.policies]
        values = {"trajectories": str(self.path), "n_trajectories": self.n_trajectories, "unplanned": self.unplanned}
        return values | {"complete": all(status.missing == 0 for status in self.policies), "policies": policies}

    def describe(self) -> str:
        """A text for the terminal: the trajectories, the failures, and the samples outside the plan."""
        lines = [f"{self.n_trajectories:,} trajectories in {self.path}"]
        for s in self.policies:
            if s.failures:
                reason = f" ({s.reason})" if s.reason else ""
                lines.append(f"{s.policy}: requests without a sample: {_format_counts(s.failures)}, see manifest.json{reason}")
        if self.unplanned:
            lines.append(f"the store holds {self.unplanned:,} more samples that this config does not ask for")
        return "\n".join(lines)

    def check(self) -> None:
        """Raises PolarError with one line that lists the policies with missing samples, those of one cause together."""
        incomplete = [(s.policy, f"{s.missing} of {s.planned} missing, {_cause(s)}") for s in self.policies if s.missing]
        if incomplete:
            raise PolarError(
                f"{_by_text(incomplete)}. All samples that arrived are kept; run the same command again to draw the rest"
            )


def sample(config: SamplingConfig, progress: Progress = silent) -> Path:
    """Draw the missing samples and write trajectories and manifest; returns the Parquet file, or the folder of several.

    Raises:
        PolarError: the folder holds samples of other settings, prompts are bad, or samples of a policy are missing. In the last
            case all samples that arrived are stored and written.
    """
    report = run_sampling(config, progress)
    report.check()
    return report.path


def run_sampling(config: SamplingConfig, progress: Progress = silent, *, retry_failed: bool = False) -> SamplingReport:
    """As :func:`sample`, but policies with missing samples are only reported. progress: a task for each policy, in samples.

    retry_failed: also repeat requests whose failure is final: no text, a prompt too long, a request refused.
    """
    with owned(config.output, "sample"), Store.open(config.output) as store:
        plan = make_plan(config, config.output)
        store.claim(identities(config, keep=True))
        statuses = {policy.name: _status(plan, store, policy.name) for policy in config.policies}
        work = [(policy, missing_requests(plan, store, policy.name, retry_failed)) for policy in config.policies]
        for status in statuses.values():
            status.failures.clear()  # progress shows the failures of this run; the report reads all of them from the store
            _show(progress, status)
        run = ray.run if config.engine == "ray" else local.run
        with (
            closing(run([(policy, requests) for policy, requests in work if requests], config.machine)) as events,
            closing(_Down()) as down,
        ):
            _collect(events, store, plan.hashes, statuses, progress, down)
        final = {policy.name: _status(plan, store, policy.name) for policy in config.policies}
        for name, status in final.items():
            run_status = statuses[name]
            status.error, status.asked = run_status.error, run_status.asked
            status.tokens, status.seconds = run_status.tokens, run_status.seconds
        files = write_trajectories(config, plan, store)
        write_manifest(config, plan, files, [_manifest_entry(policy, final[policy.name]) for policy in config.policies])
        remove_stale(config, files)
        unplanned = store.counts().total() - sum(status.sampled for status in final.values())
    return SamplingReport(trajectories_path(config), sum(file["rows"] for file in files), list(final.values()), unplanned)


class _Down:
    """Tells which policies are down while the others go on: lines of progress become rare, and the end may be far. Those that are
    down for one reason fail together, and are told together."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._failed: list[tuple[str, str]] = []
        self._timer: Timer | None = None

    def add(self, policy: str, error: str) -> None:
        """Tell it within a second, unless the run ends before: its end tells all."""
        with self._lock:
            self._failed.append((policy, error))
            if self._timer is None:
                self._timer = Timer(_TELL_AFTER_S, self._tell)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Tell nothing further."""
        with self._lock:
            self._failed.clear()
            if self._timer:
                self._timer.cancel()

    def _tell(self) -> None:
        with self._lock:
            failed, self._timer = self._failed[:], None
            self._failed.clear()
        if failed:
            _log.warning("policies that are down: %s", _by_text(failed))


def _collect(
    events: Iterable[list[SamplingEvent]],
    store: Store,
    hashes: dict[str, str],
    statuses: dict[str, PolicyStatus],
    progress: Progress,
    down: _Down,
) -> None:
    """Store the outcomes. Each commit also records tokens and seconds, for the estimates of later dry runs."""
    since: dict[str, float] = {}
    for batch in events:
        now = time.monotonic()
        rows, throughput = [], {}
        for event in batch:
            status = statuses[event.policy]
            if isinstance(event, PolicyStarted):
                since[event.policy] = now
            elif isinstance(event, PolicyFailed):
                status.error = event.error
                down.add(event.policy, event.error)
            else:
                r = event.request
                rows.append(OutcomeRow(event.policy, r.prompt_id, hashes[r.prompt_id], r.sample_id, r.seed, event.outcome))
                _count(status, event)
        for name in {row.policy for row in rows}:
            tokens = sum(row.outcome.n_tokens or 0 for row in rows if row.policy == name and isinstance(row.outcome, Sample))
            throughput[name] = (tokens, now - since[name])
            since[name] = now
            statuses[name].tokens += tokens
            statuses[name].seconds += throughput[name][1]
        store.add(rows, throughput)
        for name in {event.policy for event in batch}:
            _show(progress, statuses[name])


def _show(progress: Progress, status: PolicyStatus) -> None:
    failed = f", {status.failures.total():,} failed" if status.failures else ""
    text = f"{status.tokens_per_s:,.0f} tokens/s{failed}" + (", down" if status.error else "")
    progress(status.policy, status.sampled, status.planned, text)


def _count(status: PolicyStatus, event: SampleArrived) -> None:
    status.asked += 1
    if isinstance(event.outcome, Sample):
        status.sampled += 1
    else:
        status.failures[event.outcome.kind] += 1


def _status(plan: SamplingPlan, store: Store, policy: str) -> PolicyStatus:
    """The state of a policy's planned samples in the store."""
    sampled, failures = store.sampled(policy), store.failures(policy, plan.hashes)
    counts = {plan.prompts[index].prompt_id: count for index, count in plan.shares[policy]}
    done = 0
    for (prompt_id, sample_id), digest in sampled.items():
        if sample_id < counts.get(prompt_id, 0):
            if plan.hashes[prompt_id] != digest:
                raise PolarError(
                    f"{store.path}: policy {policy!r} answered another prompt under the id {prompt_id!r}; "
                    "use other prompt ids or another output folder"
                )
            done += 1
    planned = [failure for (prompt_id, sample_id), failure in failures.items() if sample_id < counts.get(prompt_id, 0)]
    kinds: Counter[str] = Counter(failure.kind for failure in planned)
    final = sum(failure.is_final for failure in planned)
    reasons = Counter(failure.message for failure in planned)
    reason = reasons.most_common(1)[0][0] if reasons else None
    return PolicyStatus(policy, plan.size(policy), done, kinds, final, reason=reason)


def missing_requests(plan: SamplingPlan, store: Store, policy: str, retry_failed: bool = False) -> list[Request]:
    """The requests that a run would send to a policy.

    Requests that failed before come last: one that always fails must not delay the others.
    """
    sampled, failures = store.sampled(policy), store.failures(policy, plan.hashes)
    requests = by_key(plan.requests(policy))
    # Without a single sample, the cause is the policy and not its requests: see PolicyStatus.missing.
    retry_failed = retry_failed or not requests.keys() & sampled.keys()
    fresh = [request for key, request in requests.items() if key not in sampled and key not in failures]
    return fresh + [requests[key] for key in requests if key in failures and (retry_failed or not failures[key].is_final)]


def _cause(status: PolicyStatus) -> str:
    if status.error or not status.failures:
        return status.error or "interrupted"
    return f"{_format_counts(status.failures)} ({status.reason})"


def _by_text(texts: Iterable[tuple[str, str]]) -> str:
    """(policy, text) on one line; policies with equal texts share it."""
    names: dict[str, list[str]] = {}
    for name, text in texts:
        names.setdefault(text, []).append(name)
    return "; ".join(f"{', '.join(of_text)}: {text}" for text, of_text in names.items())


def _format_counts(failures: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in failures.items())


def _manifest_entry(policy: Policy, status: PolicyStatus) -> dict[str, Any]:
    """A policy's entry in the manifest."""
    names = ("family", "kind", "model", "checkpoint_of", "step", "licence")
    labels = {name: getattr(policy, name) for name in names}
    counts = {"planned": status.planned, "sampled": status.sampled, "missing": status.missing, "failures": dict(status.failures)}
    return {"policy": policy.name, **labels, **counts, "error": status.error, "reason": status.reason}
