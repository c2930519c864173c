"""Training on continuations: the same loop, without references."""

import random

import pytest
from support import runs
from support.plain_texts import text_config, texts

from polar_rm.common.config import load_config
from polar_rm.corpus.build import build
from polar_rm.errors import PolarError
from polar_rm.training.config import TrainConfig
from polar_rm.training.trainer import plan, train


def corpus(folder, rows, **changes):
    build(settings := text_config(folder, rows, splits={"prompts": 0.25}, **changes))
    return settings.output


def test_a_run_needs_to_be_told_that_there_are_no_references(tmp_path):
    output = corpus(tmp_path / "corpus", texts(12))
    data = {"train": [str(output / "train")], "eval": [str(output / "unseen_texts")]}
    file = runs.config(tmp_path, data=data)
    with pytest.raises(PolarError, match="row 1 has no reference .*; data.reference=empty trains without references"):
        plan(load_config(TrainConfig, [file]))
    planned = plan(load_config(TrainConfig, ["recipe:pretrain_continuations", file], ["batch_size=4"]))
    assert planned is not None


def about_one_word(count):
    """Texts that say one word again and again between numbers. A continuation of another text mostly says another word."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        word = rng.choice(runs.WORDS)
        rows.append({"text": " ".join(f"{word} {rng.randrange(10)}" for _ in range(rng.randint(14, 18)))})
    return rows


@pytest.mark.slow
def test_a_run_learns_to_tell_the_true_continuation(tmp_path):
    """One in fourteen negatives is about the same word, so that 0.96 is the best possible."""
    output = corpus(tmp_path / "corpus", about_one_word(300), pairing={"min_beginning": 20, "min_continuation": 20})
    data = {"train": [str(output / "train")], "eval": [str(output / "unseen_texts")], "reference": "empty"}
    file = runs.config(tmp_path, data=data, epochs=2, row_tokens=2048, loss={"centring": 0.01})
    accuracy = train(load_config(TrainConfig, [file]))["eval"]["accuracy"]
    assert accuracy > 0.75
