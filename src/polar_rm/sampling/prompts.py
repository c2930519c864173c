"""Prompts for the policies: rows with instructions, and random prefixes of ordinary text."""

from __future__ import annotations

import hashlib
import heapq
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from polar_rm.common.config import Config, Names, PathText
from polar_rm.common.files import sha256, write_file
from polar_rm.errors import BadRow, PolarError
from polar_rm.records import PLAIN_SUFFIXES, DataFiles, OnBadRow, Text, read_prompts, read_texts, survey_files

Pool = Literal["base", "chat", "any"]

_CHARACTERS_PER_TOKEN = 64  # upper bound: the rest of a text can't be part of its prefix and is not tokenised
_PASSAGE_CHARACTERS_PER_TOKEN = 5  # length of a plain file's passages, per token of the longest prefix


class PromptRows(Config):
    """Rows {prompt_id, prompt} as JSONL or Parquet."""

    rows: Annotated[Path, Names("data")] = Field(description="A file, a folder or a pattern.")
    pool: Pool = Field("any", description="The kind of policies that answer: base, chat or any.")


class Prefixes(Config):
    """The first tokens of ordinary texts; their number is uniform from min_tokens to max_tokens (paper, App. D.1.1)."""

    texts: tuple[Annotated[Path, Names("data")], ...] = Field(
        description=".txt and .md files, JSONL or Parquet, a folder of these or one saved by datasets, or a pattern. Plain files "
        "are split at blank lines into passages that are long enough; beside data files they are not read."
    )
    tokenizer: Annotated[PathText, Names("tokenizer")] = Field(
        description="The tokenizer that counts tokens: a model's folder or package:NAME."
    )
    column: str = Field("text", description="The column with the text, in JSONL and Parquet.")
    count: PositiveInt | None = Field(
        None, description="Number of random prefixes; a larger count keeps those of a smaller one. Default: one of every text."
    )
    min_tokens: PositiveInt = Field(1, description="Tokens of the shortest prefix.")
    max_tokens: PositiveInt = Field(1024, description="Tokens of the longest prefix.")
    pool: Pool = Field("base", description="The kind of policies that answer: base, chat or any.")

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return value | {"texts": [value["texts"]]} if isinstance(value, dict) and isinstance(value.get("texts"), str) else value

    @model_validator(mode="after")
    def _is_a_range(self) -> Prefixes:
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        return self


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question, or a text to continue. pool: the kind of policies that answer."""

    prompt_id: str
    prompt: Text
    pool: Pool

    @property
    def hash(self) -> str:
        """Hash of the prompt without its id: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.prompt, sort_keys=True).encode()).hexdigest()[:16]


def read_rows(source: PromptRows, on_bad_row: OnBadRow) -> Iterator[Prompt]:
    """The prompts of a source.

    Raises:
        BadRow: a row holds no prompt or an empty one, or repeats an id (unless bad rows are skipped).
    """
    return (Prompt(prompt_id, prompt, source.pool) for prompt_id, prompt in read_prompts(source.rows, on_bad_row))


def input_files(source: PromptRows | Prefixes) -> DataFiles:
    """The files that prompts come from."""
    if isinstance(source, PromptRows):
        return survey_files([source.rows])
    return survey_files(source.texts, plain=PLAIN_SUFFIXES)


def make_prefixes(source: Prefixes, seed: int, cache: Path | None, on_bad_row: OnBadRow) -> tuple[list[Prompt], dict[str, int]]:
    """The prefixes, and the numbers of texts that were read, empty, repeated and bad.

    The order of the prefixes depends on seed and texts alone.
    cache: a JSON file that keeps the result if no text was bad, because tokenising millions of texts takes time; None: no cache.

    Raises:
        PolarError: there are fewer texts than ``count``. BadRow: a text is not valid Unicode, unless bad rows are skipped.
    """
    files = list(input_files(source).files)
    settings = source.model_dump(mode="json", exclude={"texts"})
    identity = {"texts": [sha256(file) for file in files], "seed": seed, "on_bad_row": on_bad_row.mode, **settings}
    if cache is not None and cache.exists():
        saved = json.loads(cache.read_text(encoding="utf-8"))
        if saved["identity"] == identity:
            return [Prompt(**row) for row in saved["prompts"]], saved["counts"]
    refused = on_bad_row.count
    chosen, counts = _choose(source, seed, _texts(source, files, on_bad_row))
    counts["bad"] = on_bad_row.count - refused
    prompts = _draw_prefixes(source, seed, chosen)
    counts["too_short"] = len(chosen) - len(prompts)
    if source.count is not None and len(prompts) < source.count:
        detail = ", ".join(f"{value} {name}" for name, value in counts.items())
        raise PolarError(f"{source.texts[0]}: count asks for {source.count} prefixes, its texts give {len(prompts)} ({detail})")
    if cache is not None and not counts["bad"]:  # each run reports bad rows again
        rows = [asdict(prompt) for prompt in prompts]
        write_file(cache, json.dumps({"identity": identity, "counts": counts, "prompts": rows}, ensure_ascii=False))
    return prompts, counts


def _choose(source: Prefixes, seed: int, texts: Iterator[str]) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(key, text) of the texts with the smallest hashes. Memory holds the chosen texts only."""
    counts = dict.fromkeys(["texts", "empty", "repeated"], 0)
    kept: list[tuple[int, str, str]] = []  # a heap whose first entry has the largest hash
    seen: set[bytes] = set()
    for text in texts:
        counts["texts"] += 1
        text = text[: _CHARACTERS_PER_TOKEN * source.max_tokens]
        digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
        if not text.strip():
            counts["empty"] += 1
        elif digest[:16] in seen:
            counts["repeated"] += 1
        else:
            seen.add(digest[:16])
            entry = (-int.from_bytes(digest), digest.hex()[:16], text)
            if source.count is None or len(kept) < source.count:
                heapq.heappush(kept, entry)
            else:
                heapq.heappushpop(kept, entry)
    return [(key, text) for _, key, text in sorted(kept, reverse=True)], counts


def _draw_prefixes(source: Prefixes, seed: int, chosen: list[tuple[str, str]]) -> list[Prompt]:
    """One prefix of each text that is long enough.

    A prefix is a substring of its text, so it never ends inside a character. Blank prefixes are left out: they ask for nothing.
    """
    from polar_rm.model.language_models import load_auto_tokenizer

    tokenizer, prompts = load_auto_tokenizer(source.tokenizer), []
    for start in range(0, len(chosen), 256):
        batch = chosen[start : start + 256]
        encoded = tokenizer([text for _, text in batch], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for (key, text), offsets in zip(batch, encoded["offset_mapping"], strict=True):
            if len(offsets) < source.min_tokens:
                continue
            length = random.Random(f"{seed} {key}").randint(source.min_tokens, min(source.max_tokens, len(offsets)))
            prefix = text[: offsets[length - 1][1]]
            if prefix.strip():
                prompts.append(Prompt(f"prefix-{key}", prefix, source.pool))
    return prompts


def _texts(source: Prefixes, files: list[Path], on_bad_row: OnBadRow) -> Iterator[str]:
    for file in files:
        if file.suffix.lower() in PLAIN_SUFFIXES:
            yield from passages(file, _PASSAGE_CHARACTERS_PER_TOKEN * source.max_tokens, on_bad_row)
        else:
            yield from read_texts(file, source.column, on_bad_row)


def passages(path: Path, characters: int, on_bad_row: OnBadRow) -> Iterator[str]:
    """Consecutive paragraphs, joined until they have at least this many characters.

    Without a blank line, a passage ends at twice that length. Bad rows are named by their line number.
    """
    lines: list[str] = []
    size = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").replace("\r\n", "\n")
            except UnicodeDecodeError as error:
                expected = f"UTF-8 text, but byte {error.start + 1} of the line is not"
                on_bad_row.refuse(BadRow(str(path), number, "", expected), raw.decode("utf-8", "backslashreplace"))
                continue
            if not lines and not line.strip():
                continue
            lines.append(line)
            size += len(line)
            if (size >= characters and not line.strip()) or size >= 2 * characters:
                yield "".join(lines).rstrip()
                lines, size = [], 0
    if lines:
        yield "".join(lines).rstrip()
