"""Published benchmarks with contenders: official figures, intervals also of means of means, comparisons of contenders."""

import json

import numpy as np
import pytest
from rich.console import Console
from support.suites import grid, write

from polar_rm.errors import PolarError
from polar_rm.evaluation import evaluate_suite
from polar_rm.evaluation.contenders import Given, find_contenders
from polar_rm.evaluation.suite_report import figure_rows, summarise_suite
from polar_rm.evaluation.suite_run import prompts_of, resampled
from polar_rm.evaluation.suites import SUITES, Figure, Judged
from polar_rm.evaluation.suites.tally import mean_of

SOURCES = ("mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench")


class ByText:
    """Scores by a candidate's text alone."""

    def __init__(self, score):
        self.score = score

    def score_comparisons(self, comparisons):
        for comparison in comparisons:
            yield [float(self.score(text)) for text in comparison.candidates]


def contender(name, score=grid, *, reads=False):
    scorer = Given(name, ByText(score))
    scorer.reads_references = reads
    return scorer


def judged_pairs(n=60):
    """Rows of a JudgeBench output: pairs with the scores of a reward model."""
    rows = []
    for i in range(n):
        scores = [grid(f"{i} A"), grid(f"{i} B", 3)]
        rows.append(
            {
                "pair_id": f"pair-{i}",
                "source": SOURCES[i % len(SOURCES)],
                "question": f"question {i}",
                "response_model": "gpt-4o-2024-05-13",
                "response_A": f"{i} A",
                "response_B": f"{i} B",
                "label": ("A>B", "B>A")[i % 2],
                "judgments": [{"judgment": {"scores": scores}}, {"judgment": {"scores": scores[::-1]}}],
            }
        )
    return rows


def rm_bench(folder, counts=(7, 5)):
    """Prompts of two domains; answers are named by prompt and style."""
    rows = []
    for domain, count in zip(("chat", "math"), counts, strict=True):
        for i in range(count):
            answers = {kind: [f"{domain} {i} {kind} {style}" for style in range(3)] for kind in ("chosen", "rejected")}
            rows.append({"id": f"{domain}{i}", "prompt": f"{domain} prompt {i}", "domain": domain, **answers})
    return write(folder / "total_dataset.json", rows)


def test_stored_scores_of_the_publisher_have_the_publishers_figures(tmp_path):
    rows = judged_pairs()
    path = write(tmp_path / "out.jsonl", rows)
    [stored] = find_contenders([f"theirs=scores:{path}"])
    result = evaluate_suite("judgebench", path, [stored, contender("half", lambda text: text.endswith("A"))])
    report = result.report
    right = [
        (row["judgments"][0]["judgment"]["scores"][0] > row["judgments"][0]["judgment"]["scores"][1]) == (row["label"] == "A>B")
        and len(set(row["judgments"][0]["judgment"]["scores"])) == 2
        for row in rows
    ]
    theirs = report["contenders"]["theirs"]
    assert theirs["figures"]["overall"]["value"] == pytest.approx(np.mean(right))
    assert theirs["ties"] == sum(len(set(row["judgments"][0]["judgment"]["scores"])) == 1 for row in rows)
    assert (report["headline"], report["n_comparisons"], report["limit"]) == ("overall", 60, None)
    assert list(report["contenders"]) == ["theirs", "half", "length"]
    low, high = theirs["figures"]["overall"]["ci95"]
    assert low < np.mean(right) < high
    half = report["contenders"]["half"]["figures"]["overall"]
    assert half["value"] == 0.5
    difference = report["differences"][0]
    assert difference["difference"] == pytest.approx(np.mean(right) - 0.5)
    assert difference["ci95"][0] < difference["difference"] < difference["ci95"][1] < 0 and difference["verdict"] == "second"
    assert report["facts"]["theirs"]["facts"]["joined_by"] == "id"
    with pytest.raises(PolarError, match="no scores of 1 of 61 comparisons, joined by id; the first: 'pair-60'"):
        more = write(tmp_path / "more.jsonl", judged_pairs(61))
        evaluate_suite("judgebench", more, find_contenders([f"theirs=scores:{path}"]))


def test_a_mean_of_domains_has_the_interval_of_domains_resampled_separately(tmp_path):
    """The oracle draws prompts of each domain by hand and measures each draw by the official rule."""
    path = rm_bench(tmp_path, (40, 25))
    report = evaluate_suite("rm-bench", path, [contender("m")], baselines=()).report
    suite = SUITES["rm-bench"]
    judged = [Judged(each, tuple(map(grid, each.candidates))) for each in suite.read(path)]
    domains = [[each for each in judged if each.comparison.metadata["domain"] == name] for name in ("chat", "math")]
    generator = np.random.default_rng(7)
    values = []
    for _ in range(400):
        drawn = [domain[i] for domain in domains for i in generator.integers(len(domain), size=len(domain))]
        # Prompts that are drawn twice count twice.
        values.append(suite.measure(drawn).figures[0].value)
    low, high = np.quantile(values, [0.025, 0.975])
    overall = report["contenders"]["m"]["figures"]["overall"]
    assert overall["value"] == pytest.approx(suite.measure(judged).figures[0].value)
    assert overall["ci95"] == pytest.approx([low, high], abs=0.25 * (high - low))
    assert high - low > 0.05


def test_only_figures_on_the_same_prompts_share_resamples():
    rng = np.random.default_rng(0)
    prompts = np.arange(50)
    first, same = (Figure(name, 0.0, 50, rng.random(50), prompts) for name in "ab")
    other = Figure("c", 0.0, 50, first.correct, prompts + 50)  # as many prompts of another domain
    assert np.corrcoef(resampled(first), resampled(first))[0, 1] == pytest.approx(1)
    assert abs(np.corrcoef(resampled(first), resampled(other))[0, 1]) < 0.1
    both = mean_of("mean", [first, other], [3, 1])
    assert np.allclose(resampled(both), 0.75 * resampled(first) + 0.25 * resampled(other))
    assert prompts_of(both) == 100
    assert resampled(Figure("auc", 0.5, 50, None, None)) is None
    assert resampled(mean_of("mean", [same, Figure("auc", 0.5, 50, None, None)])) is None


def test_ties_of_rewardbench_2_have_an_interval_too(tmp_path):
    rows = []
    for i in range(30):
        for kind, chosen in (("ref", [f"{i} a"]), ("tied", [f"{i} a", f"{i} b"])):
            rows.append(
                {
                    "id": f"{kind}:{i}",
                    "prompt": f"{kind} {i}",
                    "chosen": chosen,
                    "rejected": [f"{i} {kind} x", f"{i} {kind} y"],
                    "num_correct": len(chosen),
                    "num_incorrect": 2,
                    "total_completions": len(chosen) + 2,
                    "models": ["m"],
                    "subset": "Ties",
                    "additional_metadata": {"category": "c"},
                }
            )
    path = write(tmp_path / "test.parquet", rows)
    report = evaluate_suite("rewardbench-2", path, [contender("m")], baselines=()).report
    figures = report["contenders"]["m"]["figures"]
    weights = {"tied accuracy": 0.3, "reference accuracy": 0.3, "correctness preferred": 0.2, "correctness preferred, hard": 0.2}
    value = sum(weight * figures[f"Ties, {name}"]["value"] for name, weight in weights.items())
    value += 0.01 * figures["Ties, margin"]["value"]
    assert figures["Ties"]["value"] == pytest.approx(value) == pytest.approx(figures["overall"]["value"])
    low, high = figures["Ties"]["ci95"]
    assert low < value < high and figures["overall"]["ci95"] == [low, high]


def test_missing_references_are_refused_before_anything_is_scored(tmp_path):
    def never(text):
        raise AssertionError("it was called")

    path = rm_bench(tmp_path)
    with pytest.raises(
        PolarError, match=r"RM-Bench ships no references.*12 of 12 comparisons have no reference.*--reference empty"
    ):
        evaluate_suite("rm-bench", path, [contender("m", never, reads=True)])
    report = evaluate_suite("rm-bench", path, [contender("m", reads=True)], reference="empty").report
    assert (report["reference"]["mode"], list(report["contenders"])) == ("empty", ["m", "length"])
    references = write(
        tmp_path / "refs.jsonl", [{"prompt": row["prompt"], "reference": "r"} for row in json.loads(path.read_text())]
    )
    seen = []

    class Looks:
        def score_comparisons(self, comparisons):
            for comparison in comparisons:
                seen.append(comparison.reference)
                yield [0.0] * len(comparison.candidates)

    result = evaluate_suite("rm-bench", path, [Given("m", Looks())], references=references)
    assert seen == ["r"] * 12
    assert (result.report["reference"]["mode"], result.report["reference"]["file"]) == ("given", str(references))


def test_the_report_has_rule_licence_source_and_protocol(tmp_path):
    path = rm_bench(tmp_path)
    result = evaluate_suite("rm-bench", path, [contender("m"), contender("n", lambda text: -grid(text))], limit=10)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summarise_suite(result.report).rich())
    shown = console.export_text()
    for part in (
        "RM-Bench, the first 10 comparisons only",
        "by overall: m ",
        "rule: Each of 3 x 3 pairs is right",
        "references: no references; read by no contender",
        "licence ODC-BY",
        "warning: 'overall' rests on 2 of 4 domains",
        "exact ties",
    ):
        assert part in shown
    of_contenders = [line for line in result.report["warnings"] if line.startswith(("m: ", "n: ", "length: "))]
    assert all("exactly equal scores" in line for line in of_contenders)
    rows = figure_rows(result.report)
    assert list(rows)[-1] == "overall" and set(rows["overall"]) == {"m", "n", "length"}
    assert len(result.scores.pairs) == 10 * 9


def test_an_unknown_suite_and_a_missing_file_are_reported_in_one_line(tmp_path):
    with pytest.raises(PolarError, match="unknown suite 'rmbnch'; did you mean 'rm-bench'"):
        evaluate_suite("rmbnch", tmp_path, [contender("m")])
    with pytest.raises(PolarError, match="no such file"):
        evaluate_suite("rm-bench", tmp_path / "none.json", [contender("m")])
