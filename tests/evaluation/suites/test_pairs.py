"""RewardBench 1, M-RewardBench, LLMBar and HelpSteer3: pairs, means of means, fixed weights."""

import logging

import numpy as np
import pytest
from support.suites import grid, measured, write

from polar_rm.errors import BadRow, PolarError
from polar_rm.evaluation.suites import find_suite, m_reward_bench, reward_bench
from polar_rm.evaluation.suites.sections import SECTIONS, SUBSETS


def says(text):
    """1 for a text that begins with ``good``."""
    return float(text.startswith("good"))


def pairs(subset, right, wrong=0, **more):
    """Rows whose chosen answers score higher, and others whose rejected answers score higher."""
    texts = [("good", "bad")] * right + [("bad", "good")] * wrong
    return [
        {"id": i, "subset": subset, "prompt": f"{subset} {i}", "chosen": chosen, "rejected": rejected, **more}
        for i, (chosen, rejected) in enumerate(texts)
    ]


def test_rewardbench_weights_are_those_of_the_2985_published_pairs():
    counts = {**reward_bench.WEIGHTS, "math-prm": 447}
    assert sum(counts.values()) == 2985
    assert {section: sum(counts[subset] for subset in subsets) for section, subsets in SECTIONS.items()} == {
        "Chat": 358,
        "Chat Hard": 456,
        "Safety": 740,
        "Reasoning": 1431,
    }


def test_rewardbench_sections_are_weighted_by_fixed_numbers(tmp_path):
    right = {"alpacaeval-hard", "math-prm", "donotanswer", "llmbar-adver-GPTInst"}
    rows = [row for subset in SUBSETS for row in pairs(subset, 2 * (subset in right), 2 * (subset not in right))]
    values, result = measured("rewardbench", write(tmp_path / "filtered-00000-of-00001.parquet", rows), says)
    assert values["Chat"] == pytest.approx(95 / 358)
    assert values["Chat Hard"] == pytest.approx(92 / 456)
    assert values["Safety"] == pytest.approx(136 / 740)
    assert values["Reasoning"] == pytest.approx(0.5), "mathematics counts as much as all code"
    assert values["overall"] == pytest.approx((95 / 358 + 92 / 456 + 136 / 740 + 0.5) / 4)
    assert result.figures[0].name == "overall" and result.figures[0].correct is None
    assert "alpacaeval-easy: 2 comparisons, but 100 are published" in result.notes


def test_existing_prior_sets_of_rewardbench_count_half(tmp_path):
    rows = [row for subset in SUBSETS for row in pairs(subset, 1)]
    write(tmp_path / "data" / "filtered-00000-of-00001.parquet", rows)
    write(tmp_path / "data" / "raw-00000-of-00001.parquet", pairs("alpacaeval-easy", 0, 5))
    talk = [{"role": "user", "content": "hello"}]
    for name, right, wrong in (("anthropic_helpful", 1, 1), ("shp", 0, 2), ("mtbench_human", 0, 3)):
        prior = [
            {"prompt": talk, "chosen": row["chosen"], "rejected": row["rejected"], "subset": "own"}
            for row in pairs("x", right, wrong)
        ]
        write(tmp_path / "prior" / f"{name}-00000-of-00001.parquet", prior)
    values, _ = measured("rewardbench", tmp_path, says)
    assert values["Prior Sets"] == 0.25, "the mean of helpful (0.5) and SHP (0); MT-Bench is not among the column's sets"
    assert values["overall"] == pytest.approx((2 * 4 * 1 + 0.25) / 9)
    assert values["overall without prior sets"] == values["Chat"] == 1
    assert values["mtbench_human"] == 0
    comparisons = list(find_suite("rewardbench").read(tmp_path))
    assert len(comparisons) == len(SUBSETS) + 2 + 2 + 3
    assert any(comparison.prompt == talk for comparison in comparisons)


def test_rewardbench_without_a_section_has_a_note(tmp_path):
    rows = pairs("donotanswer", 1, 3) + pairs("alpacaeval-easy", 1)
    values, result = measured("rewardbench", write(tmp_path / "part.jsonl", rows), says)
    assert values["overall"] == (0.25 + 1) / 2
    assert result.notes[0] == "'overall' rests on 2 of 4 sections and is no published number; missing: Chat Hard, Reasoning"
    assert any(note.startswith("'Safety' rests on 1 of 5 subsets") for note in result.notes)


def test_rewardbench_refuses_an_unknown_subset(tmp_path):
    path = write(tmp_path / "filtered.jsonl", pairs("alpacaeval-easy", 1) + pairs("alpacaeval-medium", 1))
    with pytest.raises(BadRow, match="row 2: field 'subset': expected one of alpacaeval-easy, .*, not 'alpacaeval-medium'"):
        list(find_suite("rewardbench").read(path))


def test_a_string_of_a_table_is_never_read_as_messages(tmp_path):
    text = '[{"role": "user", "content": "hello"}]'
    row = pairs("hep-go", 1)[0] | {"prompt": text, "chosen": text}
    [comparison] = find_suite("rewardbench").read(write(tmp_path / "filtered.parquet", [row]))
    assert comparison.prompt == text and comparison.candidates == (text, "bad")


def test_equal_answers_are_kept_and_tied(tmp_path):
    row = pairs("hep-go", 1)[0] | {"rejected": "good"}
    values, result = measured("rewardbench", write(tmp_path / "filtered.jsonl", [row]), says)
    assert values["hep-go"] == 0 and result.ties == 1


def test_m_rewardbench_is_the_mean_of_languages_and_sections(tmp_path):
    rows = {}
    for language in ("arb_Arab", "deu_Latn"):
        rows[language] = []
        for subset in SUBSETS:
            for row in pairs(subset, 3):
                text = f"{language} {subset} {row['id']}"
                row |= {"language": language, "source": subset, "chosen": f"{text} good", "rejected": f"{text} bad"}
                rows[language].append(row)
        write(tmp_path / language / "test-00000-of-00001.parquet", rows[language])
    values, result = measured("m-rewardbench", tmp_path)
    expected = {}
    for language, own in rows.items():
        for section, subsets in SECTIONS.items():
            accuracy = [
                np.mean([grid(r["chosen"]) > grid(r["rejected"]) for r in own if r["source"] == subset]) for subset in subsets
            ]
            weights = [m_reward_bench.WEIGHTS[subset] for subset in subsets]
            expected[language, section] = np.dot(accuracy, weights) / sum(weights)
        assert values[language] == pytest.approx(np.mean([expected[language, section] for section in SECTIONS]))
    assert values["Reasoning"] == pytest.approx(np.mean([expected[language, "Reasoning"] for language in rows]))
    assert values["overall"] == pytest.approx(np.mean(list(expected.values())))
    assert result.notes[0] == "'overall' rests on 2 of 23 languages and is no published number"
    assert sum(m_reward_bench.WEIGHTS.values()) - 983 + 447 == 2869, "rows of each language"


def test_m_rewardbench_names_missing_subsets_of_a_language(tmp_path):
    rows = [row | {"language": "pol_Latn", "source": "hep-go"} for row in pairs("hep-go", 1)]
    _, result = measured("m-rewardbench", write(tmp_path / "test.parquet", rows), says)
    assert result.notes[0].startswith("'pol_Latn' is no published number: there are no pairs of alpacaeval-easy, ")


def test_llmbar_is_the_mean_of_five_subsets(tmp_path):
    accuracy = {}
    for name, count in {"Natural": 7, "Neighbor": 3, "GPTInst": 5, "GPTOut": 4, "Manual": 9}.items():
        rows = [
            {"input": f"{name} {i}", "output_1": f"{name} {i} a", "output_2": f"{name} {i} b", "label": 1 + i % 2}
            for i in range(count)
        ]
        folder = "Natural" if name == "Natural" else f"Adversarial/{name}"
        write(tmp_path / "LLMBar" / folder / "dataset.json", rows)
        write(tmp_path / "LLMBar" / folder / "evaluators" / "GPT-4" / "result.json", [{"winner": 1}])
        right = [grid(r[f"output_{r['label']}"]) > grid(r[f"output_{3 - r['label']}"]) for r in rows]
        accuracy[name] = np.mean(right)
    write(tmp_path / "CaseStudy" / "Negation" / "dataset.json", [{"input": "i", "output_1": "a", "output_2": "b", "label": 1}])
    values, _ = measured("llmbar", tmp_path)
    assert values["overall"] == pytest.approx(np.mean(list(accuracy.values())))
    assert values["Adversarial"] == pytest.approx(np.mean(list(accuracy.values())[1:]))
    assert {name: values[name] for name in accuracy} == pytest.approx(accuracy)


def test_llmbar_refuses_another_label_and_another_subset(tmp_path):
    row = {"input": "i", "output_1": "a", "output_2": "b", "label": 3}
    with pytest.raises(BadRow, match="Manual.json: row 1: field 'label': expected 1 or 2, not 3"):
        list(find_suite("llmbar").read(write(tmp_path / "Manual.json", [row])))
    with pytest.raises(PolarError, match=r"Negation.json: neither its name nor its folder's is a subset of LLMBar: Natural, "):
        list(find_suite("llmbar").read(write(tmp_path / "Negation.json", [row])))


def preference(i, value, domain="general", language="english"):
    talk = [{"role": "user", "content": f"question {i}"}]
    return {
        "domain": domain,
        "language": language,
        "context": talk,
        "response1": f"one {i}",
        "response2": f"two {i}",
        "overall_preference": value,
        "individual_preference": [{"score": value, "reasoning": "r", "feedback1": "f", "feedback2": "f"}],
    }


def test_helpsteer3_counts_decided_pairs(tmp_path, caplog):
    rows = [preference(i, (-3, -2, -1, 0, 1, 2, 3)[i % 7]) for i in range(28)]
    rows += [preference(i, 2, "multilingual", language) for i, language in enumerate(("korean", "polish"), 28)]
    write(tmp_path / "preference" / "validation.jsonl.gz", rows)
    write(tmp_path / "preference" / "train.jsonl.gz", [preference(99, 1)])
    write(tmp_path / "edit" / "validation.jsonl.gz", [{"context": "other"}])
    with caplog.at_level(logging.WARNING):
        values, result = measured("helpsteer3", tmp_path)
    assert "validation.jsonl.gz: 4 rows are left out: their two responses are about the same" in caplog.text
    decided = [row for row in rows if row["overall_preference"]]
    right = {
        row["response1"]: grid(row["response1" if row["overall_preference"] < 0 else "response2"])
        > grid(row["response2" if row["overall_preference"] < 0 else "response1"])
        for row in decided
    }
    assert values["overall"] == pytest.approx(np.mean(list(right.values())))
    strong = [right[row["response1"]] for row in decided if abs(row["overall_preference"]) == 3]
    assert values["much better"] == pytest.approx(np.mean(strong))
    assert values["multilingual, polish"] == right["one 29"]
    assert result.figures[0].n == len(decided) == 26
    assert result.notes[0] == "'overall' rests on 2 of 4 domains and is no published number; missing: stem, code"


def test_helpsteer3_refuses_another_scale(tmp_path):
    with pytest.raises(BadRow, match="row 1: field 'overall_preference': expected an integer from -3 to 3, not 4"):
        list(find_suite("helpsteer3").read(write(tmp_path / "validation.jsonl", [preference(0, 4)])))
