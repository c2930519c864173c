"""Which runs a law takes, and what is refused in one line."""

from dataclasses import replace

import numpy as np
import pytest
from support import scaling

from polar_rm.errors import PolarError
from polar_rm.scaling.laws import FORMS
from polar_rm.scaling.points import chosen, collect


def names(points, law, which):
    return [points.results[index].name for index in chosen(FORMS[law], points, which)]


def test_the_frontier_is_what_no_run_with_as_little_compute_is_better_than():
    runs = scaling.results(sizes=("1m", "5m", "15m"), budgets=(5, 20), seeds=(0, 1))
    loss = {
        ("1m", "5x"): 0.6,
        ("5m", "5x"): 0.5,
        ("15m", "5x"): 0.45,
        ("1m", "20x"): 0.55,
        ("5m", "20x"): 0.52,
        ("15m", "20x"): 0.4,
    }
    points = scaling.points(runs, [loss[run.size, run.budget] + (0.001 if run.seed else -0.001) for run in runs])
    # By compute: 1m 5x, 1m 20x, 5m 5x, 5m 20x (worse than 5m 5x), 15m 5x, 15m 20x.
    expected = [run.name for run in runs if (run.size, run.budget) != ("5m", "20x")]
    assert names(points, "compute", "frontier") == expected
    assert names(points, "parameters", "frontier") == [run.name for run in runs if run.budget == "20x"]
    for law in ("parameters", "compute"):
        assert len(names(points, law, "all")) == len(runs)


def test_n_counts_what_the_settings_say():
    points = scaling.points(scaling.results(), np.full(20, 0.5))
    both = [points.inputs(FORMS["parameters"], counted) for counted in ("total", "non_embedding")]
    assert (both[0] == 2 * both[1]).all()


@pytest.mark.parametrize(
    ("law", "sizes", "budgets", "which", "message"),
    [
        ("parameters", ("1m", "5m"), (5, 10, 20), "all", "the law 'parameters' needs 3 sizes, there are 2"),
        ("joint", ("1m", "5m", "15m"), (5, 10), "all", "the law 'joint' needs 3 budgets, there are 2"),
        ("joint_power", ("1m", "5m"), (5, 10, 20), "frontier", "needs 3 sizes, there are 2"),
        ("compute", ("1m",), (5, 10), "frontier", "needs 3 values of compute, there are 2; fit.points=all takes all runs"),
    ],
)
def test_fewer_than_three_sizes_or_budgets_are_refused(law, sizes, budgets, which, message):
    runs = scaling.results(sizes=sizes, budgets=budgets)
    points = scaling.points(runs, np.linspace(0.6, 0.4, len(runs)))
    with pytest.raises(PolarError, match=message):
        chosen(FORMS[law], points, which)


def test_sizes_and_budgets_that_grow_together_are_refused():
    runs = [scaling.result(size, budget) for size, budget in zip(scaling.SIZES, (5, 5, 5, 5, 5), strict=True)]
    runs = [replace(run, budget=str(number)) for number, run in enumerate(runs)]
    points = scaling.points(runs, np.linspace(0.6, 0.4, 5))
    with pytest.raises(PolarError, match="needs budgets that differ within sizes"):
        chosen(FORMS["joint_power"], points, "all")


@pytest.mark.parametrize("changed", ["prompts", "comparisons", "pairs"])
def test_runs_that_were_evaluated_on_other_comparisons_are_refused(changed):
    runs = scaling.results(sizes=("1m", "5m"), budgets=(5,))
    points = scaling.points(runs, [0.5, 0.4])
    losses = {run.name: scaling.losses_of(points, index) for index, run in enumerate(runs)}
    assert collect(runs, losses).means == pytest.approx(points.means)
    other = losses[runs[1].name]
    values = getattr(other, changed).copy()
    values[3] = "another" if changed == "prompts" else 99
    with pytest.raises(PolarError, match="5m-5x-lr0.001-seed0 was evaluated on other comparisons than 1m-5x"):
        collect(runs, losses | {runs[1].name: replace(other, **{changed: values})})
