"""Training and held-out prompts share none; what a user should know about the split is told."""

import json

import pytest

from polar_rm.common.config import load_config
from polar_rm.errors import BadRow, ConfigError, PolarError
from polar_rm.rft.config import RftConfig
from polar_rm.rft.data import read_data
from polar_rm.rft.evaluations import open_judges

PROMPTS = [f"What is {number} times {number + 1}, as a number in words, please?" for number in range(200)]


def write(path, prompts, **columns):
    path.write_text("".join(json.dumps({"prompt": p, "reference": f"R {p}", **columns}) + "\n" for p in prompts))


def config(folder, evaluate, *overrides):
    values = ["policy.model=lm", "policy.kind=base", "reward.source=rm", f"output={folder}/o", f"data=[{folder}/rows.jsonl]"]
    return load_config(RftConfig, [], [*values, f"evaluate={json.dumps(evaluate)}", *overrides])


def test_a_share_of_the_prompts_is_held_out(tmp_path):
    write(tmp_path / "rows.jsonl", [*PROMPTS, PROMPTS[3].upper(), *PROMPTS[:50]], gold=1)
    judges = [{"kind": "answer", "column": "gold"}]
    data = read_data(config(tmp_path, {"share": 0.25, "judges": judges}))
    trained, held_out = {row["prompt"].casefold() for row in data.train}, {task.prompt.casefold() for task in data.held_out}
    assert not trained & held_out and trained | held_out == {prompt.casefold() for prompt in PROMPTS}
    assert len(data.train) + len(data.held_out) == 251
    assert 0.15 < len(held_out) / 200 < 0.35
    assert data.held_out[0].row["gold"] == 1 and data.held_out[0].reference == f"R {data.held_out[0].prompt}"
    other = read_data(config(tmp_path, {"share": 0.25, "judges": judges}, "seed=1"))
    assert {task.prompt for task in other.held_out} != {task.prompt for task in data.held_out}


def test_training_rows_with_held_out_prompts_are_left_out_and_near_duplicates_told(tmp_path):
    near = PROMPTS[70] + " ".join(str(number**3) for number in range(100))
    write(tmp_path / "rows.jsonl", [*PROMPTS[:60], near.replace("please", "pleese")])
    write(tmp_path / "held.jsonl", [PROMPTS[2].upper(), *PROMPTS[100:140], near])
    data = read_data(config(tmp_path, {"data": [f"{tmp_path}/held.jsonl"], "judges": [{"kind": "answer"}]}))
    assert len(data.train) == 60 and len(data.held_out) == 42
    assert data.notes[0] == "1 training rows are left out, because their prompts are held out"
    assert data.notes[1].startswith("1 of 42 held-out prompts nearly equal a training prompt, such as 'What is 70 times")
    assert len(data.notes) == 2


def test_few_held_out_prompts_are_told(tmp_path):
    write(tmp_path / "rows.jsonl", PROMPTS[:10])
    write(tmp_path / "held.jsonl", PROMPTS[20:49] + PROMPTS[20:22])
    data = read_data(config(tmp_path, {"data": [f"{tmp_path}/held.jsonl"], "judges": [{"kind": "answer"}]}))
    assert data.notes == ["there are only 29 held-out prompts: the intervals are too narrow, and few differences show"]


@pytest.mark.parametrize(("held", "side"), [(PROMPTS[:10], "training"), (PROMPTS[:12], "training")])
def test_no_prompt_left(tmp_path, held, side):
    write(tmp_path / "rows.jsonl", PROMPTS[:10])
    write(tmp_path / "held.jsonl", held)
    with pytest.raises(PolarError, match=f"no {side} prompt is left of {10 + len(held)} rows"):
        read_data(config(tmp_path, {"data": [f"{tmp_path}/held.jsonl"], "judges": [{"kind": "answer"}]}))
    with pytest.raises(PolarError, match="no held-out prompt is left of 10 rows"):
        read_data(config(tmp_path, {"share": 1e-9, "judges": [{"kind": "answer"}]}))


def test_rows_without_what_a_judge_needs_are_named(tmp_path):
    write(tmp_path / "rows.jsonl", PROMPTS[:10])
    write(tmp_path / "held.jsonl", PROMPTS[20:24])
    for evaluate in ({"data": [f"{tmp_path}/held.jsonl"]}, {"share": 0.999}):
        settings = config(tmp_path, evaluate | {"judges": [{"kind": "answer", "column": "gold"}]})
        with pytest.raises(BadRow, match=r"(held|rows)\.jsonl: row 1: field 'gold': expected the right answer"):
            read_data(settings, open_judges(settings))


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"judges": [{"kind": "answer"}]}, "evaluate: set one of data and share"),
        ({"share": 0.1, "data": ["a"], "judges": [{"kind": "answer"}]}, "set one of data and share"),
        ({"share": 0.1, "judges": []}, "evaluate.judges: list should have at least 1 item"),
        ({"share": 0.1, "judges": [{"kind": "answer"}, {"kind": "answer"}]}, "two judges have the name 'answer'"),
        ({"share": 0.1, "judges": [{"kind": "answer", "name": "reward"}]}, "the run's own reward has the name 'reward'"),
        ({"share": 0.1, "judges": [{"kind": "gold", "model": "rm/"}]}, "gold: the gold model is the reward model itself"),
        ({"share": 0.1, "judges": [{"kind": "function", "function": "os.path"}]}, "expected module:function"),
        ({"share": 0.1, "judges": [{"kind": "answer", "colum": "x"}]}, "unknown key 'evaluate.judges.0"),
    ],
)
def test_mistakes_in_the_config(tmp_path, evaluate, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, evaluate)
