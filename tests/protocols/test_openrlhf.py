"""OpenRLHF's protocol: answers after templated prompts, references as labels."""

import random
import threading

import pytest
from support import fakes
from support.scored_items import ENCODER, SCORES

from polar_rm.errors import PolarError
from polar_rm.protocols import openrlhf
from polar_rm.protocols.base import sigmoid
from polar_rm.records import ScoreItem
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.scale import Scale


def test_openrlhf(post):
    prompt = "<|im_start|>user\nWhat is the capital?<|im_end|>\n<|im_start|>assistant\n"
    raw = "What is the capital?"
    body = {
        "query": [prompt + "Shanghai.<|im_end|>\n", prompt + "fox</s>", prompt],
        "prompts": [prompt] * 3,
        "labels": ["Beijing.", {"reference": [{"role": "assistant", "content": "Beijing."}], "prompt": raw}, {"reference": ""}],
    }
    reply = post("/get_reward", body)
    items = [ScoreItem(prompt, "Beijing.", "Shanghai."), ScoreItem(raw, "Beijing.", "fox"), ScoreItem(prompt, "", "")]
    assert reply["rewards"] == [fakes.fake_score(fakes.ids_of(item, ENCODER)) for item in items]
    assert all(0 <= score <= 1 for score in reply["scores"])
    assert {len(values) for values in reply["extra_logs"].values()} == {3}


def test_openrlhf_answers_are_found_after_prompts_that_decode_otherwise():
    prompt = "<s>user: Isn't it , well ?</s>\n<|assistant|>\nReasoning is off. "
    item = openrlhf.openrlhf_item(prompt.replace(" ,", ",") + "the answer<eos>", prompt, "ref")
    assert item == ScoreItem(prompt, "ref", "the answer")


def test_openrlhf_answers_begin_behind_the_last_of_equal_turns():
    turn = "<|user|>\nNow go on with the next part of the story.\n<|assistant|>\n"
    prompt = f"Isn't it , well ? {turn}{'A fox went into the wood. ' * 12}{turn}"
    item = openrlhf.openrlhf_item(prompt.replace(" ,", ",") + "the answer", prompt, "ref")
    assert item == ScoreItem(prompt, "ref", "the answer")


@pytest.mark.parametrize("answer", ["It flew.", "It flew.\n<|user|>\nContinue.\n<|assistant|>\nAnd on."])
def test_openrlhf_answers_begin_behind_the_last_of_short_equal_turns(answer):
    """The end of the first was taken for the end of the prompt: its last turn was scored as part of the answer."""
    turn = "<|user|>\nPlease do continue.\n<|assistant|>\n"
    prompt = f"Isn't it , well ? {'A fox went into the wood. ' * 12}{turn}Yes.\n{turn}"
    item = openrlhf.openrlhf_item(prompt.replace(" ,", ",") + answer, prompt, "ref")
    assert item == ScoreItem(prompt, "ref", answer)


def test_openrlhf_answers_are_found_after_prompts_that_lost_their_beginning():
    turns = "".join(f"<|im_start|>user\nAnd how high is mount {i}?<|im_end|>\n<|im_start|>assistant\n" for i in range(9))
    item = openrlhf.openrlhf_item(turns[-300:] + "Quite high.<|im_end|>", turns, "ref")
    assert item == ScoreItem(turns, "ref", "Quite high.")


def test_openrlhf_answers_are_cut_off_in_the_encoders_thread(post, monkeypatch):
    threads = set()
    item_of = openrlhf.openrlhf_item

    def recorded(*row):
        threads.add(threading.current_thread().name)
        return item_of(*row)

    monkeypatch.setattr(openrlhf, "openrlhf_item", recorded)
    post("/get_reward", {"query": ["ab"], "prompts": ["a"], "labels": ["r"]})
    assert threads == {"encoder_0"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"query": [""], "prompts": ["b"], "labels": ["r"]}, "does not begin with its prompt"),
        ({"query": ["a"], "prompts": ["b"], "labels": ["r"]}, "does not begin with its prompt"),
        ({"query": ["a"], "prompts": ["a"], "labels": [None]}, "label"),
        ({"query": ["a"], "prompts": ["a"], "labels": [""]}, "label_key"),
        ({"query": ["a"], "prompts": ["a"], "labels": [" \n"]}, "label_key"),
        ({"query": ["a"], "prompts": ["a"], "labels": [{"reference": " "}]}, "label_key"),
        ({"query": ["a"], "prompts": ["a"], "labels": [[{"role": "assistant", "content": ""}]]}, "label_key"),
        ({"query": ["a"], "prompts": ["a"], "labels": [[{"role": "assistant", "content": None}]]}, "content"),
        ({"query": ["a"], "prompts": ["a"], "labels": [[{"role": "assistant", "content": [{"type": "image"}]}]]}, "'image'"),
        (
            {"query": ["a"], "prompts": ["a"], "labels": [[{"role": "assistant", "content": 5}]]},
            "label: reference.0.content: exp",
        ),
        ({"query": ["a"], "prompts": ["a"], "labels": [{"answer": "r"}]}, "label"),
        ({"query": ["a", "b"], "prompts": ["a"], "labels": ["r"]}, "same length"),
    ],
)
def test_openrlhf_never_gets_a_made_up_reward(post, body, reason):
    assert reason in post("/get_reward", body, 400)["error"]["message"]


def test_percentiles_with_a_card():
    card = Calibration.from_rewards([*SCORES, -1000.0, 1000.0])
    app = fakes.make(encode=ENCODER, scale=Scale(card))
    row = {"query": ["overthe fox"], "prompts": ["over"], "labels": ["the dog"]}
    with fakes.running(app) as url:
        body = {"items": [{"prompt": "over", "reference": "the dog", "outputs": ["the fox"], "wrapper": "pretrain"}]}
        reply = fakes.HTTP.post(f"{url}/v1/score", json={**body, "transform": "percentile"}).json()
        assert reply["results"][0]["outputs"][0]["score"] == card.percentile(SCORES[3])
        assert "percentile" in fakes.HTTP.get(f"{url}/v1/models").json()["data"][0]["transforms"]
        reply = fakes.HTTP.post(f"{url}/get_reward", json=row).json()
        assert reply["scores"] == [card.percentile(reply["rewards"][0])] != [sigmoid(reply["rewards"][0])]


def test_a_prompt_that_shares_little_with_the_query_is_not_its_prompt():
    """wir-2: a wrong answer would be scored."""
    for shared in (1, 10, 39):
        query = "".join(chr(ord("a") + i % 26) for i in range(40)) + " and an answer"
        prompt = query[:40] + " and another text " + query[:shared]
        with pytest.raises(PolarError, match="does not begin with its prompt"):
            openrlhf.openrlhf_item(query, prompt, "ref")
    assert openrlhf.answer_after(query, "x" * 50 + query[:40]) == " and an answer"


def test_end_tokens_of_answers_are_found_in_linear_time():
    assert openrlhf.strip_end_tokens("a b </s> <|im_end|>\n") == "a b"
    assert openrlhf.strip_end_tokens("a b \n") == "a b \n"
    assert openrlhf.strip_end_tokens("</s>") == ""
    # A single regular expression takes hours on these.
    for text in (" " * 1_000_000 + "x", "x" + " " * 1_000_000):
        assert openrlhf.strip_end_tokens(text) == text


def test_overlap_is_the_longest_one():
    rng = random.Random(0)
    for _ in range(3000):
        first, second = ("".join(rng.choices("ab", k=rng.randint(0, 9))) for _ in range(2))
        longest = max(n for n in range(len(first) + 1) if second.endswith(first[:n]))
        assert openrlhf.overlap(first, second) == longest, (first, second)


@pytest.mark.parametrize("answer", ["b", "b" + "a" * 1_000_000])
def test_prompts_of_one_character_are_searched_once(answer):
    """It would take hours to compare at every position of the prompt."""
    assert openrlhf.answer_after("a" * 40 + answer, "a" * 1_000_000) == answer


def test_labels_from_tables_may_spell_messages_as_json_text():
    """H5: this holds for references and prompts, never for the policy's answer."""
    text = '[{"content": "So.", "role": "assistant"}]'
    item = openrlhf.openrlhf_item("Q" + text, "Q", text)
    assert (item.reference, item.output) == ([{"content": "So.", "role": "assistant"}], text)
