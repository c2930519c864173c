"""The notebooks run on a tiny model and hold no outputs. The cells that need TRL run in tests_rft."""

from __future__ import annotations

import ast
import json

import pytest
from support import notebooks, runs, tiny

from polar_rm.encoding.settings import EncoderSettings

SCORE, FINETUNE, TUNE = notebooks.NOTEBOOKS
NEEDS_TRL = "needs-trl"


@pytest.fixture
def parameters(tmp_path):
    """A tiny reward model and ranked rows."""
    settings = EncoderSettings(max_length=300, max_response_length=80)
    tiny.reward_model(tmp_path / "lm", settings=settings).save(tmp_path / "model")
    train, test = (runs.comparisons(tmp_path / f"{name}.jsonl", 24, seed=seed) for seed, name in enumerate(("train", "test")))
    return {"MODEL": "model", "train": train.name, "test": test.name}


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_have_parameters(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))
    assert [tag for cell in notebooks.read(path) for tag in cell["tags"] if tag != NEEDS_TRL] == ["parameters"]
    assert path.stat().st_size < 20_000


def test_only_the_cells_of_the_training_need_trl():
    needing = [cell["source"] for path in notebooks.NOTEBOOKS for cell in notebooks.read(path) if NEEDS_TRL in cell["tags"]]
    assert len(needing) == 2 and "run(config" in needing[0]


@pytest.mark.slow
def test_score_and_look(tmp_path, parameters):
    printed = notebooks.run(SCORE, tmp_path, {"MODEL": "model", "PAIRS": parameters["test"], "LIMIT": 10})
    assert printed.count("'lol no idea, my mum does it haha'") == 2 and "prefix" in printed
    assert "| model |" in printed and "| tfidf |" in printed


@pytest.mark.slow
def test_finetune_and_compare(tmp_path, parameters):
    files = {"MODEL": "model", "TRAIN": parameters["train"], "TEST": parameters["test"], "OUTPUT": "run"}
    printed = notebooks.run(FINETUNE, tmp_path, files | {"STEPS": 2, "LIMIT": 10})
    assert "| before |" in printed and "| after |" in printed and "# run/model" in printed
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_tune_a_policy_up_to_the_training(tmp_path, parameters):
    values = {"MODEL": "model", "POLICY": "lm", "DATA": parameters["train"], "OUTPUT": "rft"}
    printed = notebooks.run(TUNE, tmp_path, values, without=NEEDS_TRL)
    assert "I do not know." in printed and "training prompts" in printed
    assert not (tmp_path / "rft").exists()
