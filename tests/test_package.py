"""What ``import polar_rm`` gives, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import polar_rm


def test_every_name_is_there():
    for name in polar_rm.__all__:
        assert getattr(polar_rm, name) is not None
    assert set(polar_rm.__all__) <= set(dir(polar_rm))
    assert polar_rm.Scorer.__name__ == "Scorer"
    with pytest.raises(AttributeError, match="module 'polar_rm' has no attribute 'scorer_of'"):
        polar_rm.scorer_of  # noqa: B018


def test_nothing_heavy_is_loaded_before_it_is_asked_for():
    code = (
        "import sys, polar_rm; polar_rm.__version__, polar_rm.Comparison, polar_rm.ScoreItem, polar_rm.RewardClient;"
        "print(*({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_saved_model_scores_in_two_lines(checkpoint):
    folder, model = checkpoint
    scorer = polar_rm.load(folder, device="cpu")
    rewards = scorer.score_outputs(prompt="p", reference="r", outputs=["a fox", "a dog"])
    again = polar_rm.Scorer(model).score_outputs(prompt="p", reference="r", outputs=["a fox", "a dog"])
    assert rewards == pytest.approx(again, abs=1e-5)
    assert rewards[0] != rewards[1]
