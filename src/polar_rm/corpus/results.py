"""Results of the tasks of a build, for other tasks and for the report. Each task writes one JSON file when it is finished."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # before Python 3.12 pydantic needs this one

from polar_rm.common.files import write_json
from polar_rm.common.manifests import DataFile
from polar_rm.corpus.counts import Counts, Example
from polar_rm.records import Text

R = TypeVar("R")


class Refusal(TypedDict):
    """A bad row that was skipped. row: counted from 1. content: the row as it was read."""

    path: str
    row: int
    field: str
    expected: str
    content: Any


class Match(TypedDict):
    """An evaluation prompt that shares words with another prompt. row: in the file, counted from 1."""

    words: str
    file: str
    row: int


class Contaminated(TypedDict):
    """A prompt that was dropped, and the evaluation prompt that it matches."""

    prompt_id: str
    prompt: Text
    match: Match


class DroppedText(TypedDict):
    """A text that was dropped, and the evaluation prompt or held-out text that it matches.

    path, row: where it was read. start: its first characters.
    """

    id: str
    path: str
    row: int
    start: str
    match: Match


@dataclass
class PartResult:
    """The result of the first pass for a part.

    source: the part's name, so that a result of another division into parts is not used. lines: of JSONL, including blank ones;
    0 for Parquet. rows: trajectories of selected policies. unselected: trajectories of other policies. refused: bad rows.
    policies: policy -> its rows. lineage: column -> policy -> its values, of which there should be one. counts, examples: see
    ``Tally`` in ``counts``; only of texts, which are cleaned in this pass.
    """

    source: str
    lines: int = 0
    rows: int = 0
    unselected: int = 0
    refused: int = 0
    policies: dict[str, int] = field(default_factory=dict)
    lineage: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)


@dataclass
class BucketResult:
    """The result of the second pass for a bucket. counts, examples: see ``Tally`` in ``counts``. shards: by split."""

    counts: Counts
    examples: dict[str, list[Example]]
    contaminated: list[Contaminated]
    refused: list[Refusal]
    shards: dict[str, DataFile]


@dataclass
class TextsResult:
    """The result of a pass over the texts of a bucket. counts: see ``Tally`` in ``counts``."""

    counts: Counts
    dropped: list[DroppedText]


@dataclass
class ThinnedResult:
    """The shards of a bucket after caps, by split."""

    shards: dict[str, DataFile]


class LedgerRow(TypedDict):
    """The facts about one comparison that the report needs.

    policy, negatives: indices into the job's sorted policies. key: a hash; a capped policy keeps the comparisons with the
    smallest keys. characters, words, tokens: of prompt, reference and candidates, once each.
    """

    split: str
    key: int
    policy: int
    positives: int
    negatives: list[int]
    characters: int
    words: int
    tokens: int


LEDGER = pa.schema(
    {
        "split": pa.string(),
        "key": pa.uint64(),
        "policy": pa.int32(),
        "positives": pa.int32(),
        "negatives": pa.list_(pa.int32()),
        "characters": pa.int64(),
        "words": pa.int64(),
        "tokens": pa.int64(),
    }
)
"""The schema of a table of :class:`LedgerRow`. Its rows are in the order of the shards: the rows of a split are consecutive."""

TEXT_LEDGER = pa.schema(
    {
        "split": pa.string(),
        "key": pa.uint64(),
        "negatives": pa.int32(),
        "characters": pa.int64(),
        "words": pa.int64(),
        "tokens": pa.int64(),
    }
)
"""The facts about one comparison of continuations: as :data:`LEDGER`, but there are no policies, and negatives are counted."""


def save_result(path: Path, result: PartResult | TextsResult | BucketResult | ThinnedResult) -> None:
    """Write a result atomically; errors as in :func:`polar_rm.common.files.write_json`."""
    write_json(path, asdict(result))


def load_result(kind: type[R], path: Path) -> R | None:
    """Read the result of a task; None if there is none, or if another release wrote it in another form."""
    try:
        result: R = _ADAPTERS[kind].validate_json(path.read_bytes())
        return result
    except (FileNotFoundError, ValidationError):
        return None


_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (PartResult, TextsResult, BucketResult, ThinnedResult)
}
