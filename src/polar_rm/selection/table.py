"""The numbers of all candidates, without their texts: about 80 bytes each, and 256 more for near duplicates."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polar_rm.common.json import dump_json
from polar_rm.errors import BadRow, PolarError
from polar_rm.records import flatten
from polar_rm.selection.candidates import Row, hash64
from polar_rm.selection.config import NearDuplicates
from polar_rm.selection.near import N_HASHES, Signatures, signature

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

# Column of a part's file -> its type.
_TYPES = {
    "rows": "q",
    "places": "i",
    "scores": "d",
    "probabilities": "d",
    "lengths": "q",
    "prompts": "Q",
    "prompt_texts": "Q",
    "references": "Q",
    "texts": "Q",
    "ties": "Q",
    "groups": "i",
    "has_id": "b",
}


class PartBuilder:
    """Collects the candidates of one input file."""

    def __init__(self, near: NearDuplicates | None) -> None:
        self._near = near
        self._columns: dict[str, array[Any]] = {name: array(code) for name, code in _TYPES.items()}
        self._signatures = bytearray()
        self._groups: dict[str, int] = {}

    def add(self, number: int, row: Row) -> None:
        """Add the candidates of a row. number: its number in the file."""
        column = self._columns
        prompt_text, prompt_key = flatten(row.prompt), row.prompt_key
        prompt_hash = hash64(prompt_text)
        given = row.reference if isinstance(row.reference, tuple) else (row.reference,)
        reference = 0 if row.reference is None else hash64([flatten(each or "") for each in given])
        rest = dump_json(dict(sorted(row.columns.items())))
        group = self._groups.setdefault(row.group, len(self._groups))
        for place, (output, score) in enumerate(zip(row.outputs, row.scores, strict=True)):
            text = flatten(output)
            column["rows"].append(number)
            column["places"].append(place)
            column["scores"].append(score)
            column["lengths"].append(len(text))
            column["prompts"].append(prompt_key)
            column["prompt_texts"].append(prompt_hash)
            column["references"].append(reference)
            text_hash = hash64([prompt_key, output])
            column["texts"].append(text_hash)
            column["ties"].append(hash64([text_hash, rest]))
            column["groups"].append(group)
            column["has_id"].append(row.prompt_id is not None)
            if self._near:
                whole = text if self._near.within == "prompt" else f"{prompt_text}\n{text}"
                self._signatures += signature(whole).tobytes()
        column["probabilities"].extend(row.probabilities)

    def save(self, file: Any) -> None:
        """Write all columns into an open binary file, in numpy's format ``npz``."""
        columns: dict[str, Any] = {
            name: np.frombuffer(values, values.typecode) for name, values in self._columns.items() if len(values)
        }
        np.savez(file, signatures=np.frombuffer(self._signatures, np.uint16).reshape(-1, N_HASHES), **columns)

    @property
    def groups(self) -> list[str]:
        """The names of the groups, in the order of their numbers."""
        return list(self._groups)

    def __len__(self) -> int:
        return len(self._columns["rows"])


@dataclass(frozen=True, slots=True)
class Table:
    """The candidates of all inputs, in their order: arrays of n values.

    files, rows, places: the position of a candidate: number of its file, number of the row, place in a row with several outputs.
    scores: what candidates are ordered by. probabilities: empty if they are not used. lengths: in characters. prompts: numbers of
    the prompts, from 0. prompt_keys: hashes of what joins a prompt's rows. texts: hashes of prompt and answer. ties: hashes that
    decide between equal scores. groups: numbers of the groups, in the order of ``group_names``. signatures: uint16 [n, 128], or
    [0, 128] if near duplicates are not looked for. references: hashes; 0 where a row has none.
    """

    files: Ints
    rows: Ints
    places: Ints
    scores: Floats
    probabilities: Floats
    lengths: Ints
    prompts: Ints
    prompt_keys: Hashes
    texts: Hashes
    ties: Hashes
    groups: Ints
    references: Hashes
    signatures: Signatures
    group_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def n_prompts(self) -> int:
        """Number of different prompts."""
        return int(self.prompts.max(initial=-1)) + 1

    @classmethod
    def load(cls, parts: list[Path], groups: list[list[str]], inputs: list[Path]) -> Self:
        """Join the parts of all input files. groups: the names of each part's groups.

        Raises:
            BadRow: rows of one prompt have two prompts or two references.
            PolarError: some rows have an id of their prompt and others none, or there are no rows.
        """
        names = sorted({name for part in groups for name in part})
        number_of = {name: number for number, name in enumerate(names)}
        columns: dict[str, NDArray[Any]] = {}
        for name, code in _TYPES.items():
            columns[name] = np.concatenate([_column(part, name, code) for part in parts])
        sizes = [len(_column(part, "rows", "q")) for part in parts]
        columns["files"] = np.repeat(np.arange(len(parts)), sizes)
        mapped = [np.array([number_of[name] for name in part], np.int64) for part in groups]
        offsets = np.cumsum([0, *(len(part) for part in groups[:-1])])
        columns["groups"] = np.concatenate([*mapped, np.empty(0, np.int64)])[columns["groups"] + np.repeat(offsets, sizes)]
        if not sum(sizes):
            raise PolarError("no row of the inputs can be selected: all were refused")
        signatures = np.concatenate([_signatures(part) for part in parts])
        _check_prompts(columns, inputs)
        prompt_keys = columns["prompts"]
        columns["prompts"] = np.unique(prompt_keys, return_inverse=True)[1]
        kept = {field.name: columns[field.name] for field in fields(cls) if field.name in columns}
        return cls(**kept, prompt_keys=prompt_keys, signatures=signatures, group_names=tuple(names))


def _column(part: Path, name: str, code: str) -> NDArray[Any]:
    with np.load(part, allow_pickle=False) as arrays:
        return np.asarray(arrays[name]) if name in arrays else np.empty(0, np.dtype(code))


def _signatures(part: Path) -> Signatures:
    with np.load(part, allow_pickle=False) as arrays:
        return np.asarray(arrays["signatures"])


def _check_prompts(columns: Mapping[str, NDArray[Any]], inputs: list[Path]) -> None:
    """Check that what is joined as one prompt has one prompt and one reference."""
    has_id = columns["has_id"]
    if has_id.any() and not has_id.all():
        raise BadRow(
            *_position(columns, inputs, int(np.flatnonzero(~has_id.astype(bool))[0])),
            "prompt_id",
            "an id in every row or in none, so that rows can be joined; prompt_by=text joins by the prompt's text",
        )
    _, first, inverse = np.unique(columns["prompts"], return_index=True, return_inverse=True)
    for name, field, expected in (
        ("prompt_texts", "prompt", "the prompt of the earlier rows with this prompt_id; prompt_by=text joins by the text"),
        (
            "references",
            "reference",
            "the reference of the earlier rows of this prompt: scores under two references can't be compared; give each "
            "reference its own prompt_id",
        ),
    ):
        differs = np.flatnonzero(columns[name] != columns[name][first][inverse])
        if len(differs):
            raise BadRow(*_position(columns, inputs, int(differs[0])), field, expected)


def _position(columns: Mapping[str, NDArray[Any]], inputs: list[Path], index: int) -> tuple[str, int]:
    return str(inputs[int(columns["files"][index])]), int(columns["rows"][index])
