"""What all tasks of one build know: settings, inputs, and where things lie. Built once, sent to every worker."""

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
    """A share of the input: some row groups of a Parquet file, or the lines of a JSONL file that begin within some bytes.

    first_row: of a Parquet part, counted from 1 in the file; how many lines stand before a part of JSONL is only known when it is
    read. start, stop: bytes of a JSONL file; stop None: to its end. n_bytes: uncompressed, where that is known.
    """

    path: Path
    row_groups: tuple[int, ...] | None
    first_row: int
    n_bytes: int
    start: int = 0
    stop: int | None = None

    @property
    def is_slice(self) -> bool:
        """Whether it is some lines of a JSONL file."""
        return self.start > 0 or self.stop is not None

    @property
    def name(self) -> str:
        """Names the part among all parts of a build."""
        return f"{self.path} {self.start} {self.stop} {list(self.row_groups or ())}"


@dataclass(frozen=True, slots=True)
class Job:
    """policies, lineage, unseen, evaluations: known once the input is partitioned; empty before.

    lines_before: of each part, the lines of its file that stand before it, where rows are numbered within the part.
    thresholds: split -> policy -> the largest key that a comparison with its reference may have, where policies are capped.
    """

    config: CorpusConfig
    skip_bad_rows: bool
    parts: tuple[Part, ...]
    n_buckets: int
    policies: tuple[str, ...] = ()
    lineage: Lineage = field(default_factory=Lineage)
    unseen: frozenset[str] = frozenset()
    evaluations: EvaluationIndex | None = None
    thresholds: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    lines_before: tuple[int, ...] = ()

    @property
    def work(self) -> Path:
        """Folder of what is removed when the corpus is finished."""
        return self.config.output / "work"

    def path(self, kind: str, number: int, suffix: str) -> Path:
        """A file of one task's, such as ``work/parts/00003.arrow``."""
        return self.work / kind / f"{number:05d}{suffix}"

    def row(self, part: int, row: int) -> int:
        """The number of a row in its file, from that in its part."""
        return row + (self.lines_before[part] if self.lines_before else 0)

    def wrapper(self, policy: str) -> Wrapper:
        """How a policy's texts join their prompts."""
        known = self.config.wrapper or self.lineage.wrappers.get(policy)
        return "pretrain" if known == "pretrain" else "sft"

    def may_meet(self) -> Callable[[str, str], bool]:
        """Whether a policy may have a negative against another's reference: not if one continues prompts and the other answers.

        Raises:
            PolarError: distances are asked for and a policy's family is not known.
        """
        wanted = self.config.pairing.distance
        wrappers = {policy: self.wrapper(policy) for policy in self.policies}
        unknown = [policy for policy in self.policies if policy not in self.lineage.families]
        if wanted and unknown:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise PolarError(f"pairing.distance: the family of {unknown[0]!r}{more} is not known; say it in families")

        if not wanted and len(set(wrappers.values())) == 1:
            return lambda *_: True

        def allowed(policy: str, other: str) -> bool:
            near = not wanted or self.lineage.distance(policy, other) in wanted
            return near and wrappers[policy] == wrappers[other]

        return allowed
