"""Rows of pairs and the page of mistakes: everything that was compared, as the contenders saw it."""

import csv
import json
import resource

import pyarrow.parquet as pq
import pytest

from polar_rm.errors import PolarError
from polar_rm.evaluation import evaluate
from polar_rm.evaluation.contenders.baselines import Length
from polar_rm.evaluation.page import choose, write_page
from polar_rm.evaluation.pairs import NotedScores
from polar_rm.evaluation.rows import write_pairs
from polar_rm.evaluation.tables import summarise
from polar_rm.records import Comparison

MESSAGES = [{"role": "user", "content": "why <b>?"}, {"role": "assistant", "content": "so"}]


class Fixed:
    """Scores out of a table by text, with a note on one of them."""

    def __init__(self, **scores):
        self.scores = scores

    def score_comparisons(self, comparisons):
        for comparison in comparisons:
            scores = [self.scores[text] for text in comparison.candidates]
            yield NotedScores(scores, [("truncated",) if text == "b" else () for text in comparison.candidates])


ITEMS = [
    Comparison("p1", "r1", ("a", "b", "c"), (0, 1, 1), metadata={"subset": "x", "n": 1}),
    Comparison(MESSAGES, "", ("d", "a"), (1, 0), metadata={"subset": 'y"<z>'}),
    Comparison("no pair", "r", ("a", "b"), (0, 0)),
    Comparison("p4", "r4", ("c", "d"), (0, 1), metadata={"subset": "x"}),
]
FIRST = Fixed(a=1.0, b=2.5, c=1.0, d=0.0)
SECOND = Fixed(a=3.0, b=0.0, c=0.0, d=5.0)


@pytest.fixture
def result():
    return evaluate({"m/1": FIRST, "two": SECOND}, ITEMS, baselines=["length"])


def test_each_pair_has_a_row_with_texts_scores_and_notes(result, tmp_path):
    assert write_pairs(tmp_path / "pairs.jsonl", result) == 4 == result.report["n_pairs"]
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(row["comparison"], row["better"], row["worse"]) for row in rows] == [
        (1, "a", "b"),
        (1, "a", "c"),
        (2, "a", "d"),
        (4, "c", "d"),
    ]
    first = rows[0]
    assert (first["prompt"], first["reference"], first["metadata"]) == ("p1", "r1", {"subset": "x", "n": 1})
    assert {key: value for key, value in first.items() if key.startswith("m/1.")} == {
        "m/1.better_score": 1.0,
        "m/1.worse_score": 2.5,
        "m/1.margin": -1.5,
        "m/1.right": 0.0,
        "m/1.notes": ["worse: truncated"],
    }
    assert [row["m/1.right"] for row in rows] == [0.0, 0.5, 1.0, 1.0]
    assert [row["two.right"] for row in rows] == [1.0, 1.0, 0.0, 0.0]
    assert rows[2]["prompt"] == MESSAGES and rows[2]["reference"] == ""
    assert all(row["length.right"] in (0.0, 0.5, 1.0) for row in rows)


def test_tables_have_the_same_rows(result, tmp_path):
    for name in ("pairs.jsonl", "pairs.parquet", "pairs.csv"):
        assert write_pairs(tmp_path / name, result) == 4
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "pairs.parquet").to_pylist()
    with (tmp_path / "pairs.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    for line, row, cell in zip(lines, table, cells, strict=True):
        assert list(line) == list(row) == list(cell)
        for key, value in line.items():
            if key.endswith((".notes", "metadata", "prompt")) and not isinstance(value, str):
                value = "; ".join(value) if key.endswith(".notes") else json.dumps(value, ensure_ascii=False)
                assert json.loads(row[key]) == json.loads(value) if key in ("metadata", "prompt") else row[key] == value
            else:
                assert row[key] == value
            assert cell[key] == str(row[key])
    with pytest.raises(PolarError, match=r"known: .jsonl, .parquet, .csv"):
        write_pairs(tmp_path / "pairs.txt", result)
    assert not list(tmp_path.glob(".*"))


def test_references_are_shown_as_the_contenders_got_them(tmp_path):
    result = evaluate({"m": FIRST}, ITEMS, reference="empty", baselines=())
    write_pairs(tmp_path / "pairs.jsonl", result)
    assert {json.loads(line)["reference"] for line in (tmp_path / "pairs.jsonl").read_text().splitlines()} == {""}


def test_confident_mistakes_of_all_models_come_first_in_turn(result):
    # Mistakes of the first: pair 0 (-1.5), a tie 1; of the second: 2 (-2.0), 3 (-5.0). Then what is right by least.
    assert choose(result, 10) == [0, 3, 1, 2]
    assert choose(result, 2) == [0, 3]


def test_the_page_is_one_file_with_escaped_texts(result, tmp_path):
    assert write_page(tmp_path / "page.html", result, summarise(result.report), by="subset") == 4
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article") == 4
    assert "why &lt;b&gt;?" in page and "<b>?" not in page
    assert "y&#34;&lt;z&gt;" in page and '"<z>' not in page
    assert page.index('value="wrong">mistakes') < page.index('value="all">all')  # the browser begins with the first choice
    assert ("models disagree" in page) == (len(result.scores.models) != 1)
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in page
    verdict = "m/1 and two can&#39;t be told apart"
    for word in ("comparison 1", "-1.500", "[worse: truncated]", "4 of 4 pairs", verdict, "reference"):
        assert word in page
    margins = [line.split('data-margins="')[1].split('"')[0].split() for line in page.splitlines() if "data-margins" in line]
    assert [[float(value) for value in each[:2]] for each in margins] == [[-1.5, 3.0], [1.0, -5.0], [0.0, 3.0], [1.0, -2.0]]


def test_the_page_is_bounded_and_shows_that(tmp_path):
    items = [Comparison(f"p{i}", "r" * 20_000, ("a" * 50_000, f"b{i}"), (0, 1)) for i in range(300)]
    result = evaluate([Length()], items, baselines=())
    assert write_page(tmp_path / "page.html", result, summarise(result.report), max_rows=7) == 7
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article") == 7 and "7 of 300 pairs" in page
    assert "more characters; --pairs FILE has them" in page
    assert len(page) < 7 * 25_000 + 20_000
    assert "[… 42,000 more characters" in page


@pytest.mark.slow
def test_many_pairs_take_no_memory_for_their_texts(tmp_path):
    class Many:
        def __iter__(self):
            return (Comparison(f"p{i}", "r" * 2000, ("a" * 4000 + str(i), "b" * 4000), (0, 1)) for i in range(30_000))

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    result = evaluate([Length()], Many(), baselines=())
    before = peak()
    write_page(tmp_path / "page.html", result, summarise(result.report), max_rows=20)
    write_pairs(tmp_path / "pairs.parquet", result)
    assert peak() - before < 100  # MiB; the texts are 300
