"""Power laws of the loss, fitted in the logarithm of the loss.

    parameters   L = beta N^-a                         (POLAR, arXiv 2507.05197, section 4.4)
    compute      L = beta C^-b                         (the same)
    joint_power  L = K N^-a D^-b
    joint        L = E + A N^-alpha + B D^-beta        (Hoffmann et al. 2022, arXiv 2203.15556, approach 3)

The first three are lines in logarithms: ordinary least squares. The last is fitted by Huber's loss on the logarithm of the loss,
from several starting points.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import least_squares

from polar_rm.evaluation.statistics import Floats
from polar_rm.scaling.config import Law

# Bounds of the joint law's parameters: logarithms of E, of A N^-alpha and of B D^-beta at the centre of the data, and exponents.
_LOW, _HIGH = np.array([-30.0, -30.0, -30.0, 0.0, 0.0]), np.array([5.0, 5.0, 5.0, 5.0, 5.0])


@dataclass(frozen=True, slots=True)
class LawForm:
    """What a law is a function of, and its parameters.

    inputs: names of the columns of x. names: of the parameters. positive: which of them are coefficients, whose intervals are
    taken in logarithms; the others are exponents.
    """

    law: Law
    inputs: tuple[str, ...]
    names: tuple[str, ...]
    positive: tuple[bool, ...]
    formula: str

    @property
    def min_points(self) -> int:
        """Points without which the parameters, and the fits that leave one out, are not determined."""
        return len(self.names) + 1


FORMS: dict[Law, LawForm] = {
    "parameters": LawForm("parameters", ("parameters",), ("beta", "a"), (True, False), "L = beta N^-a"),
    "compute": LawForm("compute", ("flops",), ("beta", "b"), (True, False), "L = beta C^-b"),
    "joint": LawForm(
        "joint",
        ("parameters", "tokens"),
        ("E", "A", "B", "alpha", "beta"),
        (True, True, True, False, False),
        "L = E + A N^-alpha + B D^-beta",
    ),
    "joint_power": LawForm("joint_power", ("parameters", "tokens"), ("K", "a", "b"), (True, False, False), "L = K N^-a D^-b"),
}


def fit(form: LawForm, x: Floats, loss: Floats, *, huber: float = 1e-3, start: Floats | None = None) -> Floats:
    """The parameters of a law, in the order of ``form.names``.

    x: positive inputs [n, len(inputs)]. loss: positive, [n]. huber: only for ``joint``. start: parameters from which alone the
    fit of ``joint`` begins, such as those of nearly the same data.
    """
    logs = np.log(loss)
    if form.law == "joint":
        return _fit_joint(np.log(x), logs, huber, start)
    # log L = log K - sum of exponent * log x
    design = np.column_stack([np.ones(len(x)), -np.log(x)])
    solution, *_ = np.linalg.lstsq(design, logs, rcond=None)
    return np.concatenate([[np.exp(solution[0])], solution[1:]])


def predict(form: LawForm, values: Floats, x: Floats) -> Floats:
    """The loss by a law: [n]. values: its parameters. x: [n, len(inputs)]."""
    if form.law == "joint":
        e, a, b, alpha, beta = values
        joint: Floats = e + a * x[:, 0] ** -alpha + b * x[:, 1] ** -beta
        return joint
    result: Floats = values[0] * np.prod(x ** -values[1:], axis=1)
    return result


def undetermined(form: LawForm, values: Floats) -> list[str]:
    """The parameters of ``joint`` that the fit left at a bound, because the data does not determine them."""
    if form.law != "joint":
        return []
    e, *_, alpha, beta = values
    at_bound = {"E": e < np.exp(_LOW[0] + 1e-3)}
    at_bound |= {name: not 1e-6 < each < _HIGH[3] - 1e-6 for name, each in (("alpha", alpha), ("beta", beta))}
    return [name for name, is_at in at_bound.items() if is_at]


def r_squared(loss: Floats, fitted: Floats) -> float:
    """The fraction of the variance of the logarithm of the loss that a law explains; NaN where there is none."""
    logs = np.log(loss)
    total = float(np.square(logs - logs.mean()).sum())
    return float("nan") if total == 0 else 1 - float(np.square(logs - np.log(fitted)).sum()) / total


def _fit_joint(x: Floats, logs: Floats, huber: float, start: Floats | None) -> Floats:
    """:func:`fit` of the joint law. x: logarithms of N and D [n, 2]. logs: of the loss [n]."""
    # Around the centre of the data coefficients and exponents are nearly uncorrelated.
    centre = x.mean(axis=0)
    centred = x - centre

    def solve(begin: Floats, tolerance: float, max_evaluations: int) -> tuple[float, Floats]:
        solution = least_squares(
            _residuals,
            np.clip(begin, _LOW + 1e-9, _HIGH - 1e-9),
            jac=_jacobian,
            bounds=(_LOW, _HIGH),
            loss="huber",
            f_scale=huber,
            x_scale="jac",
            ftol=tolerance,
            xtol=tolerance,
            gtol=tolerance,
            max_nfev=max_evaluations,
            args=(centred, logs),
        )
        return float(solution.cost), solution.x

    if start is None:
        found = [solve(each, 1e-8, 100) for each in _starts(float(logs.min()))]
        _, best = solve(min(found, key=lambda each: each[0])[1], 1e-15, 2000)
    else:
        _, best = solve(_to_centred(start, centre), 1e-7, 100)
    e, a, b, alpha, beta = best
    return np.array([np.exp(e), np.exp(a + alpha * centre[0]), np.exp(b + beta * centre[1]), alpha, beta], np.float64)


def _to_centred(values: Floats, centre: Floats) -> Floats:
    e, a, b, alpha, beta = values
    tiny = np.finfo(float).tiny
    logs = np.log(np.maximum([e, a, b], tiny))
    return np.array([logs[0], logs[1] - alpha * centre[0], logs[2] - beta * centre[1], alpha, beta])


def _starts(lowest: float) -> list[Floats]:
    """Starting points: exponents, and the share of E in the lowest loss; the rest is shared by both terms."""
    points = []
    for alpha, beta, share in product((0.1, 0.3, 0.8), (0.1, 0.3, 0.8), (0.1, 0.8)):
        rest = lowest + np.log((1 - share) / 2)
        points.append(np.array([lowest + np.log(share), rest, rest, alpha, beta]))
    return points


def _terms(values: Floats, x: Floats) -> Floats:
    """The three terms of the joint law, [n, 3]."""
    e, a, b, alpha, beta = values
    terms: Floats = np.exp(np.column_stack([np.full(len(x), e), a - alpha * x[:, 0], b - beta * x[:, 1]]))
    return terms


def _residuals(values: Floats, x: Floats, logs: Floats) -> Floats:
    result: Floats = np.log(_terms(values, x).sum(axis=1)) - logs
    return result


def _jacobian(values: Floats, x: Floats, logs: Floats) -> Floats:
    terms = _terms(values, x)
    shares = terms / terms.sum(axis=1, keepdims=True)
    jacobian: Floats = np.column_stack([shares, -shares[:, 1] * x[:, 0], -shares[:, 2] * x[:, 1]])
    return jacobian
