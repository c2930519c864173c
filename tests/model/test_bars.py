"""Calls of the library draw no progress bars or load reports of transformers, and leave its switches as they were."""

import threading

import pytest
import transformers
from huggingface_hub.utils import are_progress_bars_disabled
from support import tiny
from transformers.utils import logging

import polar_rm
from polar_rm.model.bars import without_bars
from polar_rm.model.language_models import load_causal_lm
from polar_rm.model.reward_model import RewardModel


@pytest.fixture
def drawing(monkeypatch):
    """transformers as it is in a program that has set nothing."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    before = logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    monkeypatch.setattr(logging, "_tqdm_active", True)
    yield
    assert logging.is_progress_bar_enabled() and are_progress_bars_disabled() == before[1]


def test_a_model_is_loaded_without_bars_unless_the_user_asks(drawing, tmp_path, capfd, monkeypatch):
    tiny.reward_model(tmp_path / "lm").save(tmp_path / "rm")
    calls = [lambda: polar_rm.load(tmp_path / "rm"), lambda: load_causal_lm(tmp_path / "lm", None, "float32")]
    capfd.readouterr()
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    plain = capfd.readouterr().err
    for call in calls:
        call()
        assert "%|" not in capfd.readouterr().err
    verbosity = logging.get_verbosity()
    monkeypatch.setattr(logging, "get_verbosity", lambda: logging.INFO)
    calls[0]()
    assert ("%|" in capfd.readouterr().err) == ("%|" in plain)  # older releases draw none
    assert verbosity > logging.INFO


def test_a_new_head_is_not_reported_as_missing(tmp_path, caplog):
    tiny.causal_lm(tmp_path / "lm")
    with caplog.at_level("WARNING", "transformers"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1)
        assert "score.weight" in caplog.text
        caplog.clear()
        RewardModel.from_causal_lm(tmp_path / "lm")
    assert "score.weight" not in caplog.text


def test_several_threads_may_load_at_once(drawing):
    inside, leave = threading.Event(), threading.Event()

    def load():
        with without_bars():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=load)
    with without_bars():
        thread.start()
        assert inside.wait(10)
    assert not logging.is_progress_bar_enabled()  # the thread is still loading
    leave.set()
    thread.join()
    assert logging.is_progress_bar_enabled()
