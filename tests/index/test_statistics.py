"""Intervals and paired tests, against SciPy's and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryorin_index.statistics import compare, compare_shares, gap, interval, mcnemar, ratio, share


def test_an_interval_covers_the_mean_it_estimates() -> None:
    draw = np.random.default_rng(5)
    covered = 0
    for seed in range(100):
        found = interval((draw.random(80) < 0.7).astype(float), seed)
        covered += found.low <= 0.7 <= found.high
    assert covered >= 85  # 95 on average


def test_a_comparison_sees_a_difference_and_no_difference() -> None:
    draw = np.random.default_rng(5)
    theirs = draw.random(200)
    better = compare(theirs + 0.1 + draw.normal(0, 0.1, 200), theirs)
    assert better["p"] < 0.01 and 0 < better["low"] < 0.1 < better["high"]
    same = compare(theirs + draw.normal(0, 0.1, 200), theirs)
    assert same["p"] > 0.05 and same["low"] < 0 < same["high"]


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test_of_scipy(better: int, worse: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(better, better + worse, 0.5).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected)


@pytest.mark.parametrize("cases", [1, 10, 60])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_values_have_the_exact_interval(cases: int, value: float) -> None:
    from scipy.stats import binomtest

    expected = binomtest(int(cases * value), cases).proportion_ci(0.95, "exact")
    found = share(np.full(cases, value))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_bootstrap_is_near_that_of_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).exponential(2.0, 60)
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    found = interval(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.1)
    assert interval(values) == found != interval(values, seed=1)


def test_precision_is_over_the_cases_that_count() -> None:
    right, refused = np.array([1.0, 1, 0, 0, 0]), np.array([1.0, 1, 1, 0, 0])
    found = ratio(right, refused)
    assert found.mean == pytest.approx(2 / 3) and 0 <= found.low < 2 / 3 < found.high <= 1
    assert ratio(right, right) == share(np.ones(2))
    assert math.isnan(ratio(right * 0, right * 0).mean)


def test_the_gap_of_two_sets_of_cases() -> None:
    draw = np.random.default_rng(5)
    train, held_out = (draw.random(300) < 0.95).astype(float), (draw.random(300) < 0.75).astype(float)
    assert gap(train, held_out).low > 0.1
    assert gap(held_out, held_out).low < 0 < gap(held_out, held_out).high
    assert gap(np.ones(2), np.array([1.0, 1, 1, 0, 0])).low < 0  # two right answers prove nothing
    assert math.isnan(gap(train, train[:0]).mean)


def test_two_ways_by_the_cases_on_which_they_differ() -> None:
    ours, theirs = np.array([1.0] * 9 + [0] + [1] * 10), np.array([0.0] * 9 + [1] + [1] * 10)
    found = compare_shares(ours, theirs)
    assert (found["better"], found["worse"], found["difference"]) == (9, 1, pytest.approx(0.4))
    assert found["p"] == pytest.approx(22 / 1024)  # 2 (C(10,0) + C(10,1)) / 2^10
    same = compare_shares(ours, ours)
    assert same["p"] == 1 and -0.2 < same["low"] < 0 < same["high"] < 0.2  # twenty cases prove no equality
    assert compare_shares(np.ones(5), np.zeros(5))["low"] == share(np.ones(5)).low
