"""Prefixes that a scorer keeps between calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import tiny

from polar_rm.attention.layout import BLOCK
from polar_rm.attention.prefixes import Prefix, PrefixStore
from polar_rm.encoding.tree import PrefixTree
from polar_rm.model import packing
from polar_rm.records import ScoreItem
from polar_rm.scoring import scorer as scoring
from polar_rm.scoring.scorer import Scorer

FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]
PROMPT, REFERENCE = "Name the capital of the country on the river. " * 3, "The quick brown fox jumps over the lazy dog. " * 2
OUTPUTS = ["a fox", "a dog and a turtle", "the slow green river", "a fox", "metre", "the bank of the river, measured"]


def items(outputs, prompt=PROMPT):
    return [ScoreItem(prompt, REFERENCE, output) for output in outputs]


def rewards(scorer, window):
    return [reward.reward for reward in scorer.score(window)]


@pytest.fixture
def computed(monkeypatch):
    """The numbers of tokens that went through the layers, one per row."""
    counts = []

    def counting(*arguments):
        row = packing.pack_live(*arguments)
        counts.append(row.ids.shape[1])
        return row

    monkeypatch.setattr(scoring, "pack_live", counting)
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_a_group_get_the_scores_of_the_group_and_compute_the_prefix_once(family, computed, tmp_path):
    model = tiny.reward_model(tmp_path, family)
    plain = rewards(Scorer(model), items(OUTPUTS))
    store = PrefixStore(1 << 24)
    kept = Scorer(model, prefixes=store)
    in_pieces = [value for output in OUTPUTS for value in rewards(kept, items([output]))]
    assert in_pieces == plain  # to the bit
    assert len(set(plain)) == 5
    [prefix] = store._prefixes.values()
    assert max(computed[1:]) < computed[0] - len(prefix.ids) + 40
    assert store.reused == 5 * len(prefix.ids)
    assert rewards(kept, items(OUTPUTS)) == plain


def test_kept_and_new_prefixes_share_a_row(computed, tmp_path):
    model = tiny.reward_model(tmp_path)
    other = items(["dog", "fox"], prompt="Another question?" * 4)
    kept = Scorer(model, prefixes=PrefixStore(1 << 24))
    rewards(kept, items(OUTPUTS[:2]))
    mixed = items(OUTPUTS[2:]) + other
    assert rewards(kept, mixed) == rewards(Scorer(model), mixed)
    assert len(computed) == 2


def test_turns_and_features_are_those_of_a_scorer_that_keeps_nothing(tmp_path):
    model = tiny.reward_model(tmp_path)
    talk = [
        {"role": "assistant", "content": "a fox"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "a dog"},
    ]
    window = [ScoreItem(PROMPT, REFERENCE, talk)]
    kept, plain = Scorer(model, prefixes=PrefixStore(1 << 24)), Scorer(model)
    for _ in range(2):
        assert [[r.reward for r in turns] for turns in kept.score_turns(window)] == [
            [r.reward for r in turns] for turns in plain.score_turns(window)
        ]
        found, expected = kept.measure_window(items(OUTPUTS)), plain.measure_window(items(OUTPUTS))
        assert np.array_equal(found[1], expected[1])


def test_of_a_prefix_that_begins_like_a_kept_one_only_the_last_blocks_are_computed(computed, tmp_path):
    """Candidates that begin alike, and a conversation that goes on, have prefixes that differ in length."""
    model = tiny.reward_model(tmp_path)
    [(_, tree)] = model.encoder.encode_outputs(PROMPT * 3, REFERENCE, OUTPUTS)
    ids, branch = tree.prefix, tree.branches[1]
    n = len(ids)
    assert n > 2 * BLOCK
    trees = [
        PrefixTree(ids, [branch], (0,)),
        PrefixTree([*ids, *branch[:3]], [branch[3:]], (0,)),  # longer than what is kept
        PrefixTree(ids[:-3], [branch, branch[1:]], (0, 0)),  # the beginning of what is kept
        PrefixTree([*ids[: BLOCK + 9], *branch[:-1]], [branch], (0,)),  # leaves it
        PrefixTree([*ids[: BLOCK - 1], *branch[:-1]], [branch], (0,)),  # leaves it in the first block
        PrefixTree(ids, [branch], (0,)),
    ]
    kept, plain = Scorer(model, prefixes=PrefixStore(1 << 24)), Scorer(model)
    for each in trees:
        assert kept.score_trees([each]) == plain.score_trees([each])  # to the bit
    filler = computed[0] - trees[0].n_tokens
    reused = [tree.n_tokens + filler - count for tree, count in zip(trees, computed, strict=True)]
    assert reused == [0, n - n % BLOCK, (n - 3) - (n - 3) % BLOCK, BLOCK, 0, n]


def test_the_longest_beginning_is_found_among_many():
    generator = np.random.default_rng(0)
    store, kept = PrefixStore(1 << 24), []
    for _ in range(200):
        old = kept[generator.integers(len(kept))] if kept else []
        ids = [*old[: generator.integers(len(old) + 1)], *generator.integers(0, 70_000, generator.integers(20, 300)).tolist()]
        kept.append(ids)
        store.add(Prefix(ids, [torch.zeros(1, len(ids), 1)], [torch.zeros(1, len(ids), 1)]))
    found = []
    for ids in kept:
        cut = int(generator.integers(1, len(ids) + 1))
        asked = [*ids[:cut], *generator.integers(0, 70_000, 5).tolist()]
        common = [next((i for i, (a, b) in enumerate(zip(asked, other, strict=False)) if a != b), len(other)) for other in kept]
        assert store.n_kept(asked) == max(common) // BLOCK * BLOCK
        assert store.n_kept(ids) == len(ids)
        if used := store.use(asked):
            found.append(used[1])
            assert list(used[0].ids[: used[1]]) == asked[: used[1]]
    assert len(found) > 50


def test_memory_is_bounded_and_the_least_recently_used_prefix_goes_first():
    def prefix(number):
        return Prefix([number] * 20, [torch.zeros(1, 20, 4)] * 2, [torch.zeros(1, 20, 4)] * 2)

    size = prefix(0).n_bytes
    assert size == 4 * 20 * 4 * 4
    store = PrefixStore(2 * size)
    store.add(prefix(0))
    store.add(prefix(1))
    assert store.use([0] * 20) is not None
    store.add(prefix(2))
    assert [store.n_kept([number] * 20) for number in range(3)] == [20, 0, 20]
    assert store.n_bytes == 2 * size
    store.add(Prefix([9] * 15, [torch.zeros(1)], [torch.zeros(1)]))
    assert store.n_kept([9] * 15) == 0
    small = PrefixStore(size - 1)
    small.add(prefix(0))
    assert len(small) == small.n_bytes == 0
