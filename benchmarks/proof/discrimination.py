"""Policy discrimination on unseen prompts and policies: plain, without markdown, and on candidates of like length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from polar_rm.audit.probes import MATCHED
from polar_rm.audit.texts import without_markdown
from polar_rm.common.progress import show_progress
from polar_rm.evaluation import ModelOptions, evaluate, find_contenders
from polar_rm.evaluation.pairs import Pairs
from polar_rm.evaluation.statistics import Floats, Ints
from polar_rm.model.devices import claim_device
from polar_rm.records import Comparison, flatten, one_reference, read_comparisons
from proof.measures import Key, accuracies, paired
from proof.steps import Row, Run
from proof.training import pretrained

SPLITS = ("unseen_prompts", "unseen_policies")
OTHERS = ("length", "tfidf", "encoder", "untrained")
"""Contenders that no policies were shown to. untrained: the mean of the language model's last states, by cosine."""


def discriminate(run: Run) -> list[Row]:
    """Accuracy of the pre-trained models and of all others, and the differences of the former from each."""
    rows: list[Row] = []
    couples = [(kind, other) for kind in ("polar", "rbs") for other in OTHERS] + [("polar", "rbs")]
    for split in SPLITS:
        comparisons = drawn(run, split)
        correct, pairs = correct_by(run, comparisons)
        near = of_like_length(comparisons, pairs)
        views = {"given": np.arange(len(pairs)), "length matched": near}
        for view, indices in views.items():
            about = {"split": split, "view": view}
            rows += accuracies(correct, pairs, indices, about) + paired(correct, pairs, indices, couples, about)
        stripped, same = correct_by(run, [plain(comparison) for comparison in comparisons])
        about = {"split": split, "view": "markdown stripped"}
        everything = np.arange(len(same))
        rows += accuracies(stripped, same, everything, about) + paired(stripped, same, everything, couples, about)
        about = {"split": split, "view": "markdown stripped and length matched"}
        rows += accuracies(stripped, same, near, about) + paired(stripped, same, near, couples, about)
    return rows


def drawn(run: Run, split: str) -> list[Comparison]:
    """The comparisons of a split that are measured: equal numbers of each source as far as there are any, always the same."""
    by_source: dict[str, list[Comparison]] = {}
    for comparison in read_comparisons(run.output / "corpus/polar" / split):
        by_source.setdefault(str(comparison.metadata["source"]), []).append(comparison)
    chosen: list[Comparison] = []
    for number, source in enumerate(sorted(by_source, key=lambda name: len(by_source[name]))):
        share = (run.size.test_comparisons - len(chosen)) // (len(by_source) - number)
        rows = by_source[source]
        chosen += [rows[index] for index in np.random.default_rng(0).permutation(len(rows))[:share]]
    return chosen


def correct_by(run: Run, comparisons: list[Comparison]) -> tuple[dict[Key, Floats], Pairs]:
    """Whether each contender is right on each pair: 1, 0.5 for a tie, or 0."""
    models = [(kind, seed) for kind in ("polar", "rbs") for seed in run.seeds]
    specs = [f"{kind}-{seed}={pretrained(run, kind, seed) / 'model'}" for kind, seed in models]
    specs += ["length", "tfidf", f"encoder={run.size.encoder}", f"untrained=embedding:{run.output / 'lm'}"]
    contenders = find_contenders(specs, ModelOptions("auto", claim_device("auto")))
    with show_progress(run.console) as progress:
        result = evaluate(contenders, comparisons, by="source", reference="given", baselines=(), progress=progress)
    keys: dict[Key, str] = {(kind, seed): f"{kind}-{seed}" for kind, seed in models}
    keys |= {(name, None): name for name in OTHERS}
    return {key: result.scores.correct(name) for key, name in keys.items()}, result.scores.pairs


def of_like_length(comparisons: list[Comparison], pairs: Pairs) -> Ints:
    """Indices of the pairs whose two candidates are equally long, by the limit of ``polar audit``; int64 [n]."""
    lengths = np.array([len(flatten(text)) for comparison in comparisons for text in comparison.candidates], np.float64)
    ratio = np.log1p(lengths[pairs.better]) - np.log1p(lengths[pairs.worse])
    return np.flatnonzero(np.abs(ratio) <= MATCHED)


def plain(comparison: Comparison) -> Comparison:
    """The comparison without markdown in reference and candidates."""
    candidates = tuple(map(without_markdown, comparison.candidates))
    return replace(comparison, candidates=candidates, reference=without_markdown(one_reference(comparison)))
