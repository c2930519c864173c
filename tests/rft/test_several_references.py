"""Rows of ``polar rft`` with several references: the data, the judges, and the examples of a baseline."""

import json

import pytest
from support import fakes

from polar_rm.common.config import load_config
from polar_rm.errors import BadRow, PolarError
from polar_rm.records import ScoreItem
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import read_data, texts_of
from polar_rm.rft.judges import AnswerConfig, FunctionConfig, GoldConfig, Task, listed
from polar_rm.rft.trl import PolarReward

ENCODER = fakes.encoder(max_length=200, max_response_length=60)


def config(folder, *rows, **keys):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"policy.model": "lm", "policy.kind": "base", "reward.source": "rm", "output": folder / "o"} | keys
    return load_config(RftConfig, [], [*(f"{name}={value}" for name, value in values.items()), f"data=[{folder}/rows.jsonl]"])


ONE, TWO = {"prompt": "a", "reference": "r"}, {"prompt": "b", "references": ["s", "t"], "reference": None}


def test_rows_of_both_kinds_become_one_column(tmp_path):
    data = read_data(config(tmp_path, ONE, TWO))
    assert [row["reference"] for row in data.train] == [["r"], ["s", "t"]]
    assert data.notes == ["1 rows have several references: rewards under them are combined (mean), and a baseline trains on each"]
    assert [row["reference"] for row in read_data(config(tmp_path, ONE, {"prompt": "b", "references": ["s"]})).train] == [
        "r",
        "s",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "b", "references": ["s", " "]}, r"row 2: field 'references\[1\]': expected a text, but it is empty"),
        ({"prompt": "b", "references": []}, "row 2: field 'references': expected a list of at least one text"),
        ({"prompt": "b", "reference": "r", "references": ["s"]}, "row 2: field 'references': expected one of reference and"),
        ({"prompt": "b"}, "row 2: field 'reference': expected"),
    ],
)
def test_bad_references_are_named(row, message, tmp_path):
    with pytest.raises(BadRow, match=message):
        read_data(config(tmp_path, ONE, row))
    with pytest.raises(PolarError, match="'reference' is a string in some rows and a list of messages in others"):
        read_data(config(tmp_path, ONE, {"prompt": "b", "references": ["s", [{"role": "assistant", "content": "t"}]]}))


def test_the_reward_is_the_mean_under_the_references(tmp_path):
    rows = read_data(config(tmp_path, ONE, TWO)).train
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        found = PolarReward(url)([row["prompt"] for row in rows], ["x", "x"], reference=[row["reference"] for row in rows])
        best = PolarReward(url, combine="best")(["b"], ["s"], reference=[["s", "t"]])

    def score(prompt, reference, output="x"):
        return fakes.fake_score(fakes.ids_of(ScoreItem(prompt, reference, output), ENCODER))

    assert found == pytest.approx([score("a", "r"), (score("b", "s") + score("b", "t")) / 2])
    assert best == pytest.approx([max(0.0, score("b", "t", "s") - score("b", "t", "t"))])


def task(references, prompt="p"):
    return Task(prompt, tuple(references), "sft", {"prompt": prompt, "reference": list(references)})


def joined(prompt, completion, reference, row):
    """A user's function, which gets a list."""
    return float(isinstance(reference, list) and completion in reference)


def test_judges_take_any_reference(monkeypatch):
    answer, tasks = AnswerConfig().open(), [task(["4", "four"])] * 3
    verdicts = answer.judge(tasks, ["the answer is 4", "Four", "5"])
    assert [each.value for each in verdicts] == [1, 1, 0] and verdicts[2].note == "expected '4' or 'four'"
    monkeypatch.setattr("polar_rm.rft.judges._imported", lambda path: joined)
    assert [each.value for each in FunctionConfig(function="m:f").open().judge(tasks, ["4", "four", "5"])] == [1, 1, 0]


def test_a_gold_model_scores_by_the_mean(tmp_path):
    gold = GoldConfig(model="length").open()
    [verdict] = gold.judge([task(["r", "s"])], ["abc"])
    [single] = gold.judge([Task("p", "r", "sft", {"reference": "r"})], ["abc"])
    assert verdict.value == single.value


def test_texts_of_a_row():
    messages = [{"role": "assistant", "content": "t"}]
    assert texts_of("r") == ["r"] and texts_of(["r", "s"]) == ["r", "s"]
    assert texts_of(messages) == [messages] and texts_of((messages, messages)) == [messages] * 2
    assert listed(("r", "s")) == ["r", "s"] and listed(messages) is messages
