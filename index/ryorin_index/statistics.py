"""
What a figure over cases is worth: confidence intervals, and tests of two ways on the same cases.

Means, and shares of right answers, have percentile bootstrap intervals over cases (Efron 1979), seeded, so the same
values give the same interval. Two ways are compared case by case: means by random signs (Fisher's randomisation test),
counts by McNemar's exact test.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over cases with its confidence interval."""

    mean: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """The three numbers; null where there were no cases."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


NOTHING = Interval(math.nan, math.nan, math.nan)


def interval(values: Floats, seed: int = 0) -> Interval:
    """The mean of values, shape (n_cases,), with a percentile bootstrap interval (Efron 1979)."""
    if not len(values):
        return NOTHING
    means = values[_draws(len(values), seed)].mean(axis=1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def share(values: Floats, seed: int = 0) -> Interval:
    """
    The mean of values from 0 to 1, mostly one of the two, with its interval. Shape: (n_cases,).

    A bootstrap of equal values has no width, as if ten right answers of ten were proof. Where all are 0, or all 1, the
    exact interval stands in its place (Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404), which has a
    closed form: the mean is no lower than the share of cases of value 1.
    """
    found = interval(values, seed)
    if not len(values) or found.mean not in (0.0, 1.0):
        return found
    width = _exact_width(len(values))
    return Interval(found.mean, 1 - width, 1.0) if found.mean else Interval(0.0, 0.0, width)


def ratio(parts: Floats, wholes: Floats, seed: int = 0) -> Interval:
    """
    The sum of parts over the sum of wholes, each of shape (n_cases,), with a bootstrap interval over cases.

    For precision and recall, whose denominators are themselves counts of cases. Nothing when all wholes are 0.
    """
    if not wholes.sum():
        return NOTHING
    mean = float(parts.sum() / wholes.sum())
    if mean in (0.0, 1.0):
        return share(np.full(int((wholes > 0).sum()), mean), seed)
    draws = _draws(len(parts), seed)
    sums = wholes[draws].sum(axis=1)
    ratios = parts[draws].sum(axis=1)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean, float(low), float(high))


def gap(ours: Floats, theirs: Floats) -> Interval:
    """
    Our share minus theirs, of different cases, with its interval. Shapes: (n_ours,), (n_theirs,), of 0 and 1.

    The intervals of both are squared and added (Newcombe 1998, Statistics in Medicine 17:873-890), so that two cases
    that are all right on one side prove no gap. Nothing when one is empty.
    """
    if not len(ours) or not len(theirs):
        return NOTHING
    one, other = share(ours), share(theirs)
    mean = one.mean - other.mean
    return Interval(
        mean,
        max(-1.0, mean - math.hypot(one.mean - one.low, other.high - other.mean)),
        min(1.0, mean + math.hypot(one.high - one.mean, other.mean - other.low)),
    )


def compare(ours: Floats, theirs: Floats, seed: int = 0) -> dict[str, float]:
    """
    Ours minus theirs, case by case: mean with interval, and p of a paired sign-flip test (two-sided).

    The test asks how often random signs give a mean as far from 0 (Fisher's randomisation test).
    """
    difference = ours - theirs
    found = interval(difference, seed)
    signs = np.random.default_rng(seed + 1).choice([-1.0, 1.0], (RESAMPLES, len(difference)))
    beyond = np.abs((signs * difference).mean(axis=1)) >= abs(difference.mean()) - 1e-12
    p = (int(beyond.sum()) + 1) / (RESAMPLES + 1)
    return {"difference": found.mean, "low": found.low, "high": found.high, "p": p}


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """
    P of McNemar's exact test, two-sided: cases that ours alone has right against those that theirs alone has right.

    Under chance each of them is as likely on either side, so it is a binomial test at 1/2 (McNemar 1947,
    https://doi.org/10.1007/BF02295996).
    """
    total = only_ours + only_theirs
    tail = sum(math.comb(total, k) for k in range(min(only_ours, only_theirs) + 1))
    return min(1.0, 2 * tail / 2**total)


def compare_shares(ours: Floats, theirs: Floats, seed: int = 0) -> dict[str, Any]:
    """
    As `compare`, for values of 0 and 1: p is that of McNemar's exact test; with both counts it rests on.

    Where all cases differ alike, or not at all, the interval has the exact width of `share` in place of none.
    """
    better, worse = int((ours > theirs).sum()), int((ours < theirs).sum())
    found = interval(ours - theirs, seed)
    if len(ours) in (better, worse) or not better + worse:
        width = _exact_width(len(ours))
        found = Interval(found.mean, max(-1.0, found.mean - width), min(1.0, found.mean + width))
    return {
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p": mcnemar(better, worse),
        "better": better,
        "worse": worse,
    }


def _exact_width(cases: int) -> float:
    """How far from all, or from none, the share may be of which all cases, or none, were seen."""
    return 1 - ((1 - CONFIDENCE) / 2) ** (1 / cases)


def _draws(cases: int, seed: int) -> NDArray[np.int64]:
    """Which cases each resample has. Shape: (RESAMPLES, cases)."""
    return np.random.default_rng(seed).integers(0, cases, (RESAMPLES, cases))
