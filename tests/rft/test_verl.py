"""The reward function, called as by verl 0.9; ``make test-verl`` runs it in verl itself."""

import asyncio
import math

import numpy as np
import pytest
from support import fakes

from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.scale import Scale
from polar_rm.rft.verl import compute_score

ENCODER = fakes.encoder(max_length=200, max_response_length=60)
MESSAGES = [{"role": "user", "content": "the quick fox"}]


@pytest.fixture(scope="module")
def url():
    with fakes.running(fakes.make(encode=ENCODER)) as address:
        yield address


def score(solution="jumps", reference="the dog", extra=None, **options):
    extra = {"prompt": MESSAGES, "num_turns": None} if extra is None else extra
    return asyncio.run(compute_score("web", solution, reference, extra, **options))


def expected(prompt, reference, output, wrapper="sft"):
    return fakes.fake_score(fakes.ids_of(ScoreItem(prompt, reference, output, wrapper), ENCODER))


def test_scores_are_raw_rewards_and_truncation_is_reported(url):
    assert score(url=url) == {"score": expected(MESSAGES, "the dog", "jumps"), "truncated": 0.0}
    assert score("jumps " * 99, url=url)["truncated"] == 1.0


def test_parquets_arrays_other_keys_and_the_pretrain_wrapper(url):
    extra = {"question": "the quick", "answer": np.array([{"role": "assistant", "content": "the river"}], dtype=object)}
    result = score(extra=extra, url=url, prompt_key="question", reference_key="answer", wrapper="pretrain")
    assert result["score"] == expected("the quick", [{"role": "assistant", "content": "the river"}], "jumps", "pretrain")


def test_thinking_is_stripped_on_request(url):
    text = "<think>the bank</think>jumps"
    assert score(text, url=url)["score"] == expected(MESSAGES, "the dog", text)
    assert score(text, url=url, strip_thinking=True)["score"] == expected(MESSAGES, "the dog", "jumps")


def test_the_server_is_the_routers_the_options_or_the_environments(url, monkeypatch):
    reward = expected(MESSAGES, "the dog", "jumps")
    monkeypatch.setenv("POLAR_URL", url)
    assert score()["score"] == reward
    monkeypatch.setenv("POLAR_URL", "http://127.0.0.1:9")
    assert score(url=url)["score"] == reward
    assert score(reward_router_address=url.removeprefix("http://"), reward_model_tokenizer=object())["score"] == reward
    monkeypatch.delenv("POLAR_URL")
    with pytest.raises(PolarError, match="POLAR_URL"):
        score()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (
            {"extra": {"index": 1, "num_turns": None}},
            "data source 'web': extra_info has no 'prompt'; it holds 'index', 'num_turns'",
        ),
        ({"reference_key": "answer"}, "extra_info has no 'answer'"),
        ({"reference": ""}, "'reference'"),
        ({"reference": 72}, "'reference'"),
    ],
)
def test_rows_that_hold_no_prompt_or_reference_are_refused(arguments, reason):
    with pytest.raises(PolarError, match=reason):
        score(url="http://127.0.0.1:9", **arguments)


def test_scores_are_transformed_one_by_one(url):
    reward, anchor = expected(MESSAGES, "the dog", "jumps"), expected(MESSAGES, "the dog", "the dog")
    assert score(url=url, transform="anchored") == {"score": reward - anchor, "truncated": 0.0, "raw_reward": reward}
    card = Calibration.from_rewards([-500.0, 500.0], temperature=80.0)
    with fakes.running(fakes.make(encode=ENCODER, scale=Scale(card))) as calibrated:
        assert score(url=calibrated, transform="probability")["score"] == pytest.approx(
            1 / (1 + math.exp((anchor - reward) / 80))
        )
        assert score(url=calibrated, transform="percentile")["score"] == card.percentile(reward)
    with pytest.raises(PolarError, match="'probability' needs a calibration card"):
        score(url=url, transform="probability")
    with pytest.raises(PolarError, match="'group_zscore' needs all rewards"):
        score(url=url, transform="group_zscore")


def test_a_misspelt_option_is_an_error():
    with pytest.raises(TypeError, match="strip_thinkng"):
        score(strip_thinkng=True)
