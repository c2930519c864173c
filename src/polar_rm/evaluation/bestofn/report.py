"""The result of ``polar bestofn`` as a contract."""

from __future__ import annotations

from typing import Literal, TypedDict

from polar_rm.evaluation.report import ContenderFacts, DataFile, Difference, ReferenceReport

SCHEMA: Literal["polar-rm/bestofn/1"] = "polar-rm/bestofn/1"


class Estimate(TypedDict):
    """A value with its 95% interval by bootstrap over prompts."""

    value: float
    ci95: list[float] | None  # None: a single prompt, or no interval can be given


class Point(TypedDict):
    """One n of the curves, and its bounds over the same prompts."""

    n: int
    kl: float  # ln n - (n - 1) / n, nats
    n_prompts: int  # prompts with at least n samples, over which all curves are averaged at this n
    random: Estimate  # gold of a random sample; varies with n only where prompts drop out
    oracle: Estimate  # gold of the sample with the highest gold


class Peak(TypedDict):
    """Where a gold curve is highest."""

    n: int
    ci95: list[int] | None  # 95% of the resampled curves have their peak there


class Figures(TypedDict):
    """The figures of one contender.

    They rest only on the prompts that have ``max_n`` samples, so that a curve never changes its prompts.
    """

    gain: Estimate  # gold at max_n minus that of a random sample
    regret: Estimate  # gold of the oracle at max_n minus that of the contender
    peak: Peak
    drop: Estimate  # gold at the peak minus gold at max_n; no interval where the peak is at max_n
    area: Estimate | None  # between normalised proxy and gold over the KL, nats; None: proxy or oracle gain nothing
    gamma: Estimate | None  # area over the area below the normalised gold; None: that is not above 0


class ContenderCurve(Figures):
    """The curves of one contender, an estimate for each point, and its figures."""

    gold: list[Estimate]  # of the sample that the contender scores highest
    proxy: list[Estimate]  # the contender's own score of that sample, standardised over all samples
    proxy_mean: float  # of the raw scores of all samples
    proxy_deviation: float


class BestOfNReport(TypedDict):
    """Curves and figures, and what they are about."""

    schema: Literal["polar-rm/bestofn/1"]
    gold: str | None  # the column of the gold values; None: gold or golds
    n_samples: int
    n_prompts: int
    n_policies: int  # that the samples name; each policy's samples for a prompt are a group of their own
    max_n: int
    n_complete: int  # prompts with max_n samples, on which the figures rest
    points: list[Point]
    contenders: dict[str, ContenderCurve]
    differences: list[Difference]  # of gold at max_n, of every two contenders, the earlier one first
    facts: dict[str, ContenderFacts]
    data: list[DataFile]  # [] for samples that did not come from files
    limit: int | None  # only the samples of so many prompts were taken, the first ones
    reference: ReferenceReport
    fingerprint: str  # of the samples and gold values: reports with the same one are about the same samples
    warnings: list[str]  # one line each: what limits the numbers
