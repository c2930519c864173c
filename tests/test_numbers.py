"""Measured numbers in README and on the site are those of rows of results.

Tables of results are made by ``benchmarks/tables.py``, and test_docs.py compares them. For other numbers a comment in front of a
paragraph or list says where they stand: ``<!-- results: SELECTION -->``, with one selection a line where there are several.
``FILE`` is a whole file. ``FILE#FIELD=VALUE`` takes its rows with this value, ``FILE#KEY`` what is under a key, and such steps
follow one another: ``FILE#contender=tfidf#seed=null#value`` (``select`` of tables.py). A wrong number may be another row's by
chance, so a selection should hold no more than the text says; one that the text says nothing of is an error.
What was not measured by this project is listed below with its reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from support.documents import ROOT, documents, without_blocks
from support.proof import importable

with importable():
    import tables

# The log and the decisions are dated notes, and the page of headlines is made from the rows.
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in documents()
    if path.relative_to(ROOT).parts[0] in ("README.md", "docs") and path.name != "decisions.md" and path.parent.name != "results"
]
_UNIT = r"(?:%|times|s|ms|seconds?|minutes?|hours?|[KMGT]i?B|tokens/s|items/s|rows/s)"
_NUMBER = re.compile(rf"(?<![\w.,/])(?<![\w-]-)(\d[\d,]*\.\d+|\d[\d,]*(?= ?{_UNIT}(?!\w)))(?![\w.]*\d)")
_MARK = re.compile(r"<!-- results:\s(.+?)\s-->", re.DOTALL)
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
    "docs/proof.md": {
        "a factor that is assumed": "1.6",
        "arithmetic with the numbers before it": "35",
        "an aim; arithmetic with the numbers before it": "40",
        "arithmetic: gain and regret of any row": "0.29",
        "chance": "0.5",
    },
    "docs/rewards.md": {"thresholds": "0.04 0.05 0.1 0.25 0.5 0.6 0.7 0.8 0.9", "an example": "63 9 91"},
    "docs/rft.md": {"a threshold": "0.5"},
    "docs/scale.md": {
        "Kubernetes, torch": "1.37 2.11",
        "arithmetic for a 7B": "0.05 1.2 34",
        "an aim": "1.3",
        "kept by tests/training/test_cluster.py": "3",
        "a size that is published": "1.8",
        "arithmetic: rounded bytes of the plan, ratios of its rows": "1.3 1.6 9 0.16 0.27 0.39",
        "a limit": "256",
    },
    "docs/select.md": {"examples of settings": "0.035 0.8"},
    "docs/serving.md": {
        "arithmetic: parameters times bytes": "1.8 1.70 7.36 6.3 3.2 27.4 13.7 0.5 46",
        "a card's memory": "24",
        "settings": "512 0.995",
    },
    "docs/suites.md": {"rules and numbers of the publishers": "0.30 0.20 0.01 3.5 59.43"},
}


def blocks(text: str) -> Iterator[tuple[list[str], str]]:
    """Paragraphs, lists and written tables of a document without code, each with the selections of the comment before it."""
    text = re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", without_blocks(tables.MADE.sub("", text)))
    selections: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        if mark := _MARK.fullmatch(block.strip()):
            selections = [line.strip() for line in mark[1].splitlines()]
        elif block.strip():
            yield selections, _NEVER_MEASURED.sub("", block)
            selections = []


@cache
def numbers_of(selection: str) -> frozenset[str]:
    """All numbers of a selection, as text may round them."""
    found: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                collect(each)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.update(f"{abs(value):,.{digits}f}" for digits in range(5))

    collect(tables.select(selection))
    return frozenset(found)


def faults_of(selections: list[str], block: str, listed: set[str]) -> list[str]:
    """Numbers of a block that are in none of its selections, and not listed either; selections without a number in the block."""
    numbers, place = _NUMBER.findall(block), f"in {' '.join(block.split())[:60]!r}"
    known = listed.union(*(numbers_of(each) for each in selections))
    unsaid = [each for each in selections if numbers_of(each).isdisjoint(numbers)]
    return [f"{number} {place}" for number in numbers if number not in known] + [f"nothing of {each} {place}" for each in unsaid]


def faults(text: str, listed: set[str]) -> list[str]:
    """What is wrong in all blocks of a document."""
    return [fault for selections, block in blocks(text) for fault in faults_of(selections, block, listed)]


def listed_on(name: str) -> set[str]:
    """The numbers of a page that were not measured."""
    return {number for numbers in NOT_MEASURED.get(name, {}).values() for number in numbers.split()}


@pytest.mark.parametrize("name", PAGES)
def test_every_measured_number_is_in_a_row_of_results(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert faults(text, listed_on(name)) == []
    assert listed_on(name) - {number for _, block in blocks(text) for number in _NUMBER.findall(block)} == set()


# Page -> how many wrong numbers are not found, of nine for each number: a paragraph says several numbers that differ in the last
# digit only, or one that differs so is listed above. Others are found.
NOT_FOUND = {"docs/proof.md": 23, "docs/scale.md": 14}


@pytest.mark.parametrize("name", PAGES)
def test_a_wrong_last_digit_is_found(name):
    listed, passed = listed_on(name), []
    for selections, block in blocks((ROOT / name).read_text(encoding="utf-8")):
        for found in _NUMBER.finditer(block):
            if found[1] in listed:
                continue
            before, after = block[: found.end(1) - 1], block[found.end(1) :]
            for digit in set("0123456789") - {found[1][-1]}:
                if not faults_of(selections, before + digit + after, listed):
                    passed.append(f"{found[1]} as {found[1][:-1]}{digit} in {' '.join(block.split())[:60]!r}")
    assert len(passed) <= NOT_FOUND.get(name, 0), "\n".join(passed)


def test_every_table_is_in_one_page():
    made = [mark[2] for name in PAGES for mark in tables.MADE.finditer((ROOT / name).read_text(encoding="utf-8"))]
    assert sorted(made) == sorted(tables.TABLES)


def test_a_number_without_a_row_is_found():
    mark = "<!-- results: src/polar_rm/demo/provenance.json -->\n\n"
    assert faults(f"{mark}It is right in 0.893 [0.877, 0.907] of 3,475 pairs.", set()) == []
    assert [found[:5] for found in faults(f"{mark}It is right in 0.877, not in 0.894.", set())] == ["0.894"]
    assert [found[:5] for found in faults(f"{mark}A line of 0.877.\n\nIt is right in 0.893.", set())] == ["0.893"]
    # Right for one of the policies, wrong for all.
    assert faults(f"{mark}It is right in 0.895.", set()) == []
    with_key = mark.replace(".json", ".json#unseen_prompts")
    assert [found[:5] for found in faults(f"{with_key}It is right in 0.895, not in 0.893.", set())] == ["0.895"]
    assert [found[:3] for found in faults("It takes 3 minutes, or 12 GiB, for 95% with TRL 1.16.", {"3"})] == ["12 "]


def test_selections_narrow_and_are_said():
    rows = "benchmarks/results/proof/small/discrimination.json#group=overall#view=given#split=unseen_prompts#seed=null"
    both = f"<!-- results:\n{rows}#contender=tfidf#value\n{rows}#contender=length#value\n-->\n\n"
    assert faults(f"{both}TF-IDF has 0.843, length 0.727.", set()) == []
    assert [found[:5] for found in faults(f"{both}TF-IDF has 0.843, length 0.727, and 0.801.", set())] == ["0.801"]
    [unsaid] = faults(f"{both}TF-IDF has 0.843, length as well.", set())
    assert unsaid.startswith(f"nothing of {rows}#contender=length#value")
    for step in ("contender=nobody", "no_such_field", "value#of_a_number"):
        with pytest.raises(ValueError, match=f"{step}: nothing has '{step.rpartition('#')[2]}'"):
            faults(f"<!-- results: {rows}#{step} -->\n\nIt is 0.843.", set())
