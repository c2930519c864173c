"""RewardBench 2, RM-Bench, JudgeBench and RMB: one right among several, styles, stored scores."""

import math

import numpy as np
import pytest
from support.suites import grid, judge, measured, write

from polar_rm.errors import BadRow, PolarError
from polar_rm.evaluation.suites import Judged, find_suite, judgebench, read_stored_scores, reward_bench_2, rm_bench


def four(identity, subset, chosen, rejected):
    return {
        "id": str(identity),
        "prompt": f"{subset} {identity}",
        "chosen": chosen,
        "rejected": rejected,
        "num_correct": len(chosen),
        "num_incorrect": len(rejected),
        "total_completions": len(chosen) + len(rejected),
        "models": ["m"],
        "subset": subset,
        "additional_metadata": {"category": "c"},
    }


def scores_in_text(text):
    return float(text.split()[-1])


def best_of_four(tmp_path, ties):
    """Files with one prompt a domain that is right, one tied with a wrong answer, one wrong; and these prompts of Ties."""
    rows = []
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        for i, right in enumerate((5, 4, 1)):
            rows.append(four(i, subset, [f"c {right}"], ["a 4", "b 2", "d 0"]))
    rows += [
        four(name, "Ties", [f"c{i} {s}" for i, s in enumerate(c)], [f"w{i} {s}" for i, s in enumerate(w)]) for name, c, w in ties
    ]
    return write(tmp_path / "data" / "test-00000-of-00001.parquet", rows)


TIES = [
    ("ref:0", [9.0], [1.0, 2.0]),
    ("tied:0", [9.0, 8.0, 7.5], [1.0, 3.0]),
    ("ref:1", [2.0], [2.0]),
    ("tied:1", [5.0, 5.0], [4.0, 3.0]),
    ("ref:2", [1.0], [3.0, 0.0]),
    ("tied:2", [6.0, 1.0], [2.0]),
    ("ref:3", [4.0], [3.5]),
    ("tied:3", [4.0, 3.0], [1.5]),
    ("ref:4", [1.0], [1.0]),
    ("tied:4", [7.0, 7.0], [7.0]),
]


def ties_by_hand(rows):
    """The formula, prompt by prompt in plain Python."""
    leads = {name: min(right) - max(wrong) for name, right, wrong in rows}
    spreads = {name: max(right) - min(right) for name, right, _ in rows}
    numbers = [name.split(":")[1] for name in leads if name.startswith("ref")]
    part = {"tied": 0.0, "ref": 0.0, "preferred": 0.0, "hard": 0.0, "margin": 0.0}
    for number in numbers:
        tied, ref, spread = leads[f"tied:{number}"], leads[f"ref:{number}"], spreads[f"tied:{number}"]
        least = min(tied, ref)
        part["tied"] += tied > 0
        part["ref"] += ref > 0
        part["preferred"] += tied > spread
        part["hard"] += least > spread
        if spread:
            part["margin"] += math.tanh(least / spread - 1)
        elif least:
            part["margin"] += math.copysign(1, least)
    mean = {name: value / len(numbers) for name, value in part.items()}
    return 0.3 * mean["tied"] + 0.3 * mean["ref"] + 0.2 * mean["preferred"] + 0.2 * mean["hard"] + 0.01 * mean["margin"], mean


def test_rewardbench_2_is_right_only_strictly_above_all(tmp_path):
    values, result = measured("rewardbench-2", best_of_four(tmp_path, TIES), scores_in_text)
    expected, parts = ties_by_hand(TIES)
    assert values["Math"] == pytest.approx(1 / 3), "the tied prompt is wrong"
    assert values["Ties"] == pytest.approx(expected)
    assert values["Ties, reference accuracy"] == pytest.approx(parts["ref"]) == pytest.approx(0.4)
    assert values["Ties, correctness preferred, hard"] == pytest.approx(parts["hard"])
    assert values["Ties, margin"] == pytest.approx(parts["margin"])
    assert values["overall"] == pytest.approx((5 / 3 + expected) / 6)
    assert result.figures[0].name == "overall"
    # The publisher's code gives the tied prompt one half.
    assert values["overall (ties shared)"] == pytest.approx((5 * 0.5 + expected) / 6)
    assert result.ties == 5 + 4, "one in each domain; in Ties one in ref:1, one in ref:4 and two in tied:4"
    assert "Math: 3 comparisons, but 183 are published" in result.notes


def test_rewardbench_2_reads_the_publishers_columns(tmp_path):
    comparisons = list(find_suite("rewardbench-2").read(best_of_four(tmp_path, TIES).parent))
    assert comparisons[0].candidates == ("c 5", "a 4", "b 2", "d 0") and comparisons[0].ranks == (0, 1, 1, 1)
    tied = next(each for each in comparisons if each.metadata["id"] == "Ties/tied:0")
    assert tied.ranks == (0, 0, 0, 1, 1) and tied.metadata["subset"] == "Ties" and tied.reference is None


def test_rewardbench_2_without_reference_prompts_has_no_ties(tmp_path):
    suite = find_suite("rewardbench-2")
    comparisons = suite.read(best_of_four(tmp_path, [("tied:7", [1.0, 2.0], [0.0])]))
    with pytest.raises(PolarError, match="Ties: no tied prompt has its reference prompt"):
        suite.measure(judge(comparisons, scores_in_text))


def test_rewardbench_2_prompts_alone_count_for_accuracy_only(tmp_path):
    ties = [*TIES[:2], ("tied:9", [1.0, 0.5], [2.0])]
    values, result = measured("rewardbench-2", best_of_four(tmp_path, ties), scores_in_text)
    assert values["Ties, tied accuracy"] == 0.5 and values["Ties, correctness preferred"] == 1
    assert "Ties: 1 prompts lack their tied or reference prompt and count for accuracy only" in result.notes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_correct": 2}, "field 'num_correct': expected 1, as many as there are in chosen and rejected, not 2"),
        ({"total_completions": 5}, "field 'total_completions': expected 4, as many"),
        ({"rejected": ["a", "b"], "total_completions": 3}, "one right answer and three wrong ones outside of Ties, not 1 and 2"),
        ({"subset": "Facts"}, "field 'subset': expected one of Factuality, Precise IF, Math, Safety, Focus, Ties, not 'Facts'"),
        ({"subset": "ties"}, "field 'id': expected ref:NUMBER or tied:NUMBER for a prompt of Ties, not '0'"),
        (
            {"subset": "Ties", "id": "tied:3"},
            "field 'chosen': expected one right answer for a reference prompt of Ties, and several",
        ),
        ({"chosen": [1]}, "field 'chosen\\[0\\]': expected a string, not 1"),
    ],
)
def test_rewardbench_2_refuses_rows_that_its_rule_does_not_cover(tmp_path, change, expected):
    row = four(0, "Math", ["c"], ["x", "y", "z"]) | change
    with pytest.raises(BadRow, match=f"test.jsonl: row 1: .*{expected}"):
        list(find_suite("rewardbench-2").read(write(tmp_path / "test.jsonl", [row])))


def styled(identity, **more):
    text = f"{more.get('domain', '')} {identity}"
    answers = {side: [f"{text} {side} {style}" for style in range(3)] for side in ("chosen", "rejected")}
    return {"id": identity, "prompt": text, **answers, **more}


def style_matrices(rows):
    """Share of prompts whose chosen answer of style i is above the rejected one of style j: float64 [3, 3]."""
    right = [np.greater.outer([grid(t) for t in row["chosen"]], [grid(t) for t in row["rejected"]]) for row in rows]
    return np.mean(right, axis=0)


def test_rm_bench_is_the_mean_of_domains_and_of_their_triangles(tmp_path):
    counts = {"chat": 4, "math": 6, "code": 3, "safety-refuse": 5, "safety-response": 2}
    rows = [styled(f"{domain}_{i}", domain=domain) for domain, count in counts.items() for i in range(count)]
    write(tmp_path / "total_dataset.json", rows)
    write(tmp_path / "chat_filtered.json", [styled(i) for i in range(9)])  # part of the whole: not read a second time
    values, result = measured("rm-bench", tmp_path)
    matrices = {
        name: style_matrices([r for r in rows if r["domain"].startswith(name)]) for name in ("chat", "math", "code", "safety")
    }
    hard = {name: matrix[np.triu_indices(3, 1)].mean() for name, matrix in matrices.items()}
    easy = {name: matrix[np.tril_indices(3, -1)].mean() for name, matrix in matrices.items()}
    normal = {name: np.diag(matrix).mean() for name, matrix in matrices.items()}
    for difficulty, by_domain in (("easy", easy), ("normal", normal), ("hard", hard)):
        assert values[difficulty] == pytest.approx(np.mean(list(by_domain.values())))
        assert values[f"safety, {difficulty}"] == pytest.approx(by_domain["safety"])
    assert values["chat"] == pytest.approx((easy["chat"] + normal["chat"] + hard["chat"]) / 3)
    assert values["overall"] == pytest.approx(np.mean([easy[n] + normal[n] + hard[n] for n in matrices]) / 3)
    assert values["easy"] != values["hard"]
    assert result.figures[0].name == "overall"
    assert result.ties == sum(grid(c) == grid(r) for row in rows for c in row["chosen"] for r in row["rejected"])
    chat = next(figure for figure in result.figures if figure.name == "chat")
    assert chat.n == 4 and chat.correct.mean() == pytest.approx(values["chat"])


def test_rm_bench_finds_the_domain_by_the_name_of_the_file(tmp_path):
    path = write(tmp_path / "safety-refuse_filtered.json", [styled(1)])
    [comparison] = find_suite("rm-bench").read(path)
    assert comparison.metadata["domain"] == "safety-refuse"
    assert comparison.ranks == (0, 0, 0, 1, 1, 1)
    assert comparison.metadata["styles"] == ["concise", "detailed", "markdown"] * 2
    _, result = measured("rm-bench", path)
    overall = result.figures[0]
    assert overall.name == "overall" and overall.correct.tolist() == [overall.value], "of one domain it is a plain mean"
    assert result.notes[0] == "'overall' rests on 1 of 4 domains and is no published number; missing: chat, math, code"


def test_published_counts_add_up():
    assert sum(rm_bench.PUBLISHED.values()) == 1327
    assert sum(reward_bench_2.PUBLISHED.values()) == 1865
    assert sum(judgebench.PUBLISHED.values()) == 620


def test_rm_bench_refuses_two_styles_and_no_domain(tmp_path):
    row = styled(1)
    with pytest.raises(BadRow, match="field 'rejected': expected three strings, one a style .*, not 4"):
        list(find_suite("rm-bench").read(write(tmp_path / "chat_filtered.json", [row | {"rejected": ["a", "b", "c", "d"]}])))
    with pytest.raises(BadRow, match="x.json: row 1: field 'domain': expected a string, but it is missing"):
        list(find_suite("rm-bench").read(write(tmp_path / "x.json", [row])))


SOURCES = ("mmlu-pro-law", "mmlu-pro-health", "livebench-reasoning", "livebench-math", "livecodebench")


def judged_pairs(n=40, model="gpt-4o-2024-05-13"):
    """Rows of an output file: two judgements each, of which the second, of the other order, is made to disagree."""
    rows = []
    for i in range(n):
        scores = [grid(f"{i} A"), grid(f"{i} B", 3)]
        first = {"judgment": {"judge_model": "m", "prompt": "", "response": "", "scores": scores}, "decision": "A>B"}
        second = {"judgment": {"judge_model": "m", "prompt": "", "response": "", "scores": scores[::-1]}, "decision": "B>A"}
        rows.append(
            {
                "pair_id": f"pair-{i}",
                "original_id": i,
                "source": SOURCES[i % len(SOURCES)],
                "question": f"question {i}",
                "response_model": model,
                "response_A": f"{i} A",
                "response_B": f"{i} B",
                "label": ("A>B", "B>A")[i % 2],
                "judge_name": "reward_model",
                "judgments": [first, second],
            }
        )
    return rows


def test_judgebench_stored_scores_join_by_id(tmp_path):
    rows = judged_pairs()
    suite = find_suite("judgebench")
    path = write(tmp_path / "outputs" / "dataset=judgebench,judge_name=reward_model.jsonl", rows)
    stored = read_stored_scores(path)
    result = suite.measure(Judged(each, stored[each.metadata["id"]]) for each in suite.read(path))
    right = {}
    for row in rows:
        a, b = row["judgments"][0]["judgment"]["scores"]
        right.setdefault(row["source"], []).append(a > b if row["label"] == "A>B" else b > a)
    values = {figure.name: figure.value for figure in result.figures}
    assert list(values) == ["overall", "knowledge", "reasoning", "math", "coding"]
    assert values["overall"] == np.mean(sum(right.values(), []))
    assert values["knowledge"] == np.mean(right["mmlu-pro-law"] + right["mmlu-pro-health"])
    assert values["coding"] == np.mean(right["livecodebench"])
    assert result.ties > 0 and "gpt-4o-2024-05-13: 40 comparisons, but 350 are published" in result.notes


def test_judgebench_reads_the_pairs_of_a_folder_but_no_outputs(tmp_path):
    rows = [{k: v for k, v in row.items() if not k.startswith("judg")} for row in judged_pairs(3)]
    write(tmp_path / "data" / "gpt.jsonl", rows)
    write(tmp_path / "outputs" / "judge.jsonl", judged_pairs(3))
    others = [row | {"pair_id": f"other {i}", "response_model": "claude"} for i, row in enumerate(rows)]
    assert [each.metadata["id"] for each in find_suite("judgebench").read(tmp_path)] == ["pair-0", "pair-1", "pair-2"]
    write(tmp_path / "data" / "other.jsonl", others)
    values, result = measured("judgebench", tmp_path)
    assert {"gpt-4o-2024-05-13", "claude"} < values.keys()
    assert result.notes[0] == "there are no pairs of math, coding: 'overall' is no published number"
    assert result.notes[1].startswith("'overall' joins the pairs of gpt-4o-2024-05-13, claude")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"source": "gsm8k"}, "field 'source': expected one that begins with mmlu-pro, livebench-reasoning, .*, not 'gsm8k'"),
        ({"label": "A=B"}, "field 'label': expected one of A>B, B>A, not 'A=B'"),
        ({"response_B": None}, "field 'response_B': expected a string, not null"),
    ],
)
def test_judgebench_refuses_rows_of_other_schemas(tmp_path, change, expected):
    with pytest.raises(BadRow, match=f"x.jsonl: row 1: {expected}"):
        list(find_suite("judgebench").read(write(tmp_path / "x.jsonl", [judged_pairs(1)[0] | change])))


@pytest.mark.parametrize(
    ("judgments", "expected"),
    [
        (None, "field 'judgments': expected the judgments of one pair, as an output file of JudgeBench has them, not null"),
        ([], "field 'judgments': expected the judgments of one pair, .*, not 0"),
        ([None], "field 'judgments\\[0\\].judgment': expected a reward model's judgment with two scores, but there is none"),
        (
            [{"judgment": {"response": "A"}}],
            "field 'judgments\\[0\\].judgment.scores': expected two scores, as reward models have",
        ),
        ([{"judgment": {"scores": [1.0, float("inf")]}}], "scores\\[1\\]': expected a finite number, not inf"),
        ([{"judgment": {"scores": [1.0]}}], "expected two scores"),
    ],
)
def test_stored_scores_of_other_judges_are_refused(tmp_path, judgments, expected):
    path = write(tmp_path / "out.jsonl", [judged_pairs(1)[0], judged_pairs(2)[1] | {"judgments": judgments}])
    with pytest.raises(BadRow, match=f"out.jsonl: row 2: .*{expected}"):
        read_stored_scores(path)


def test_a_pair_that_is_stored_twice_is_refused(tmp_path):
    with pytest.raises(BadRow, match="row 2: field 'pair_id': expected a unique id, but an earlier row has 'pair-0'"):
        read_stored_scores(write(tmp_path / "out.jsonl", judged_pairs(1) * 2))


def rmb_row(number, path, losers=None):
    messages = [{"role": "user", "content": f"{path} {number}", "language": "English"}]
    answer = {name: {"llm_name": "m", "answer": f"{path} {number} {name}"} for name in ("best", "worse")}
    row = {"conversation_input": messages, "category_path": path}
    if losers is None:
        return row | {"pair_uid": str(number), "chosen": answer["best"], "reject": answer["worse"]}
    listed = [{"llm_name": "m", "answer": f"{path} {number} loser {i}"} for i in range(losers)]
    return row | {"bon_uid": str(number), "bon_best": answer["best"], "loser_list": listed}


def test_rmb_is_the_mean_of_four_shares(tmp_path):
    right = {}
    for goal, tasks in (("Helpfulness", ("Chat/Discussion", "Code/Documentation")), ("Harmlessness", ("S1", "multi"))):
        for task in tasks:
            lists = [rmb_row(f"{task} {i}", f"BoN_set/{goal}/{task}", 2 + i % 3) for i in range(5)]
            pairs = [rmb_row(f"{task} {i}", f"Pairwise_set/{goal}/{task}") for i in range(7)]
            write(tmp_path / "BoN_set" / goal / f"{task}.json", lists)
            write(tmp_path / "Pairwise_set" / goal / f"{task}.json", pairs)
            for row in lists:
                others = max(grid(loser["answer"]) for loser in row["loser_list"])
                right.setdefault(f"{goal}, best of n", []).append(grid(row["bon_best"]["answer"]) > others)
            for row in pairs:
                right.setdefault(f"{goal}, pairwise", []).append(grid(row["chosen"]["answer"]) > grid(row["reject"]["answer"]))
    write(tmp_path / "eval" / "result.json", [{"is_correct": 1}])
    values, result = measured("rmb", tmp_path)
    assert {name: values[name] for name in right} == pytest.approx({name: np.mean(each) for name, each in right.items()})
    assert values["overall"] == pytest.approx(np.mean([np.mean(each) for each in right.values()]))
    assert 0 < values["overall"] < 1 and "pairwise, Helpfulness/Code" in values
    assert result.notes[:2] == ("best of n: 20 of 3,786 published", "pairwise: 28 of 17,131 published")


def test_rmb_names_missing_parts(tmp_path):
    path = write(tmp_path / "Paraphrasing.json", [rmb_row(1, "Pairwise_set/Helpfulness/Rewrite/Paraphrasing")])
    _, result = measured("rmb", path)
    assert "'overall' rests on 1 of 4 parts and is no published number" in result.notes[0]
    [comparison] = find_suite("rmb").read(path)
    assert comparison.prompt[0]["content"].endswith("Paraphrasing 1")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"category_path": "Helpfulness/Chat"}, "field 'category_path': expected a path such as Pairwise_set/Helpfulness/Chat"),
        ({"loser_list": []}, "field 'loser_list': expected a list of at least one answer, not 0"),
        ({"loser_list": [{"llm_name": "m"}]}, "field 'loser_list\\[0\\].answer': expected a string, but it is missing"),
        ({"bon_best": None}, "field 'bon_best': expected an object with 'answer', not null"),
    ],
)
def test_rmb_refuses_incomplete_rows(tmp_path, change, expected):
    row = rmb_row(1, "BoN_set/Harmlessness/S1", 2) | change
    with pytest.raises(BadRow, match=f"S1.json: row 1: {expected}"):
        list(find_suite("rmb").read(write(tmp_path / "S1.json", [row])))
