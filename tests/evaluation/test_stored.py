"""Scores out of files: joined by id or row, every comparison with its own, and nothing else."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polar_rm.errors import BadRow, PolarError
from polar_rm.evaluation import evaluate
from polar_rm.evaluation.contenders import find_contenders
from polar_rm.records import Comparison

ITEMS = [
    Comparison("p1", "r", ("a", "b"), (0, 1), metadata={"id": "x"}),
    Comparison("p2", "r", ("c", "d"), (1, 0), metadata={"id": 7}),
    Comparison("p3", "r", ("e", "f"), (0, 1), metadata={"pair_id": "z"}),
]
LISTS = [{"id": "x", "scores": [1, 2.5]}, {"id": 7, "scores": [3, 4]}, {"id": "z", "scores": [-1, 0]}]
ROWS = [{"id": row["id"], "candidate": i, "score": row["scores"][i]} for i in (1, 0) for row in LISTS]
PAIRS = [
    {"id": "x", "chosen_score": 1, "rejected_score": 2.5},
    {"id": 7, "chosen_score": 4, "rejected_score": 3},
    {"id": "z", "chosen_score": -1, "rejected_score": 0},
]
EXPECTED = [[1.0, 2.5], [3.0, 4.0], [-1.0, 0.0]]


def write(path, rows):
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows({**row, **({"scores": json.dumps(row["scores"])} if "scores" in row else {})} for row in rows)
        case ".parquet":
            pq.write_table(pa.Table.from_pylist([{**row, "id": str(row["id"])} for row in rows]), path)
    return path


def stored(path, items=ITEMS):
    [contender] = find_contenders([f"s=scores:{path}"])
    contender.check()
    for _ in contender.fit(items):
        pass
    return contender


@pytest.mark.parametrize("rows", [LISTS, ROWS, PAIRS], ids=["lists", "candidates", "pairs"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_three_forms_in_three_kinds_of_files(tmp_path, rows, suffix):
    contender = stored(write(tmp_path / f"s{suffix}", rows[::-1]))  # in any order
    assert list(contender.load().score_comparisons(ITEMS)) == EXPECTED
    assert contender.facts == {"scores_of": 3, "joined_by": "id"}


def test_without_ids_row_n_belongs_to_comparison_n(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "id"} for row in LISTS]
    contender = stored(write(tmp_path / "s.jsonl", rows))
    assert list(contender.load().score_comparisons(ITEMS)) == EXPECTED
    assert contender.facts["joined_by"] == "row number"
    by_number = [{**row, "id": number} for number, row in enumerate(LISTS, 1)]
    plain = [Comparison(item.prompt, "r", item.candidates, item.ranks) for item in ITEMS]
    contender = stored(write(tmp_path / "n.jsonl", by_number), plain)
    assert list(contender.load().score_comparisons(plain)) == EXPECTED
    assert contender.facts["joined_by"] == "row number, as the comparisons have no id"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (LISTS[:2], "no scores of 1 of 3 comparisons, joined by id; the first: 'z'"),
        ([*LISTS, {"id": "more", "scores": [1, 2]}], "1 stored scores have no comparison, joined by id; the first: 'more'"),
        ([LISTS[0], {"id": 7, "scores": [1, 2, 3]}, LISTS[2]], "3 scores of '7' (joined by id), which has 2 candidates"),
        (ROWS[1:], "id 'x' has the candidates [0]"[:0] + "1 scores of 'x'"),
        (ROWS[:-1], "id 'z' has the candidates [1]: they must be counted from 0 on, without gaps"),
    ],
)
def test_missing_and_extra_scores_are_reported_in_one_line(tmp_path, rows, message):
    with pytest.raises(PolarError) as caught:
        stored(write(tmp_path / "s.jsonl", rows))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "field", "expected"),
    [
        ({"id": "x", "scores": [1, None]}, "scores", "a finite number, not None"),
        ({"id": "x", "scores": [1, "NaN"]}, "scores", "a finite number, not nan"),
        ({"id": "x", "scores": "no list"}, "scores", "a list of numbers"),
        ({"id": "x", "chosen_score": 1}, "rejected_score", "a finite number, not None"),
        ({"id": "x", "candidate": 0.5, "score": 1}, "candidate", "a candidate's number from 0 on"),
        ({"candidate": 0, "score": 1}, "id", "the id of the candidate's comparison"),
        ({"id": "x", "value": 1}, "scores", "scores, or candidate and score, or chosen_score and rejected_score, or score"),
    ],
)
def test_bad_rows_name_file_row_and_field(tmp_path, row, field, expected):
    path = write(tmp_path / "s.jsonl", [row])
    with pytest.raises(BadRow) as caught:
        stored(path)
    assert (caught.value.path, caught.value.row, caught.value.field) == (str(path), 1, field)
    assert expected in str(caught.value)


def test_rows_that_contradict_each_other(tmp_path):
    for rows, message in (
        ([LISTS[0], LISTS[0]], "row 2: field 'id': expected a unique id; an earlier row has 'x'"),
        ([ROWS[0], ROWS[0]], "row 2: field 'candidate': expected one row for candidate 1 of 'x'"),
        ([LISTS[0], PAIRS[1]], "row 2: field 'chosen_score': expected 'scores' as in the rows before"),
        ([LISTS[0], {"scores": [1, 2]}], "row 2: field 'id': expected an id in every row, or in none"),
    ):
        with pytest.raises(BadRow, match=message):
            stored(write(tmp_path / "s.jsonl", rows))


def test_two_comparisons_of_one_id_can_not_be_joined(tmp_path):
    path = write(tmp_path / "s.jsonl", LISTS)
    with pytest.raises(PolarError, match="two comparisons have the id 'x'"):
        stored(path, [ITEMS[0], ITEMS[0]])


def test_stored_scores_beside_others_and_refused_before_anything_is_scored(tmp_path):
    class Never:
        def score_comparisons(self, comparisons):
            raise AssertionError("it was called")

    path = write(tmp_path / "s.jsonl", LISTS)
    contenders = find_contenders([f"s=scores:{path}"])
    report = evaluate(contenders, ITEMS).report
    assert report["contenders"]["s"]["accuracy"] == pytest.approx(1 / 3)
    assert report["facts"]["s"]["facts"] == {"scores_of": 3, "joined_by": "id"}
    with pytest.raises(PolarError, match="no scores of 1 of 4"):
        evaluate({"s": contenders[0], "never": Never()}, [*ITEMS, Comparison("p", "r", ("a", "b"), (0, 1), metadata={"id": "q"})])
