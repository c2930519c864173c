from pathlib import Path

import numpy as np
import pytest
from support.suites import judge, write

from polar_rm.errors import BadRow, PolarError, ScoreError
from polar_rm.evaluation.suites import SUITES, Judged, find_suite
from polar_rm.records import Comparison

PAIR = {"output_1": "one", "output_2": "two"}


def llmbar(*inputs):
    return [{"input": text, **PAIR, "label": 1} for text in inputs]


def test_names_are_found_without_regard_to_case_and_hyphens():
    assert find_suite("RewardBench 2") is SUITES["rewardbench-2"]
    assert find_suite("RM_Bench") is SUITES["rm-bench"]
    assert find_suite("if-rewardbench") is SUITES["if-rewardbench"]


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(PolarError, match="unknown suite 'judgebnch'; did you mean 'judgebench'\\?; known: rewardbench, "):
        find_suite("judgebnch")


def test_every_suite_has_its_descriptions():
    for name, suite in SUITES.items():
        assert suite.name == name
        assert suite.references in ("gold", "given", "none")
        assert all((suite.title, suite.source.startswith("https://"), suite.licence, suite.rule.endswith(".")))
        with pytest.raises(AttributeError):
            suite.name = "other"


def test_the_docs_agree_with_the_suites():
    text = (Path(__file__).parents[3] / "docs" / "suites.md").read_text(encoding="utf-8")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]
    assert [row[0] for row in cells] == [f"`{name}`" for name in SUITES]
    for row, suite in zip(cells, SUITES.values(), strict=True):
        assert row[1:] == [suite.title, suite.rule, suite.references, suite.licence, suite.source]


@pytest.mark.parametrize("name", SUITES)
def test_a_folder_without_the_benchmark_is_refused(name, tmp_path):
    write(tmp_path / ".cache" / "verify_bench.jsonl", [{"a": 1}])
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(PolarError, match=f"{tmp_path}: the folder holds no "):
        list(find_suite(name).read(tmp_path))


@pytest.mark.parametrize("name", SUITES)
def test_a_missing_file_is_refused(name, tmp_path):
    with pytest.raises(PolarError, match=r"gone\.jsonl: no such file or folder"):
        list(find_suite(name).read(tmp_path / "gone.jsonl"))


@pytest.mark.parametrize("name", SUITES)
def test_an_empty_file_is_refused(name, tmp_path):
    folder = tmp_path / "Natural"
    folder.mkdir()
    (folder / "dataset.jsonl").write_text("\n")
    with pytest.raises(PolarError, match=r"dataset\.jsonl: it is empty: there are no rows"):
        list(find_suite(name).read(folder / "dataset.jsonl"))


@pytest.mark.parametrize("name", SUITES)
def test_a_row_of_another_schema_names_file_row_and_what_is_missing(name, tmp_path):
    path = write(tmp_path / "Natural" / "dataset.jsonl", [{"text": "x"}])
    with pytest.raises(BadRow) as error:
        list(find_suite(name).read(path))
    assert (error.value.path, error.value.row) == (str(path), 1)
    assert "expected" in str(error.value)


def test_a_repeated_id_is_refused_with_the_first_row(tmp_path):
    row = {"pair_id": "p1", "source": "livecodebench", "question": "q", "response_model": "m", "label": "A>B"}
    row |= {"response_A": "a", "response_B": "b"}
    first = write(tmp_path / "a.jsonl", [row])
    second = write(tmp_path / "b.jsonl", [row | {"pair_id": "p0"}, row])
    with pytest.raises(BadRow) as error:
        list(SUITES["judgebench"].read(tmp_path))
    assert str(error.value) == f"{second}: row 2: field 'pair_id': expected a unique id, but {first}: row 1 has 'p1', too"


def test_wrong_scores_are_refused_by_id(tmp_path):
    suite = SUITES["llmbar"]
    [comparison] = suite.read(write(tmp_path / "Natural.json", llmbar("q")))
    assert comparison.metadata["id"] == "Natural/Natural:1"
    with pytest.raises(ScoreError, match="llmbar: comparison Natural/Natural:1 has 2 candidates but 3 scores"):
        suite.measure([Judged(comparison, (1.0, 2.0, 3.0))])
    with pytest.raises(ScoreError, match="llmbar: comparison Natural/Natural:1 has the scores"):
        suite.measure([Judged(comparison, (1.0, float("nan")))])


@pytest.mark.parametrize("name", SUITES)
def test_no_comparisons_and_those_of_other_suites_are_refused(name):
    suite = SUITES[name]
    with pytest.raises(PolarError, match=f"{name}: there are no comparisons to measure"):
        suite.measure([])
    with pytest.raises(PolarError, match=f"comparison 1 was not read as {name}: its metadata says suite None"):
        suite.measure([Judged(Comparison("p", None, ("a", "b"), (0, 1)), (1.0, 0.0))])


def test_outcomes_have_their_prompts_and_average_to_the_value(tmp_path):
    suite = SUITES["llmbar"]
    path = write(tmp_path / "Natural.json", llmbar("p", "q", "p"))
    comparisons = list(suite.read(path))
    result = suite.measure([Judged(each, (score, 0.0)) for each, score in zip(comparisons, (1.0, -1.0, 0.0), strict=True)])
    natural = next(figure for figure in result.figures if figure.name == "Natural")
    assert natural.correct.tolist() == [1.0, 0.0, 0.0]
    assert natural.prompts.tolist() == [0, 1, 0] and natural.prompts.dtype == np.int64
    assert natural.value == natural.correct.mean() and natural.n == 3
    assert result.ties == 1
    assert "1 pairs have exactly equal scores: a tie is wrong" in result.notes


def test_a_mean_of_means_has_no_outcomes(tmp_path):
    for name in ("Natural", "Manual"):
        write(tmp_path / f"{name}.json", llmbar("q"))
    result = SUITES["llmbar"].measure(judge(SUITES["llmbar"].read(tmp_path)))
    assert result.figures[0].name == "overall" and result.figures[0].correct is None and result.figures[0].prompts is None
