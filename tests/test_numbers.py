"""Measured numbers in README and on the site are those of rows of results.

A comment in front of a paragraph or table names the files in which its numbers stand: ``<!-- results: FOLDER/FILE.json -->``.
``FILE.json#KEY`` takes what is under one key. In a large file a wrong number may be another row's by chance: name the key where
there is one.
What was not measured by this project is listed below with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from support.documents import ROOT, documents, without_blocks

# The log and the decisions are dated notes, and the page of headlines is made from the rows.
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in documents()
    if path.relative_to(ROOT).parts[0] in ("README.md", "docs") and path.name != "decisions.md" and path.parent.name != "results"
]
_UNIT = r"(?:%|times|s|ms|seconds?|minutes?|hours?|[KMGT]i?B|tokens/s|items/s|rows/s)"
_NUMBER = re.compile(rf"(?<![\w.,/-])(\d[\d,]*\.\d+|\d[\d,]*(?= ?{_UNIT}(?!\w)))(?![\w.]*\d)")
_MARK = re.compile(r"<!-- results: (.+?) -->")
# Levels of confidence, preprints, versions, sections.
_NEVER_MEASURED = re.compile(
    r"95%|\d{4}\.\d{5}|(?:Python|torch|TRL|trl|verl|OpenRLHF|vLLM|section|sections|HTTP/)\s?\d[\d.]*(?:,? (?:and|to) [\d.]+)?"
)

# Page -> reason -> numbers.
NOT_MEASURED = {
    "README.md": {"a limit": "32"},
    "docs/calibration.md": {"an example of a setting": "0.8 80"},
    "docs/continuations.md": {"an example of a setting": "0.01"},
    "docs/data.md": {"a limit": "32"},
    "docs/evaluation.md": {"arithmetic: Wilson's interval of six of six": "0.61 1.00"},
    "docs/footguns.md": {"said in the thread": "1 0.0"},
    "docs/paper.md": {"sections and settings of the paper": "3.1 3.2 4.2 4.3 4.4 1.0 0.9"},
    "docs/proof.md": {"a factor that is assumed": "1.6", "arithmetic with the numbers before it": "35", "an aim": "40"},
    "docs/rewards.md": {"thresholds": "0.04 0.05 0.1 0.25 0.5 0.6 0.7 0.8 0.9", "an example": "63 9 91"},
    "docs/rft.md": {"a threshold": "0.5"},
    "docs/scale.md": {
        "Kubernetes, torch": "1.37 2.11",
        "arithmetic for a 7B": "0.05 1.2 34",
        "an aim": "1.3",
        "kept by tests/training/test_cluster.py": "3",
        "sizes and hours that are published": "0.94 1.8 57 175",
        "arithmetic: rounded bytes of the plan, ratios of its rows": "1.3 9 27 30 62 80 88 0.16 0.27 0.39",
        "a limit": "256",
    },
    "docs/select.md": {"examples of settings": "0.035 0.8"},
    "docs/serving.md": {
        "arithmetic: parameters times bytes": "1.8 1.70 7.36 6.3 3.2 27.4 13.7 0.5 46",
        "a card's memory": "24",
        "a setting": "512",
    },
    "docs/suites.md": {"rules and numbers of the publishers": "0.30 0.20 0.01 3.5 59.43"},
}


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Paragraphs and tables of a document without code, each with the files that the comment before it names."""
    text = re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", without_blocks(text))
    files = ""
    for block in re.split(r"\n\s*\n", text):
        if mark := _MARK.fullmatch(block.strip()):
            files = mark[1]
        elif block.strip():
            yield files, block
            files = ""


@cache
def numbers_of(file: str) -> frozenset[str]:
    """All numbers of a file of results, of what is under a key of it, or of a folder of files, as text may round them."""
    name, _, key = file.partition("#")
    path = ROOT / name
    if path.is_dir():
        return frozenset().union(*(numbers_of(each.relative_to(ROOT).as_posix()) for each in sorted(path.glob("*.json"))))
    found: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                collect(each)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.update(f"{abs(value):,.{digits}f}" for digits in range(5))

    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        collect(content[key] if key else content)
    except json.JSONDecodeError:
        collect([json.loads(line) for line in text.splitlines()])
    return frozenset(found)


def unknown_numbers(text: str, listed: set[str]) -> list[str]:
    """Numbers of a document that are in none of the rows that it names, and are not listed either."""
    return [
        f"{number} in {' '.join(block.split())[:60]!r}"
        for files, block in blocks(text)
        for number in _NUMBER.findall(_NEVER_MEASURED.sub("", block))
        if number not in listed and not any(number in numbers_of(file.strip()) for file in files.split(",") if file)
    ]


@pytest.mark.parametrize("name", PAGES)
def test_every_measured_number_is_in_a_row_of_results(name):
    listed = {number for numbers in NOT_MEASURED.get(name, {}).values() for number in numbers.split()}
    text = (ROOT / name).read_text(encoding="utf-8")
    assert unknown_numbers(text, listed) == []
    assert {number for number in listed if number not in text} == set()


def test_a_number_without_a_row_is_found():
    mark = "<!-- results: src/polar_rm/demo/provenance.json -->\n\n"
    assert unknown_numbers(f"{mark}It is right in 0.893 [0.877, 0.907] of 3,475 pairs.", set()) == []
    assert [found[:5] for found in unknown_numbers(f"{mark}It is right in 0.894.", set())] == ["0.894"]
    assert [found[:5] for found in unknown_numbers(f"{mark}A line.\n\nIt is right in 0.893.", set())] == ["0.893"]
    # Right for one of the policies, wrong for all.
    assert unknown_numbers(f"{mark}It is right in 0.895.", set()) == []
    with_key = mark.replace(".json", ".json#unseen_prompts")
    assert [found[:5] for found in unknown_numbers(f"{with_key}It is right in 0.895, not in 0.893.", set())] == ["0.895"]
    assert [found[:3] for found in unknown_numbers("It takes 3 minutes, or 12 GiB, for 95% with TRL 1.16.", {"3"})] == ["12 "]
