"""Evaluations on held-out prompts: complete or continued, never repeated; their comparison is paired by prompt."""

import json

import numpy as np
import pytest
import torch
from support import tiny

from polar_rm.common.config import load_config
from polar_rm.errors import Damaged, PolarError, ScoreError
from polar_rm.model.language_models import load_causal_lm
from polar_rm.rft.callbacks import same_randomness
from polar_rm.rft.comparison import compare
from polar_rm.rft.config import RftConfig
from polar_rm.rft.evaluations import Evaluator, means, open_judges
from polar_rm.rft.judges import Task
from polar_rm.rft.measures import group_std, likeness, repetition
from polar_rm.sampling.backends.generation import TransformersBackend
from polar_rm.sampling.backends.transformers import TransformersPolicy
from polar_rm.sampling.base import Decoding, Machine, NoSample, Request, Sample

TASKS = [Task(f"prompt {number}", f"{number}", "sft", {"reference": f"{number}"}) for number in range(5)]


class FakeBackend:
    """Answers each prompt with its number, or with "no" where its sample is odd. after: fails after so many outcomes."""

    def __init__(self, after=None, outcome=None):
        self.asked, self.after, self.outcome = [], after, outcome

    def run(self, requests, emit, stop):
        for request in requests:
            if len(self.asked) == self.after:
                raise KeyboardInterrupt
            self.asked.append(request)
            number = request.prompt.split()[1]
            emit(request, self.outcome or Sample(f"The answer is {number}" if request.sample_id % 2 == 0 else "no", "stop", 4))


def evaluator(folder, tasks=TASKS, **evaluate):
    values = ["policy.model=lm", "policy.kind=base", "reward.source=rm", f"output={folder}/o", "data=[rows.jsonl]", "seed=3"]
    settings = {"share": 0.5, "judges": [{"kind": "answer"}], "samples": 2, **evaluate}
    config = load_config(RftConfig, [], [*values, f"evaluate={json.dumps(settings)}"])
    return Evaluator(folder / "evaluation", config, tasks, open_judges(config), 17)


def test_an_evaluation_has_a_row_for_each_completion(tmp_path):
    backend = FakeBackend()
    rows = evaluator(tmp_path).evaluate(0, lambda: backend)
    assert [(row["number"], row["sample"], row["scores"]["answer"]) for row in rows] == [
        (number, sample, 1 - sample) for number in range(5) for sample in range(2)
    ]
    assert len({request.seed for request in backend.asked}) == 10
    assert rows[3]["notes"] == {"answer": "expected '1'"} and rows[2]["notes"] == {}
    assert (rows[2]["completion"], rows[2]["n_tokens"], rows[2]["reward"]) == ("The answer is 1", 4, None)
    assert means(rows) == {"answer": 0.5}
    assert evaluator(tmp_path).finished() == {0: json.loads(json.dumps(rows))}
    assert evaluator(tmp_path).policy().decoding == Decoding(max_new_tokens=17)
    assert evaluator(tmp_path, max_new_tokens=5, top_p=1).policy().decoding == Decoding(max_new_tokens=5, top_p=1)


def test_a_finished_evaluation_is_not_repeated_and_an_interrupted_one_continued(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluator(tmp_path).evaluate(20, lambda: FakeBackend(after=4))
    texts = tmp_path / "evaluation/step-000020.texts.jsonl"
    texts.write_text(texts.read_text() + '{"number": 4, "sam')  # the kill came within a line
    backend = FakeBackend()
    rows = evaluator(tmp_path).evaluate(20, lambda: backend)
    assert [(int(request.prompt_id), request.sample_id) for request in backend.asked] == [
        (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)
    ]  # fmt: skip
    assert not texts.exists()

    def refuse():
        raise AssertionError

    assert evaluator(tmp_path).evaluate(20, refuse) == rows == evaluator(tmp_path / "other").evaluate(20, FakeBackend)


def test_completions_are_kept_while_a_judge_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise ScoreError("the server is gone")

    broken = evaluator(tmp_path)
    monkeypatch.setattr(broken.judges["answer"], "judge", fail)
    with pytest.raises(ScoreError, match="gone"):
        broken.evaluate(0, FakeBackend)
    backend = FakeBackend()
    assert len(evaluator(tmp_path).evaluate(0, lambda: backend)) == 10 and not backend.asked


def test_evaluations_after_the_checkpoint_are_forgotten(tmp_path):
    for step in (0, 10, 20):
        evaluator(tmp_path).evaluate(step, FakeBackend)
    with pytest.raises(KeyboardInterrupt):
        evaluator(tmp_path).evaluate(30, lambda: FakeBackend(after=1))
    evaluator(tmp_path).forget_after(10)
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["step-000000.jsonl", "step-000010.jsonl"]


def test_an_empty_completion_counts_and_a_prompt_that_is_too_long_stops(tmp_path):
    rows = evaluator(tmp_path).evaluate(0, lambda: FakeBackend(outcome=NoSample("empty", "no text")))
    assert {(row["completion"], row["scores"]["answer"]) for row in rows} == {("", 0)}
    with pytest.raises(PolarError, match="held-out prompt 1: the policy can't complete it: 9 tokens"):
        evaluator(tmp_path / "other").evaluate(0, lambda: FakeBackend(outcome=NoSample("too_long", "9 tokens")))
    (tmp_path / "evaluation/step-000000.jsonl").write_text("{}\n{")
    with pytest.raises(Damaged, match=r"step-000000.jsonl: line 2: not a JSON object"):
        evaluator(tmp_path).finished()


def rows_of(values, names=("answer",), prompts=None):
    return [
        {"number": n, "sample": 0, "prompt": (prompts or {}).get(n, f"p{n}"), "scores": dict.fromkeys(names, v), "reward": None}
        for n, v in enumerate(values)
    ]


def test_the_difference_is_paired_by_prompt():
    """The oracle: the normal interval of the mean of paired differences. An unpaired interval would be ten times as wide."""
    draw = np.random.default_rng(0)
    before = draw.normal(0, 5, 400)
    after = before + 0.2 + draw.normal(0, 0.5, 400)
    found = compare(rows_of(before), rows_of(after), ("before", "after"))["answer"]
    error = 1.96 * (after - before).std(ddof=1) / 20
    assert found["difference"] == pytest.approx((after - before).mean())
    assert found["ci95"] == pytest.approx([found["difference"] - error, found["difference"] + error], abs=0.1 * error)
    assert found["verdict"] == "better" and found["n_prompts"] == 400
    assert "after is better on held-out prompts" in found["sentence"]
    assert compare(rows_of(after), rows_of(before), ("a", "b"))["answer"]["verdict"] == "worse"
    equal = compare(rows_of(before), rows_of(before), ("before", "after"))["answer"]
    assert equal["difference"] == 0 and equal["verdict"] == "undecided"
    assert "don't show which is better" in equal["sentence"]


def test_rows_of_one_prompt_are_one_prompt():
    same = dict.fromkeys(range(10), "p")
    found = compare(rows_of([0] * 10, prompts=same), rows_of([1] * 10, prompts=same), ("a", "b"))["answer"]
    assert (found["n_prompts"], found["ci95"], found["verdict"]) == (1, None, "undecided")
    with pytest.raises(ValueError, match="different prompts"):
        compare(rows_of([1]), rows_of([1, 2]), ("a", "b"))


def test_measures_of_texts():
    assert repetition("a b c d e") == 0 == repetition("a b c")
    assert repetition("A b c d. a B c d") == pytest.approx(1 / 5)
    assert repetition("no " * 23) == pytest.approx(19 / 20)
    assert likeness("The cat sat", "a cat, a CAT sat") == pytest.approx(2 * 2 / 8)
    assert (likeness("", ""), likeness("", "a"), likeness("b", "a")) == (1, 0, 0)
    assert group_std([1, 3, 5, 5, 9], [[0, 1], [2, 3], [4]]) == pytest.approx(0.5)
    assert group_std([1, 2], [[0], [1]]) is None


def test_a_model_in_memory_samples_as_one_in_a_folder_and_stays_as_it_was(tmp_path):
    folder = tiny.causal_lm(tmp_path / "lm", bos=True)
    policy = TransformersPolicy(
        name="p", family="p", kind="base", model=str(folder), decoding=Decoding(max_new_tokens=12, temperature=1.5)
    )
    requests = [Request(str(n), f"the lazy dog {n}" * (n + 1), 0, seed=n) for n in range(5)]

    def outcomes(backend):
        found = {}
        backend.run(
            requests, lambda request, outcome: found.__setitem__(request.prompt_id, outcome), torch.multiprocessing.Event()
        )
        return found

    expected = outcomes(policy.open(Machine("fp32", "cpu", 2)))
    tokenizer, model = load_causal_lm(str(folder), None, torch.float32)
    model.train()
    config = model.generation_config
    with TransformersBackend.around(policy, tokenizer, model, 3) as backend:
        assert outcomes(backend) == expected
    assert model.training and model.generation_config is config


def test_random_numbers_go_on_as_if_nothing_had_been_drawn():
    import random

    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = [draws(), draws()]
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first = draws()
    with same_randomness():
        draws()
    assert [first, draws()] == expected
