"""The rules against a brute force in plain Python, on small tables with many ties."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polar_rm.errors import ConfigError
from polar_rm.selection.config import SelectConfig
from polar_rm.selection.rules import RULES, select_rows, share_of
from polar_rm.selection.table import Table

GROUPS = ("a", "b", "c")

# (prompt, score, length, group, probability) of a candidate; few values, so that there are many ties.
CANDIDATES = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([-1.0, 0.0, 0.5, 0.75, 2.0]),
        st.integers(1, 4),
        st.integers(0, 2),
        st.sampled_from([0.0, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=25,
)
RULE_SETS = st.fixed_dictionaries(
    {},
    optional={
        "length": st.sampled_from([{"min": 2}, {"max": 3}, {"min": 2, "max": 3}]),
        "threshold": st.sampled_from([{"at_least": 0.0}, {"at_least": 0.75}, {"of": "probability", "at_least": 0.5}]),
        "best_of_n": st.integers(1, 3),
        "top_share": st.sampled_from(
            [0.25, 0.7, {"share": 0.5, "within": "prompt"}, {"share": 0.3, "within": "group"}, {"share": 1.0}]
        ),
        "quotas": st.sampled_from([{"at_most": 2}, {"at_most": {"a": 1}}, {"share": 0.5}]),
    },
)


def table_of(rows, ties):
    prompts, scores, lengths, groups, probabilities = (np.array(column) for column in zip(*rows, strict=True))
    n = len(rows)
    return Table(
        files=np.zeros(n, np.int64),
        rows=np.arange(1, n + 1),
        places=np.zeros(n, np.int64),
        scores=scores.astype(np.float64),
        probabilities=probabilities.astype(np.float64),
        lengths=lengths,
        prompts=prompts,
        prompt_keys=prompts.astype(np.uint64),
        texts=np.array(ties, np.uint64),
        ties=np.array(ties, np.uint64),
        groups=groups,
        references=np.zeros(n, np.uint64),
        signatures=np.empty((0, 128), np.uint16),
        group_names=GROUPS,
    )


def config(**rules):
    return SelectConfig.model_validate({"output": "o", "inputs": ["i"], "group_by": "g", **rules})


def best(indices, rows, ties, cell, limit):
    """The best of each cell by (score, tie), the smaller tie first."""
    kept = []
    cells = {cell(i) for i in indices}
    for each in cells:
        members = sorted((i for i in indices if cell(i) == each), key=lambda i: (-rows[i][1], ties[i]))
        kept += members[: limit(each, len(members))]
    return kept


def ceiling(share, count):
    return math.ceil(Fraction(str(share)) * count)


def brute_force(rows, ties, rules):
    """The selected indices, rule by rule as the documentation tells them."""
    left = list(range(len(rows)))
    if length := rules.get("length"):
        left = [i for i in left if length.get("min", 0) <= rows[i][2] <= length.get("max", 99)]
    if threshold := rules.get("threshold"):
        column = 4 if threshold.get("of") == "probability" else 1
        left = [i for i in left if rows[i][column] >= threshold["at_least"]]
    if "best_of_n" in rules:
        left = best(left, rows, ties, lambda i: rows[i][0], lambda *_: rules["best_of_n"])
    if "top_share" in rules:
        top = rules["top_share"] if isinstance(rules["top_share"], dict) else {"share": rules["top_share"]}
        cell = {"all": lambda i: 0, "prompt": lambda i: rows[i][0], "group": lambda i: rows[i][3]}[top.get("within", "all")]
        left = best(left, rows, ties, cell, lambda _, size: ceiling(top["share"], size))
    if quotas := rules.get("quotas"):
        limit = quotas.get("at_most")
        if isinstance(limit, dict):
            left = best(left, rows, ties, lambda i: rows[i][3], lambda group, size: limit.get(GROUPS[group], size))
        elif limit:
            left = best(left, rows, ties, lambda i: rows[i][3], lambda *_: limit)
        else:
            left = best(left, rows, ties, lambda i: rows[i][3], lambda _, size: ceiling(quotas["share"], size))
    return sorted(left)


@settings(max_examples=300, deadline=None)
@given(CANDIDATES, RULE_SETS, st.randoms(use_true_random=False))
def test_the_rules_select_what_a_brute_force_selects(rows, rules, random):
    ties = random.sample(range(1000), len(rows))
    selection = select_rows(table_of(rows, ties), config(**rules))
    assert selection.selected.tolist() == brute_force(rows, ties, rules)


@settings(max_examples=200, deadline=None)
@given(CANDIDATES, RULE_SETS, st.randoms(use_true_random=False), st.sampled_from(["sft", "pairs"]))
def test_the_order_of_the_input_decides_nothing(rows, rules, random, kind):
    ties = random.sample(range(1000), len(rows))
    order = random.sample(range(len(rows)), len(rows))
    settings = config(**rules, kind=kind, pairs={"rejected": "random"})
    first = select_rows(table_of(rows, ties), settings)
    second = select_rows(table_of([rows[i] for i in order], [ties[i] for i in order]), settings)
    assert sorted(first.selected.tolist()) == sorted(order[i] for i in second.selected.tolist())
    pairs = {(i, int(first.partners[i])) for i in first.selected.tolist()}
    others = {(order[i], order[j] if j >= 0 else -1) for i in second.selected.tolist() for j in [int(second.partners[i])]}
    assert pairs == others


@settings(max_examples=200, deadline=None)
@given(CANDIDATES, st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_quota_is_never_exceeded_and_never_left_unused(rows, quota, random):
    ties = random.sample(range(1000), len(rows))
    table = table_of(rows, ties)
    chosen = select_rows(table, config(quotas={"at_most": quota})).selected
    for group in range(3):
        available, taken = (table.groups == group).sum(), (table.groups[chosen] == group).sum()
        assert taken == min(quota, available)
        left_out = np.setdiff1d(np.flatnonzero(table.groups == group), chosen)
        if len(left_out) and taken:
            assert table.scores[left_out].max() <= table.scores[chosen[table.groups[chosen] == group]].min()


@settings(max_examples=200, deadline=None)
@given(CANDIDATES, st.sampled_from([0.0, 0.5, 1.25]), st.sampled_from(["worst", "random"]), st.randoms(use_true_random=False))
def test_pairs_are_of_one_prompt_and_differ_by_the_margin(rows, margin, rejected, random):
    ties = random.sample(range(1000), len(rows))
    settings = config(kind="pairs", pairs={"rejected": rejected, "margin": margin}, length={"min": 2})
    selection = select_rows(table_of(rows, ties), settings)
    pool = [i for i in range(len(rows)) if rows[i][2] >= 2]
    expected = {}
    for chosen in best(pool, rows, ties, lambda i: rows[i][0], lambda *_: 1):
        fitting = [
            i
            for i in pool
            if rows[i][0] == rows[chosen][0] and rows[chosen][1] - rows[i][1] >= margin and rows[i][1] < rows[chosen][1]
        ]
        if fitting:
            expected[chosen] = fitting
    assert selection.selected.tolist() == sorted(expected)
    for chosen, fitting in expected.items():
        partner = int(selection.partners[chosen])
        assert partner in fitting
        if rejected == "worst":
            assert partner == max(fitting, key=lambda i: (-rows[i][1], ties[i]))


def test_random_rejected_answers_are_spread_over_all_that_fit():
    rows = [(0, 2.0, 1, 0, 0.0), *((0, float(-i), 1, 0, 0.0) for i in range(1, 5))]
    partners = []
    for seed in range(400):
        settings = config(kind="pairs", pairs={"rejected": "random"}, seed=seed)
        partners.append(int(select_rows(table_of(rows, range(5)), settings).partners[0]))
    counts = np.bincount(partners, minlength=5)
    assert counts[0] == 0
    assert (counts[1:] > 60).all()  # 100 expected, with a deviation of 9


def test_several_pairs_of_a_prompt():
    rows = [(0, score, 1, 0, 0.0) for score in (3.0, 2.0, 1.0, 0.0)]
    selection = select_rows(table_of(rows, range(4)), config(kind="pairs", best_of_n=2))
    assert selection.selected.tolist() == [0, 1]
    assert selection.partners[:2].tolist() == [3, 3]


def test_copies_of_an_answer_count_once_with_their_best_score():
    rows = [(0, 1.0, 1, 0, 0.0), (0, 2.0, 1, 0, 0.0), (0, 0.0, 1, 0, 0.0)]
    table = table_of(rows, [5, 5, 6])
    selection = select_rows(table, config(best_of_n=2))
    assert selection.selected.tolist() == [1, 2]
    assert RULES[selection.dropped_by[0]] == "copies"


def test_shares_are_rounded_up_in_decimals():
    assert [share_of(30, 0.1), share_of(31, 0.1), share_of(1, 0.01), share_of(7, 1.0), share_of(0, 0.5)] == [3, 4, 1, 7, 0]


def test_a_quota_for_a_group_that_no_row_has_is_refused():
    with pytest.raises(ConfigError, match="no row has the group 'maths' in g; there are a, b, c"):
        select_rows(table_of([(0, 1.0, 1, 0, 0.0)], [1]), config(quotas={"at_most": {"maths": 2}}))
