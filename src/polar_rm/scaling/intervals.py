"""Intervals of a law's parameters and predictions: by resampling the evaluation prompts, and by leaving out runs.

The two answer different questions. Resampled prompts show what another evaluation set of as many prompts would give; all runs
share each sample. Leaving out one run after another shows what the choice and the noise of the training runs do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from polar_rm.evaluation.statistics import Floats, Ints, resampled_means
from polar_rm.scaling.laws import LawForm, fit, predict


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with two 95% intervals; None where there is none. prompts: by resampled prompts. runs: by leaving out runs."""

    value: float
    prompts: tuple[float, float] | None
    runs: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Fitted:
    """A law with intervals.

    estimates: of the parameters. predictions: losses at the points asked for. fitted: losses at the points of the fit, [n].
    influence: what leaving out each run changes, as the largest change of an exponent in units of its deviation, [n].
    """

    form: LawForm
    values: Floats
    estimates: list[Estimate]
    predictions: list[Estimate]
    fitted: Floats
    influence: Floats


def fit_with_intervals(
    form: LawForm, x: Floats, loss: Floats, resampled: Floats | None, asked: Floats, *, huber: float = 1e-3
) -> Fitted:
    """Fit a law to runs, to samples of its evaluation prompts, and without each run.

    x: [n, inputs]. loss: [n]. resampled: the losses of samples of prompts [resamples, n]; None where there is only one prompt.
    asked: inputs at which the loss is predicted, [m, inputs].
    """
    values = fit(form, x, loss, huber=huber)

    def statistics(inputs: Floats, losses: Floats) -> Floats:
        again = fit(form, inputs, losses, huber=huber, start=values)
        return np.concatenate([_in_logs(form, again), np.log(predict(form, again, asked))])

    at = np.concatenate([_in_logs(form, values), np.log(predict(form, values, asked))])
    samples = None if resampled is None else np.array([statistics(x, losses) for losses in resampled])
    without = np.array([statistics(np.delete(x, i, axis=0), np.delete(loss, i)) for i in range(len(loss))])
    in_logs = np.array([*form.positive, *[True] * len(asked)])
    low_high = None if samples is None else np.quantile(samples, [0.025, 0.975], axis=0)
    deviation = jackknife_deviation(without)
    half = deviation * stdtrit(len(loss) - 1, 0.975)
    estimates = [
        Estimate(
            _back(at[i], in_logs[i]),
            None if low_high is None else (_back(low_high[0, i], in_logs[i]), _back(low_high[1, i], in_logs[i])),
            (_back(at[i] - half[i], in_logs[i]), _back(at[i] + half[i], in_logs[i])),
        )
        for i in range(len(at))
    ]
    exponents = [i for i, positive in enumerate(form.positive) if not positive]
    with np.errstate(invalid="ignore", divide="ignore"):
        change = np.abs(without - at)[:, exponents] / deviation[exponents]
    count = len(form.names)
    influence = np.nan_to_num(change, nan=0.0, posinf=0.0).max(axis=1)
    return Fitted(form, values, estimates[:count], estimates[count:], predict(form, values, x), influence)


def jackknife_deviation(without: Floats) -> Floats:
    """The jackknife's standard deviation of statistics, [k], from their values without each run, [n, k] (Efron 1982)."""
    n = len(without)
    deviation: Floats = np.sqrt((n - 1) / n * np.square(without - without.mean(axis=0)).sum(axis=0))
    return deviation


def resampled_losses(losses: Floats, pairs: Ints, prompts: Ints, *, resamples: int, seed: int = 0) -> Floats | None:
    """The mean loss of every run in samples of whole prompts, [resamples, n_runs]; None where there is only one prompt.

    losses: mean loss of each comparison's pairs, [n_comparisons, n_runs]. pairs: of each comparison. prompts: numbers of prompts.
    """
    if len(np.unique(prompts)) < 2:
        return None
    columns = np.column_stack([losses * pairs[:, None], pairs])
    means = resampled_means(columns, prompts, resamples=resamples, seed=seed)
    result: Floats = means[:, :-1] / means[:, -1:]
    return result


def _in_logs(form: LawForm, values: Floats) -> Floats:
    """The parameters, coefficients in logarithms."""
    tiny = np.finfo(float).tiny
    return np.where(form.positive, np.log(np.maximum(values, tiny)), values)


def _back(value: float, in_logs: bool) -> float:
    return float(np.exp(value)) if in_logs else float(value)
