"""The policies of ``benchmarks/proof``, without TRL: tasks, the best of n answers, comparisons. tests_rft/ trains them."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import proof, tiny

from polar_rm.common.config import load_config
from polar_rm.encoding.settings import EncoderSettings
from polar_rm.errors import PolarError
from polar_rm.records import is_held_out


@pytest.fixture(scope="module")
def policies():
    with proof.importable():
        from proof import policies

        yield policies


@pytest.fixture
def run(policies, tmp_path):
    """A run with the prompts' file, two seeds and no models."""
    from proof.settings import Size
    from proof.steps import Run

    proof.write_size(tmp_path)
    rows = [{"prompt": f"question {n}", "reference": f"the answer is {n}", "gold": str(n)} for n in range(40)]
    rows += [{"prompt": "QUESTION  3", "reference": "copy", "gold": "3"}, {"prompt": "no gold", "reference": "r", "gold": None}]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/prompts.parquet")
    size = load_config(Size, [tmp_path / "micro.yaml"])
    return Run(size, tmp_path / "data", tmp_path / "out", tmp_path / "results", (0, 1))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_no_prompt_is_on_both_sides_and_the_corpora_hold_out_the_same(policies, run):
    counts = policies.make_tasks(run)
    assert [row["value"] for row in counts] == [6, 5]
    train, held_out = (lines(run.output / f"rft/{name}.jsonl") for name in ("train", "held_out"))
    assert all(is_held_out(row["prompt"], 0.3) for row in held_out) and not any(is_held_out(r["prompt"], 0.3) for r in train)
    assert all(row["gold"] for row in train + held_out)
    size = run.size.model_copy(update={"rft": run.size.rft.model_copy(update={"held_out_prompts": 39})})
    with pytest.raises(PolarError, match=r"39 held_out prompts with reference and gold answer are needed, \d+ are there"):
        policies.make_tasks(replace(run, size=size))


@pytest.mark.slow
def test_the_best_answer_to_each_prompt_is_selected_once(policies, run):
    """By `polar sample` and `polar select`; a second call selects nothing again."""
    policies.make_tasks(run)
    tiny.causal_lm(run.output / "lm")
    model = tiny.reward_model(run.output / "init", settings=EncoderSettings(max_length=400, max_response_length=100))
    model.save(run.output / "finetune/polar-given-0/model")
    selected = policies.select_best(run, 0)
    folder = run.output / "rft/selected-0"
    rows, items = lines(folder / "selected.jsonl"), lines(folder / "items.jsonl")
    tasks = {row["prompt"]: row["reference"] for row in lines(run.output / "rft/train.jsonl")}
    assert sorted(row["prompt"] for row in rows) == sorted({row["prompt"] for row in items})
    assert all(row["reference"] == tasks[row["prompt"]] for row in items)
    from polar_rm.model.reward_model import RewardModel
    from polar_rm.records import ScoreItem
    from polar_rm.scoring.scorer import Scorer

    scorer = Scorer(RewardModel.from_pretrained(run.output / "finetune/polar-given-0/model"))
    scores = [each.reward for each in scorer.score([ScoreItem(**item) for item in items])]
    for row, chosen in zip(rows, selected, strict=True):
        best = max(score for item, score in zip(items, scores, strict=True) if item["prompt"] == row["prompt"])
        assert chosen["score"] == pytest.approx(best, abs=1e-5)
    written = (folder / "select/selected.jsonl").stat().st_mtime_ns
    assert policies.select_best(run, 0) == selected
    assert (folder / "select/selected.jsonl").stat().st_mtime_ns == written


def evaluated(policies, run, shift=lambda arm, seed: 0.0, prompts=6):
    """Evaluations of all policies: judge ``answer`` gives the prompt's own value, and a policy's shift."""
    for arm in ("start", "grpo", "sft", "sft then grpo", "best of n", "without kl"):
        for seed in run.seeds:
            folder = policies.folder_of(run, arm, seed) / ("sft/evaluation" if arm in ("sft", "best of n") else "evaluation")
            folder.mkdir(parents=True, exist_ok=True)
            rows = [
                {"number": n, "sample": 0, "prompt": f"p{n}", "scores": {"answer": n / 10 + shift(arm, seed)}, "reward": float(n)}
                for n in range(prompts)
            ]
            (folder / f"step-{0 if arm == 'start' else 4:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "step-000009.texts.jsonl").write_text("")


def test_differences_are_paired_by_prompt_for_each_seed_and_their_mean(policies, run):
    shifts = {("grpo", 0): 0.1, ("grpo", 1): 0.3, ("sft", 0): 0.05, ("sft", 1): 0.05}
    evaluated(policies, run, lambda arm, seed: shifts.get((arm, seed), 0.0))
    rows = [row for row in policies.compare_arms(run) if row["judge"] == "answer"]
    found = {(r["first"], r["second"], r["seed"]): r for r in rows if r["measure"] == "difference"}
    assert {(seed, round(found["grpo", "sft", seed]["value"], 9)) for seed in (0, 1, None)} == {
        (0, 0.05),
        (1, 0.25),
        (None, 0.15),
    }
    # Paired: the prompts' own values, which differ by much more, are not in the interval.
    assert np.ptp(found["grpo", "start", None]["ci95"]) < 1 and found["grpo", "start", None]["n_prompts"] == 6
    means = {(r["arm"], r["seed"]): r["value"] for r in rows if r["measure"] == "mean"}
    assert means["grpo", None] == pytest.approx(0.25 + 0.2) and means["start", 0] == pytest.approx(0.25)
    assert len({(r["first"], r["second"]) for r in rows if r["measure"] == "difference"}) == len(policies.COUPLES)


def test_other_prompts_and_missing_evaluations_are_told(policies, run):
    with pytest.raises(PolarError, match="grpo-0/evaluation: there is no evaluation"):
        policies.compare_arms(run)
    evaluated(policies, run)
    path = policies.folder_of(run, "without kl", 1) / "evaluation/step-000004.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(PolarError, match="the evaluations of without kl, seed 1, are of other held-out prompts"):
        policies.compare_arms(run)


@pytest.mark.parametrize(
    ("reward", "judge", "events", "sentences", "value"),
    [
        ("better", "worse", [], ["The policy may be exploiting the reward model."], 1),
        ("better", "undecided", [{"quantity": "kl"}], [], 1),
        ("better", "worse", [], [], 0),
        ("better", "better", [{"quantity": "kl"}], [], None),
        ("undecided", "worse", [], [], None),
    ],
)
def test_a_run_that_exploits_the_reward_must_be_told(reward, judge, events, sentences, value, policies):
    held_out = {"answer": {"verdict": judge}, "reward": {"verdict": reward}}
    found = policies.exploitation({"held_out": held_out, "events": events, "sentences": sentences})
    assert found["value"] == value and ("reason" in found) == (value is None)


def test_the_steps_need_each_other_in_order(policies, run):
    from proof.plan import steps_of

    steps = {step.name: step for step in steps_of(run.size, run.seeds) if step.stage == "rft"}
    assert set(steps["rft"].needs) == steps.keys() - {"rft"} and len(steps) == 2 + 4 * 2
    assert "rft-grpo-1" in steps["rft-both-1"].needs and "finetune-polar-1" in steps["rft-best-1"].needs
    run.results.mkdir()
    with pytest.raises(PolarError, match="it needs rft-tasks, rft-grpo-0, "):
        steps["rft"].stale(run)
