"""The job that all tasks of a build share: settings, inputs and paths. It is built once and sent to every worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polar_rm.corpus.config import CorpusConfig
from polar_rm.corpus.contamination import EvaluationIndex
from polar_rm.corpus.lineage import Lineage
from polar_rm.errors import PolarError
from polar_rm.records import Wrapper


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the input: some row groups of a Parquet file, or the lines of a JSONL file that begin within a range of bytes.

    first_row: the first row of a Parquet part, counted from 1 in the file; for JSONL it is known only after earlier parts are
    read. start, stop: the bytes of a JSONL file; a stop of None is its end. n_bytes: uncompressed, if known.
    """

    path: Path
    row_groups: tuple[int, ...] | None
    first_row: int
    n_bytes: int
    start: int = 0
    stop: int | None = None

    @property
    def is_slice(self) -> bool:
        """Whether the part is a range of a JSONL file."""
        return self.start > 0 or self.stop is not None

    @property
    def name(self) -> str:
        """A name that is unique among the parts of a build."""
        return f"{self.path} {self.start} {self.stop} {list(self.row_groups or ())}"


@dataclass(frozen=True, slots=True)
class Job:
    """The data that tasks need.

    policies, lineage, unseen, evaluations: known after the input is partitioned; empty before. Texts have evaluations alone.
    held_out_texts: the index of held-out texts, known after texts are divided.
    lines_before: for each part, the number of lines of its file before it, if its rows are numbered within the part.
    thresholds: split -> policy -> the largest key of a comparison with its reference that is kept, if policies are capped.
    """

    config: CorpusConfig
    skip_bad_rows: bool
    parts: tuple[Part, ...]
    n_buckets: int
    policies: tuple[str, ...] = ()
    lineage: Lineage = field(default_factory=Lineage)
    unseen: frozenset[str] = frozenset()
    evaluations: EvaluationIndex | None = None
    held_out_texts: EvaluationIndex | None = None
    thresholds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    lines_before: tuple[int, ...] = ()

    @property
    def work(self) -> Path:
        """The folder of temporary files, which is removed when the corpus is finished."""
        return self.config.output / "work"

    def path(self, kind: str, number: int, suffix: str) -> Path:
        """The path of a task's file, such as ``work/parts/00003.arrow``."""
        return self.work / kind / f"{number:05d}{suffix}"

    def row(self, part: int, row: int) -> int:
        """The number of a row in its file, from its number in its part."""
        return row + (self.lines_before[part] if self.lines_before else 0)

    def wrapper(self, policy: str) -> Wrapper:
        """How a policy's texts join their prompts."""
        known = self.config.wrapper or self.lineage.wrappers.get(policy)
        return "pretrain" if known == "pretrain" else "sft"

    def comparable(self) -> Callable[[str, str], bool]:
        """A function that says whether a policy may have negatives against another one's references.

        It may not at a distance that the settings exclude, or if only one of the two continues prompts and the other answers
        them.

        Raises:
            PolarError: the settings restrict distances, but a policy's family is unknown.
        """
        distances = self.config.of_policies.distance
        wrappers = {policy: self.wrapper(policy) for policy in self.policies}
        unknown = [policy for policy in self.policies if policy not in self.lineage.families]
        if distances and unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise PolarError(f"pairing.distance: the family of {unknown[0]!r}{more} is not known; set it in families")

        if not distances and len(set(wrappers.values())) == 1:
            return lambda *_: True

        def comparable(policy: str, other: str) -> bool:
            has_distance = not distances or self.lineage.distance(policy, other) in distances
            return has_distance and wrappers[policy] == wrappers[other]

        return comparable
