"""What the tasks of a build leave for each other and for the report: one JSON file a task, which also says that it is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from polar_rm.common.files import write_json
from polar_rm.common.manifests import DataFile
from polar_rm.corpus.counts import Counts, Example
from polar_rm.records import Text

R = TypeVar("R")


class Refusal(TypedDict):
    """A row that was set aside. row: counted from 1. content: the row as it was read."""

    path: str
    row: int
    field: str
    expected: str
    content: Any


class Match(TypedDict):
    """Where an evaluation prompt shares words with another prompt. row: of the file, counted from 1."""

    words: str
    file: str
    row: int


class Contaminated(TypedDict):
    """A prompt that was dropped, and why."""

    prompt_id: str
    prompt: Text
    match: Match


@dataclass
class PartResult:
    """What the first pass found in a part.

    source: names the part, so that a result of other parts is not taken for this one's. lines: of its JSONL, blank ones included;
    0 for Parquet. rows: trajectories of selected policies. unselected: those of others. refused: bad rows. policies: their rows.
    lineage: what is known -> policy -> its values, of which there should be one.
    """

    source: str
    lines: int = 0
    rows: int = 0
    unselected: int = 0
    refused: int = 0
    policies: dict[str, int] = field(default_factory=dict)
    lineage: dict[str, dict[str, list[str]]] = field(default_factory=dict)


@dataclass
class BucketResult:
    """What the second pass made of a bucket. counts, examples: see :class:`polar_rm.corpus.counts.Tally`. shards: by split."""

    counts: Counts
    examples: dict[str, list[Example]]
    contaminated: list[Contaminated]
    refused: list[Refusal]
    shards: dict[str, DataFile]


@dataclass
class ThinnedResult:
    """The shards of a bucket in which capped policies keep fewer comparisons."""

    shards: dict[str, DataFile]


class LedgerRow(TypedDict):
    """What is counted of a comparison. policy, negatives: indices in the job's sorted list. key: a hash that says which ones
    stay when a policy has too many. characters, words, tokens: of prompt, reference and candidates, once each."""

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
"""Of a table of :class:`LedgerRow`, in the order of the shards: those of one split come together."""


def save_result(path: Path, result: PartResult | BucketResult | ThinnedResult) -> None:
    """Atomically; errors as in :func:`polar_rm.common.files.write_json`."""
    write_json(path, asdict(result))


def load_result(kind: type[R], path: Path) -> R | None:
    """The result of a task; None where there is none, or one that another release wrote in another form."""
    try:
        result: R = _ADAPTERS[kind].validate_json(path.read_bytes())
        return result
    except (FileNotFoundError, ValidationError):
        return None


_ADAPTERS: dict[type, TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (PartResult, BucketResult, ThinnedResult)}
