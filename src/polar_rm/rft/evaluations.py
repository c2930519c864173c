"""Evaluations of a policy on held-out prompts: completions, verdicts and measures, one file of JSON lines for each."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any

from polar_rm.common.files import full_disk_named, write_file
from polar_rm.common.json import dump_json
from polar_rm.errors import Damaged, PolarError
from polar_rm.records import flatten
from polar_rm.rewards.transforms import ITEM_TRANSFORMS
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import messages, texts_of
from polar_rm.rft.judges import Judge, Task, listed
from polar_rm.rft.measures import likeness, repetition
from polar_rm.rft.trl import PolarReward
from polar_rm.sampling.backends.transformers import TransformersPolicy
from polar_rm.sampling.base import Backend, Decoding, Outcome, Request, Sample

Row = dict[str, Any]
"""A completion: number and sample (indices), prompt, reference, completion, finish_reason, n_tokens, scores and notes by judge,
reward (None where its transform needs a batch), repetition and likeness."""

REWARD = "reward"
"""The name of the run's own reward beside the judges."""

_FILE = re.compile(r"step-(\d{6,})(\.texts)?\.jsonl")
_REWARDED_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Evaluates a policy at steps of a run; a finished evaluation is never repeated, and an interrupted one is continued.

    folder: for ``step-NNNNNN.jsonl``. max_length: maximum number of tokens of a completion, if ``evaluate`` sets none. reward:
    the run's own reward, None to leave it out.
    """

    folder: Path
    config: RftConfig
    tasks: Sequence[Task]
    judges: Mapping[str, Judge]
    max_length: int
    reward: PolarReward | None = None

    def policy(self) -> TransformersPolicy:
        """How completions are sampled."""
        settings = self.config.evaluate
        if settings is None:
            raise PolarError("evaluate: there are no held-out prompts")
        limit = settings.max_new_tokens or self.max_length
        decoding = Decoding(temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k, max_new_tokens=limit)
        kind, model = self.config.policy.kind, self.config.policy.model
        return TransformersPolicy(name="policy", family="policy", kind=kind, model=model, decoding=decoding)

    def path(self, step: int) -> Path:
        """The file of a finished evaluation."""
        return self.folder / f"step-{step:06d}.jsonl"

    def evaluate(self, step: int, open_backend: Callable[[], Backend]) -> list[Row]:
        """The evaluation after a step. open_backend: gives the policy; it is called only if completions are missing.

        Raises:
            PolarError: a prompt can't be completed (it is too long), a judge gives no verdict, or the disk is full.
        """
        if self.path(step).exists():
            return read_rows(self.path(step))
        rows = self._complete(step, open_backend)
        texts = [row["completion"] for row in rows]
        tasks = [self.tasks[row["number"]] for row in rows]
        verdicts = {name: judge.judge(tasks, texts) for name, judge in self.judges.items()}
        rewards = self._rewards(tasks, texts)
        for index, (row, task) in enumerate(zip(rows, tasks, strict=True)):
            row["scores"] = {name: each[index].value for name, each in verdicts.items()}
            row["notes"] = {name: each[index].note for name, each in verdicts.items() if each[index].note}
            row |= {"reward": rewards[index], "repetition": repetition(row["completion"])}
            row |= {"likeness": max(likeness(row["completion"], flatten(text)) for text in texts_of(task.reference))}
            row |= {"prompt": task.prompt, "reference": listed(task.reference)}
        write_file(self.path(step), "".join(f"{dump_json(row)}\n" for row in rows))
        self._texts(step).unlink(missing_ok=True)
        return rows

    def forget_after(self, step: int) -> None:
        """Remove evaluations after a step: the run continues from there, and will evaluate them anew."""
        for path in self.folder.glob("step-*.jsonl"):
            if (match := _FILE.fullmatch(path.name)) and int(match[1]) > step:
                path.unlink()

    def finished(self) -> dict[int, list[Row]]:
        """All finished evaluations by step."""
        steps = sorted(int(m[1]) for path in self.folder.glob("step-*.jsonl") if (m := _FILE.fullmatch(path.name)) and not m[2])
        return {step: read_rows(self.path(step)) for step in steps}

    def _texts(self, step: int) -> Path:
        return self.path(step).with_suffix(".texts.jsonl")

    def _requests(self) -> Iterator[Request]:
        samples = self.config.evaluate.samples if self.config.evaluate else 1
        for number, task in enumerate(self.tasks):
            for sample in range(samples):
                # The same seeds at every step: two evaluations of one policy are equal.
                seed = self.config.seed * 2**31 + number * samples + sample
                yield Request(str(number), task.prompt, sample, seed)

    def _complete(self, step: int, open_backend: Callable[[], Backend]) -> list[Row]:
        """Completions of all prompts in their order; those that an interrupted evaluation left are taken over."""
        path = self._texts(step)
        found = {(row["number"], row["sample"]): row for row in read_rows(path, is_unfinished=True)} if path.exists() else {}
        requests = list(self._requests())
        missing = [request for request in requests if (int(request.prompt_id), request.sample_id) not in found]
        if missing:
            with ExitStack() as stack:
                stack.enter_context(full_disk_named(path))
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, "".join(f"{dump_json(row)}\n" for row in found.values()))  # without a half line at its end
                file = stack.enter_context(path.open("a", encoding="utf-8"))

                def emit(request: Request, outcome: Outcome) -> None:
                    row = self._row(request, outcome)
                    found[row["number"], row["sample"]] = row
                    file.write(f"{dump_json(row)}\n")
                    file.flush()

                open_backend().run(missing, emit, Event())
        return [dict(found[int(request.prompt_id), request.sample_id]) for request in requests]

    def _row(self, request: Request, outcome: Outcome) -> Row:
        row: Row = {"number": int(request.prompt_id), "sample": request.sample_id, "seed": request.seed}
        if isinstance(outcome, Sample):
            return row | {
                "completion": outcome.text,
                "finish_reason": outcome.finish_reason,
                "n_tokens": outcome.n_tokens,
            }
        if outcome.kind == "empty":  # a completion like any other
            return row | {"completion": "", "finish_reason": None, "n_tokens": None}
        raise PolarError(f"held-out prompt {row['number'] + 1}: the policy can't complete it: {outcome.message}")

    def _rewards(self, tasks: Sequence[Task], texts: Sequence[str]) -> list[float | None]:
        if self.reward is None or self.reward.transform not in ITEM_TRANSFORMS:
            return [None] * len(texts)
        is_chat = self.config.policy.kind == "chat"  # with messages, as TRL has them
        rewards: list[float | None] = []
        for start in range(0, len(texts), _REWARDED_TOGETHER):
            part, answers = tasks[start : start + _REWARDED_TOGETHER], texts[start : start + _REWARDED_TOGETHER]
            prompts = [messages(task.prompt) if is_chat else task.prompt for task in part]
            completions = [[{"role": "assistant", "content": text}] if is_chat else text for text in answers]
            references, wrappers = [listed(task.reference) for task in part], [task.wrapper for task in part]
            rewards += self.reward(prompts, completions, reference=references, wrapper=wrappers)
        return rewards


def open_judges(config: RftConfig) -> dict[str, Judge]:
    """The judges of ``evaluate`` by name, checked.

    Raises:
        PolarError: a judge can't be used.
    """
    return {judge.title: judge.open() for judge in config.evaluate.judges} if config.evaluate else {}


def read_rows(path: Path, *, is_unfinished: bool = False) -> list[Row]:
    """The rows of an evaluation. is_unfinished: a line that a kill left unfinished ends them.

    Raises:
        Damaged: a line is no JSON object.
    """
    rows: list[Row] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            if is_unfinished:
                break
            raise Damaged(f"{path}: line {number}: not a JSON object; remove the file to evaluate again")
        rows.append(row)
    return rows


def means(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of every judge, and of the reward if there is one, over completions."""
    values = {name: fmean(row["scores"][name] for row in rows) for name in rows[0]["scores"]}
    rewards = [row["reward"] for row in rows]
    return values | ({} if None in rewards else {REWARD: fmean(rewards)})
