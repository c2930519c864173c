"""PPE, VerifyBench and IF-RewardBench: samples with known correctness, references, graphs."""

import logging
from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import roc_auc_score
from support.suites import grid, judge, measured, write

from polar_rm.errors import BadRow
from polar_rm.evaluation.best_of import area_under_roc, best_of_k
from polar_rm.evaluation.suites import Judged, find_suite
from polar_rm.scoring import Scorer


def test_best_of_k_is_the_mean_over_all_subsets():
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = generator.integers(0, 4, 7) / 2
        values = generator.random(7)
        expected = []
        for k in range(1, 8):
            picked = []
            for subset in combinations(range(7), k):
                top = max(scores[i] for i in subset)
                picked.append(np.mean([values[i] for i in subset if scores[i] == top]))
            expected.append(np.mean(picked))
        np.testing.assert_allclose(best_of_k(scores, values, range(1, 8)), expected, rtol=1e-12)


def test_area_under_roc_equals_that_of_scikit_learn():
    generator = np.random.default_rng(1)
    for _ in range(20):
        scores, right = generator.integers(0, 6, 30) / 4, np.r_[True, False, generator.random(28) < 0.4]
        assert area_under_roc(scores, right) == pytest.approx(roc_auc_score(right, scores))


EXTRA = {
    "mmlu-pro": {"options": ["red", "blue"], "answer": "B", "answer_index": 1, "category": "art"},
    "math": {"problem": "p", "solution": "so \\boxed{4}", "sanitized_solution": "4", "type": "algebra"},
    "gpqa": {"choices": ["x", "y"], "correct_choice": "y", "correct_choice_index": 1, "Record ID": "r"},
    "ifeval": {"instruction_id_list": ["length"], "key": 1, "score_data": [{"prompt_level_loose_acc": True}]},
    "mbpp-plus": {"code": "def f(): pass", "task_id": 1, "test_list": ["assert f()"], "source_file": "s"},
}
REFERENCES = {"mmlu-pro": "B: blue", "math": "so \\boxed{4}", "gpqa": "y", "ifeval": None, "mbpp-plus": "def f(): pass"}


def question(benchmark, number, model="llama"):
    right = [int(grid(f"{benchmark} {number} {i} right", 6) > 1) == 1 for i in range(32)]
    right[0], right[1] = True, False
    pairs = [[i, j] for i in range(32) for j in range(32) if right[i] != right[j] and (i + 2 * j + number) % 7 == 0][:5]
    return {
        "question_id": f"q{number}",
        "model_name": model,
        "prompt": f"{benchmark} {number}",
        "scores": right,
        "mean_score": float(np.mean(right)),
        "parsed_outputs": ["o"] * 32,
        **{f"response_{i + 1}": f"{benchmark} {number} {model} {i}" for i in range(32)},
        "conflict_pairs": pairs,
        "sampled_conflict_pairs": pairs,
        **EXTRA[benchmark],
    }


def vote(number, winner, **more):
    row = {"question_id": f"v{number}", "model_a": "a", "model_b": "b", "winner": winner, "prompt": f"vote {number}"}
    row |= {"response_1": f"{number} one", "response_2": f"{number} two", "language": "English", "hard_prompt": number % 2 == 0}
    return row | {"is_code": False} | more


def test_ppe_correctness_is_the_mean_of_five_benchmarks(tmp_path):
    rows = {name: [question(name, i, model) for i in range(3) for model in ("llama", "claude")] for name in EXTRA}
    for name, own in rows.items():
        write(tmp_path / f"PPE-{name}" / "data" / "train-00000-of-00001.parquet", own)
    values, result = measured("ppe", tmp_path)
    accuracy, areas, ones, ends, ties = {}, {}, {}, {}, 0
    for name, own in rows.items():
        scored = [
            ([grid(row[f"response_{i + 1}"]) for i in range(32)], row["scores"], row["sampled_conflict_pairs"]) for row in own
        ]
        right = []
        for scores, labels, pairs in scored:
            for i, j in pairs:
                better, worse = (i, j) if labels[i] else (j, i)
                right.append(scores[better] > scores[worse])
                ties += scores[better] == scores[worse]
        accuracy[name] = np.mean(right)
        areas[name] = np.mean([roc_auc_score(labels, scores) for scores, labels, _ in scored])
        ones[name] = np.mean([labels for _, labels, _ in scored])
        tops = [np.mean([y for s, y in zip(scores, labels, strict=True) if s == max(scores)]) for scores, labels, _ in scored]
        ends[name] = np.mean(tops)
    for title, expected in (("{}", accuracy), ("{}, auc", areas), ("{}, best of 1", ones), ("{}, best of 32", ends)):
        assert {n: values[title.format(n)] for n in EXTRA} == pytest.approx(expected)
        assert values[title.format("correctness")] == pytest.approx(np.mean(list(expected.values())))
    assert result.figures[0].name == "correctness" and result.ties == ties
    assert values["math, max"] >= max(values[f"math, best of {k}"] for k in (1, 2, 4, 8, 16, 32))
    assert "math: 6 comparisons, but 512 are published" in result.notes


def test_ppe_loss_is_the_gap_to_an_oracle(tmp_path):
    path = write(tmp_path / "train.parquet", [question("math", 0)])
    suite = find_suite("ppe")
    [comparison] = suite.read(path)
    oracle = tuple(1.0 - rank for rank in comparison.ranks)
    for scores, sign in ((oracle, 0), (tuple(-score for score in oracle), 1)):
        values = {figure.name: figure.value for figure in suite.measure([Judged(comparison, scores)]).figures}
        right, n = sum(oracle), 32
        curve = [1 - np.prod([(n - right - i) / (n - i) for i in range(k)]) for k in range(1, n + 1)]
        wrong = [np.prod([(right - i) / (n - i) for i in range(k)]) for k in range(1, n + 1)]
        assert values["math, loss"] == pytest.approx(sign * np.mean(np.subtract(curve, wrong)))
        assert values["math"] == values["math, auc"] == 1 - sign


def test_ppe_reads_references_and_samples(tmp_path):
    for name in EXTRA:
        [comparison] = find_suite("ppe").read(write(tmp_path / f"{name}.parquet", [question(name, 1)]))
        assert comparison.reference == REFERENCES[name]
        assert len(comparison.candidates) == 32 and comparison.metadata["id"] == f"{name}/q1/llama"
        assert all(
            comparison.ranks[better] == 0 and comparison.ranks[worse] == 1 for better, worse in comparison.metadata["pairs"]
        )


def test_ppe_votes_leave_ties_out(tmp_path, caplog):
    winners = ["model_a", "model_b", "tie", "tie (bothbad)"] * 10
    rows = [vote(i, winner, language="English" if i < 20 else "Polish") for i, winner in enumerate(winners)]
    with caplog.at_level(logging.WARNING):
        values, result = measured("ppe", write(tmp_path / "test-00000-of-00001.parquet", rows))
    assert "20 rows are left out: the vote was a tie" in caplog.text
    right = {}
    for i, row in enumerate(rows):
        if not row["winner"].startswith("tie"):
            one, two = grid(row["response_1"]), grid(row["response_2"])
            right[i] = one > two if row["winner"] == "model_a" else two > one
    assert values["human preference"] == pytest.approx(np.mean(list(right.values())))
    assert values["human preference, hard prompts"] == pytest.approx(np.mean([y for i, y in right.items() if i % 2 == 0]))
    assert values["human preference, other languages"] == pytest.approx(np.mean([y for i, y in right.items() if i >= 20]))
    assert result.figures[0].name == "human preference" and result.notes[0] == "there is no correctness set"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"scores": [True] * 32}, "field 'scores': expected a right and a wrong response at least"),
        ({"scores": [True, False]}, "field 'scores': expected 32 booleans, one a response"),
        ({"sampled_conflict_pairs": [[0, 40]]}, "field 'sampled_conflict_pairs': expected pairs of indices from 0 to 31"),
        ({"sampled_conflict_pairs": [[0, 0]]}, "expected pairs of a right and a wrong response, not 0 and 0"),
        ({"sampled_conflict_pairs": []}, "expected a list of at least one pair, not 0"),
        ({"response_32": None}, "field 'response_32': expected a string, not null"),
        ({"answer_index": 2}, "field 'answer_index': expected the index of one of 2 options, not 2"),
        ({"options": None, "winner": "a"}, "field 'winner': expected one of model_a, model_b, tie, tie \\(bothbad\\), not 'a'"),
    ],
)
def test_ppe_refuses_rows_that_its_rule_does_not_cover(tmp_path, change, expected):
    with pytest.raises(BadRow, match=f"x.jsonl: row 1: .*{expected}"):
        list(find_suite("ppe").read(write(tmp_path / "x.jsonl", [question("mmlu-pro", 0) | change])))


def completion(number, right, text, **more):
    row = {"question": f"question {number}", "answer": f"answer {number}", "completion": text, "gold_correct": right}
    return row | {"answer_type": ("Num", "Str")[number % 2], "answer_subtype": "s", "source": "x"} | more


def best_threshold(scores, right):
    """Every threshold tried: below all, between any two, above all."""
    values = sorted(set(scores))
    cuts = [-np.inf, *((a + b) / 2 for a, b in pairwise(values)), np.inf]
    hits = [sum((score >= cut) == label for score, label in zip(scores, right, strict=True)) for cut in cuts]
    return cuts[int(np.argmax(hits))]


def test_verifybench_verdicts_use_the_threshold_of_the_other_half(tmp_path):
    rows = [completion(i, right, f"{i} {right}", completion_id=f"{i}-{right}") for i in range(41) for right in (True, False)]
    write(tmp_path / "verify_bench.jsonl", rows)
    write(tmp_path / "verify_bench_hard.jsonl", [completion(0, True, "x")])

    def score(text):
        return grid(text, 7) + 0.5 * text.endswith("True")

    values, result = measured("verifybench", tmp_path, score)
    halves = [[row for i, row in enumerate(rows) if i // 2 % 2 == half] for half in (0, 1)]
    scores = [[score(row["completion"]) for row in half] for half in halves]
    labels = [[row["gold_correct"] for row in half] for half in halves]
    right = []
    for half in (0, 1):
        cut = best_threshold(scores[1 - half], labels[1 - half])
        right += [(s >= cut) == label for s, label in zip(scores[half], labels[half], strict=True)]
    assert values["overall"] == pytest.approx(np.mean(right))
    assert values["auc"] == pytest.approx(roc_auc_score(labels[0] + labels[1], scores[0] + scores[1]))
    paired = [score(f"{i} True") > score(f"{i} False") for i in range(41)]
    assert values["pairs"] == pytest.approx(np.mean(paired))
    assert {"Num", "Str"} < values.keys() and result.figures[0].n == 82
    assert result.notes[0] == "82 completions, but 2,000 are published"


def test_verifybench_groups_completions_by_question(tmp_path):
    rows = [completion(0, True, "a"), completion(1, False, "b"), completion(0, False, "c"), completion(0, False, "d")]
    first, second = find_suite("verifybench").read(write(tmp_path / "verify_bench.jsonl", rows))
    assert first.candidates == ("a", "c", "d") and first.ranks == (0, 1, 1) and first.reference == "answer 0"
    assert second.candidates == ("b",) and second.ranks == (1,)


def test_verifybench_hard_questions_of_one_completion_are_scored(tmp_path, checkpoint):
    rows = [completion(i, i % 3 == 0, f"completion {i}") for i in range(6)]
    write(tmp_path / "verify_bench_hard.jsonl", rows)
    suite = find_suite("verifybench-hard")
    comparisons = list(suite.read(tmp_path))
    scores = list(Scorer(checkpoint[1]).score_comparisons(comparisons))
    result = suite.measure(Judged(each, tuple(own)) for each, own in zip(comparisons, scores, strict=True))
    assert [len(own) for own in scores] == [1] * 6
    assert [figure.name for figure in result.figures] == ["overall", "Num", "Str", "auc"]
    assert "no question has a right and a wrong completion: there are no 'pairs'" in result.notes


def test_verifybench_refuses_a_label_that_is_not_boolean(tmp_path):
    with pytest.raises(BadRow, match="row 1: field 'gold_correct': expected true or false, not a string"):
        list(find_suite("verifybench").read(write(tmp_path / "v.jsonl", [completion(0, "yes", "a")])))


def instruction(number, kind, edges, responses=5, **more):
    graph = [{"chosen": {"response_id": a}, "rejected": {"response_id": b}} for a, b in edges]
    return {
        "id": number,
        "response_generation_model": "m",
        "instruction_type": kind,
        "messages": [{"role": "user", "content": f"instruction {number}"}],
        "checklist": ["c"],
        "responses": [{"response": f"{number} {i}", "judgements": [1]} for i in range(responses)],
        "preference_graph": graph,
        **more,
    }


def test_if_rewardbench_is_kendalls_tau_b_averaged_over_types(tmp_path):
    kinds = ["Single_Turn"] * 7 + ["Multi_Turn"] * 3 + ["System_Prompt"] * 2
    full = [(a, b) for a in range(5) for b in range(a + 1, 5)]
    rows = [instruction(i, kind, full) for i, kind in enumerate(kinds)]
    write(tmp_path / "data" / "if_rewardbench.json", rows)
    write(tmp_path / "inference" / "position_maps.json", [{"0": 1}])
    values, result = measured("if-rewardbench", tmp_path)
    taus, shares = {}, {}
    for row in rows:
        scores = [grid(each["response"]) for each in row["responses"]]
        tau = kendalltau([5, 4, 3, 2, 1], scores, variant="b").statistic
        taus.setdefault(row["instruction_type"], []).append(0.0 if np.isnan(tau) else tau)
        shares.setdefault(row["instruction_type"], []).append(np.mean([scores[a] > scores[b] for a, b in full]))
    assert {kind: values[kind] for kind in taus} == pytest.approx({kind: np.mean(each) for kind, each in taus.items()})
    assert values["overall"] == pytest.approx(np.mean([np.mean(each) for each in taus.values()]))
    assert values["accuracy"] == pytest.approx(np.mean([np.mean(each) for each in shares.values()]))
    assert result.figures[0].name == "overall" and result.ties > 0
    assert "12 instructions, but 842 are published" in result.notes


def test_if_rewardbench_uses_only_the_graph(tmp_path):
    path = write(tmp_path / "x.json", [instruction(0, "Multi_Turn", [(0, 2), (1, 2), (2, 4)])])
    suite = find_suite("if-rewardbench")
    [comparison] = suite.read(path)
    assert comparison.ranks == (0, 0, 1, 0, 2)
    result = suite.measure([Judged(comparison, (1.0, 3.0, 1.0, 9.0, 2.0))])  # tied, right, wrong; 3 is in no preference
    values = {figure.name: figure.value for figure in result.figures}
    assert values["overall"] == 0 and values["accuracy"] == pytest.approx(1 / 3) and result.ties == 1
    assert suite.measure([Judged(comparison, (2.0,) * 5)]).figures[0].value == 0
    assert suite.measure([Judged(comparison, (3.0, 3.0, 2.0, 0.0, 1.0))]).figures[0].value == 1


def test_if_rewardbench_counts_an_empty_graph_as_the_rule_does(tmp_path):
    rows = [instruction(0, "Multi_Turn", [(0, 1)]), instruction(1, "Multi_Turn", [])]
    values, result = measured("if-rewardbench", write(tmp_path / "x.json", rows), lambda text: -float(text.split()[1]))
    assert values["Multi_Turn"] == 0.5
    assert "1 instructions have no preferences: the rule counts each as 0" in result.notes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"instruction_type": "Other"}, "field 'instruction_type': expected one of Single_Turn, Multi_Turn, System_Prompt"),
        ({"responses": [{"response": "a"}]}, "field 'responses': expected a list of at least two responses, not 1"),
        (
            {"responses": [{"response": "a"}, {"text": "b"}]},
            "field 'responses\\[1\\].response': expected a string, but it is missing",
        ),
    ],
)
def test_if_rewardbench_refuses_incomplete_rows(tmp_path, change, expected):
    with pytest.raises(BadRow, match=f"x.json: row 1: {expected}"):
        list(find_suite("if-rewardbench").read(write(tmp_path / "x.json", [instruction(0, "Multi_Turn", [(0, 1)]) | change])))


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ([(0, 1), (1, 2), (2, 0)], "field 'preference_graph': expected no cycle, but there is one through responses"),
        ([(0, 5)], "field 'preference_graph\\[0\\].rejected.response_id': expected the index of one of 5 responses"),
        ([(0, 1), (3, 3)], "field 'preference_graph\\[1\\]': expected two different responses"),
    ],
)
def test_if_rewardbench_refuses_graphs_that_rank_nothing(tmp_path, edges, expected):
    with pytest.raises(BadRow, match=expected):
        list(find_suite("if-rewardbench").read(write(tmp_path / "x.json", [instruction(0, "Multi_Turn", edges)])))


def test_scores_of_texts_are_passed_in_order(tmp_path):
    comparisons = list(find_suite("verifybench").read(write(tmp_path / "verify_bench.jsonl", [completion(0, True, "a")])))
    assert judge(comparisons)[0].scores == (grid("a"),)
