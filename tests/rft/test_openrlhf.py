"""The reward function, called as by OpenRLHF 0.11; ``make test-openrlhf`` runs it in OpenRLHF itself."""

import importlib.util
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import fakes

import polar_rm.rft.openrlhf
from polar_rm.errors import PolarError
from polar_rm.records import ScoreItem

ENCODER = fakes.encoder(max_length=200, max_response_length=60)
PROMPT = "<|im_start|>user\nthe quick fox<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def url(monkeypatch):
    with fakes.running(fakes.make(encode=ENCODER)) as address:
        monkeypatch.setenv("POLAR_URL", address)
        yield address


@pytest.fixture
def reward_func():
    """The function, loaded by its path as in OpenRLHF."""
    spec = importlib.util.spec_from_file_location("reward_func", polar_rm.rft.openrlhf.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reward_func


def expected(*texts):
    return fakes.fake_score(fakes.ids_of(ScoreItem(*texts), ENCODER))


def test_calls_of_many_threads_are_merged(url, reward_func):
    words = fakes.WORDS
    with ThreadPoolExecutor(len(words)) as threads:
        replies = list(threads.map(lambda word: reward_func([f"{PROMPT}{word}<|im_end|>\n"], [PROMPT], ["the dog"]), words))
    assert [reply["rewards"] for reply in replies] == [[expected(PROMPT, "the dog", word)] for word in words]
    metrics = dict(line.rsplit(" ", 1) for line in fakes.HTTP.get(f"{url}/metrics").text.splitlines())
    assert float(metrics['polar_requests_total{route="/v1/score",status="200"}']) < len(words)


def test_it_answers_as_the_route_does(url, reward_func):
    label = {"reference": "the dog", "prompt": "the quick fox"}
    labels = [
        "the dog",
        label,
        {"reference": "", "prompt": "the quick fox"},
    ]  # B6: only the route scored the last
    queries = [PROMPT + "jumps</s>", PROMPT + "over " * 99, PROMPT + "jumps"]
    rows = {"queries": queries, "prompts": [PROMPT] * 3, "labels": labels}
    reply = reward_func(**rows)
    assert reply == fakes.HTTP.post(f"{url}/get_reward", json={**rows, "query": rows["queries"]}).json()
    assert reply["rewards"][1] == expected("the quick fox", "the dog", "over " * 98 + "over")
    assert reply["rewards"][2] == expected("the quick fox", "", "jumps")
    assert reply["extra_logs"]["truncated"] == [0, 1, 0]


def test_thinking_is_stripped_on_request(url, reward_func, monkeypatch):
    row = [PROMPT + "<think>the bank</think>jumps</s>"], [PROMPT], ["the dog"]
    assert reward_func(*row)["rewards"] == [expected(PROMPT, "the dog", "<think>the bank</think>jumps")]
    for off in ("", "0", "false", "No", "off"):
        monkeypatch.setenv("POLAR_STRIP_THINKING", off)
        assert reward_func(*row)["rewards"] == [expected(PROMPT, "the dog", "<think>the bank</think>jumps")]
    for on in ("1", "True", "yes", "on"):
        monkeypatch.setenv("POLAR_STRIP_THINKING", on)
        assert reward_func(*row)["rewards"] == [expected(PROMPT, "the dog", "jumps")]
    monkeypatch.setenv("POLAR_STRIP_THINKING", "maybe")
    with pytest.raises(PolarError, match="POLAR_STRIP_THINKING: expected 1 or 0, not 'maybe'"):
        reward_func(*row)


def test_rewards_are_transformed_on_request(url, reward_func, monkeypatch):
    row = [f"{PROMPT}jumps</s>"], [PROMPT], ["the dog"]
    raw, anchor = expected(PROMPT, "the dog", "jumps"), expected(PROMPT, "the dog", "the dog")
    scores = reward_func(*row)["scores"]
    for name, reward in (("", raw), ("raw", raw), ("anchored", raw - anchor), ("tanh", math.tanh(raw / 10))):
        monkeypatch.setenv("POLAR_TRANSFORM", name)
        reply = reward_func(*row)
        assert (reply["rewards"], reply["scores"]) == ([reward], scores)
    for name, reason in (("probability", "needs a calibration card"), ("whiten", "needs all rewards"), ("x", "unknown")):
        monkeypatch.setenv("POLAR_TRANSFORM", name)
        with pytest.raises(PolarError, match=reason):
            reward_func(*row)


@pytest.mark.parametrize(("label", "reason"), [("", "label_key"), (None, "label"), ({"reference": " "}, "label_key")])
def test_no_reward_without_a_reference(url, reward_func, label, reason):
    with pytest.raises(PolarError, match=reason):
        reward_func([PROMPT + "jumps"], [PROMPT], [label])
