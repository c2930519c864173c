"""Items with several references: in this process, in files, over servers of every kind."""

import json

import httpx
import pytest
from support import fakes, tiny

from polar_rm.client import RewardClient
from polar_rm.errors import BadRow, PolarError
from polar_rm.records import ScoreItem, read_comparisons, read_items, write_records
from polar_rm.rewards.outcomes import Failure
from polar_rm.scoring.files import score_file
from polar_rm.scoring.scorer import Scorer

SEVERAL = [
    ScoreItem("p", ("the fox", "a lazy dog", [{"role": "assistant", "content": "the river bank"}]), "a quick fox"),
    ScoreItem("p", "the fox", "over the dog"),
    ScoreItem("p", ("the fox", "a lazy dog", [{"role": "assistant", "content": "the river bank"}]), "over the dog"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.reward_model(tmp_path_factory.mktemp("lm"))


def references(item):
    return item.reference if isinstance(item.reference, tuple) else (item.reference,)


def separate(score, item, output=None):
    """The reward under each reference, each scored alone. output: None for the item's own, else a function of the reference."""
    return [
        next(iter(score([ScoreItem(item.prompt, each, item.output if output is None else output(each))]))).reward
        for each in references(item)
    ]


def expected(score, item, combine):
    rewards = separate(score, item)
    if combine == "mean":
        return sum(rewards) / len(rewards)
    return max(reward - anchor for reward, anchor in zip(rewards, separate(score, item, lambda each: each), strict=True))


@pytest.mark.parametrize("combine", ["mean", "best"])
def test_a_reward_combines_those_under_each_reference(model, combine):
    scorer = Scorer(model)
    rewards = list(scorer.score(SEVERAL, combine=combine))
    oracle = [expected(Scorer(model).score, item, combine) for item in SEVERAL]
    assert [each.reward for each in rewards] == pytest.approx(oracle, abs=2e-5)
    assert len({round(value, 4) for value in oracle}) == 3
    assert [each.anchor for each in rewards] == [None if combine == "mean" else 0.0] * 3


def test_the_best_of_two_references_is_at_least_that_of_either(model):
    several = next(Scorer(model).score([SEVERAL[0]], combine="best")).reward
    each = [
        next(Scorer(model).score([ScoreItem("p", one, "a quick fox")], combine="best")).reward for one in references(SEVERAL[0])
    ]
    assert several == pytest.approx(max(each), abs=2e-5)


def test_a_file_of_items_may_have_several_references(model, tmp_path):
    write_records(tmp_path / "items.jsonl", SEVERAL)
    for combine in ("mean", "best"):
        target = tmp_path / f"{combine}.jsonl"
        assert list(score_file(model, tmp_path / "items.jsonl", target, identity={}, combine=combine)) == [3]
        rows = [json.loads(line) for line in target.read_text().splitlines()]
        oracle = [expected(Scorer(model).score, item, combine) for item in SEVERAL]
        assert [row["reward"] for row in rows] == pytest.approx(oracle, abs=2e-5)
    write_records(tmp_path / "empty.jsonl", [ScoreItem("p", "", "a")])
    with pytest.raises(
        BadRow, match=r"empty.jsonl: row 1: field 'reference'.*the best of several references needs its own score"
    ):
        list(score_file(model, tmp_path / "empty.jsonl", tmp_path / "no.jsonl", identity={}, combine="best"))


@pytest.mark.parametrize("combine", ["mean", "best"])
@pytest.mark.parametrize("engine", ["polar", "vllm"])
def test_every_server_gives_what_scoring_here_gives(combine, engine, tmp_path):
    encoder = fakes.encoder(max_length=200, max_response_length=60)
    options = {} if engine == "polar" else {"engine": engine, "model": encoder}
    with fakes.running(fakes.make(encode=encoder)) as url, RewardClient(url, **options) as client:
        outcomes = client.score(SEVERAL, combine=combine)
        oracle = [expected(client.score, item, combine) for item in SEVERAL]
        assert [each.reward for each in outcomes] == pytest.approx(oracle, abs=1e-6)
        [blank] = client.score([ScoreItem("p", ("a", " "), "b")])
        assert isinstance(blank, Failure) and blank.code == "invalid_item" and "references[1]" in blank.message


def test_the_server_takes_several_references_itself():
    encoder = fakes.encoder(max_length=200, max_response_length=60)
    body = {"items": [{"prompt": "p", "references": ["the fox", "a lazy dog"], "outputs": ["a quick fox", "dog"]}]}
    with fakes.running(fakes.make(encode=encoder)) as url, RewardClient(url) as client:
        for combine in ("mean", "best"):
            reply = httpx.post(f"{url}/v1/score", json={**body, "combine": combine}).json()
            items = [ScoreItem("p", ("the fox", "a lazy dog"), output) for output in ("a quick fox", "dog")]
            oracle = [expected(client.score, item, combine) for item in items]
            assert [row["reward"] for row in reply["results"][0]["outputs"]] == pytest.approx(oracle, abs=1e-6)


def test_rows_with_references_are_read_only_by_who_can_use_them(tmp_path):
    write_records(tmp_path / "items.parquet", SEVERAL)
    assert list(read_items(tmp_path / "items.parquet", several_references=True)) == SEVERAL
    with pytest.raises(BadRow, match="field 'reference': expected .*the row has 'references'"):
        list(read_items(tmp_path / "items.parquet"))
    # A null beside it is no reference either: read without one, the row would silently mean something else.
    for reference in ({}, {"reference": None}):
        with pytest.raises(BadRow, match="field 'reference': expected .*'references'"):
            list(read_comparisons([{"prompt": "p", "references": ["a", "b"], "chosen": "c", "rejected": "d"} | reference]))
    row = {"prompt": "p", "references": ["a"], "chosen": "b", "rejected": "c"}
    assert next(read_comparisons([row], several_references=True)).reference == "a"
    for change, message in (
        ({"reference": "x"}, "field 'references': expected one of reference and references, but the row has both"),
        ({"references": []}, "field 'references': expected a list of at least one text, not 0"),
        ({"references": ["a", " "]}, r"field 'references\[1\]': expected a text, but it is empty"),
        ({"references": "a"}, "field 'references': expected a list of at least one text, not "),
    ):
        with pytest.raises(BadRow, match=message):
            list(read_comparisons([row | change], several_references=True))
    with pytest.raises(PolarError, match="the first rows have no column 'references', but later ones have"):
        write_records(tmp_path / "late.parquet", [SEVERAL[1]] * 5000 + SEVERAL)
