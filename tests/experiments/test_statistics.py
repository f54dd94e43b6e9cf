"""Statistics over seeds and examples, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaloss.experiments.statistics import (
    DIVERGED,
    compare,
    corrected,
    holm,
    interval,
    mcnemar,
    over_examples,
    summarize,
    welch,
)

PROBABILITIES = st.lists(st.floats(0, 1) | st.none(), max_size=6)


def by_seed(values):
    return dict(enumerate(values))


def test_the_deviation_is_that_of_a_sample():
    """(1 + 0 + 1) / (3 - 1) = 1, and not 2/3; of one value there is none."""
    found = summarize([1.0, 2.0, 3.0])
    assert (found.n, found.mean, found.deviation) == (3, 2.0, 1.0)
    assert summarize([5.0]).deviation is None


def test_holm_steps_down():
    """.01·3, then .02·2, then .04·1; a smaller one never follows a larger one: .03·2 > .04·1."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]


@given(PROBABILITIES)
def test_holm_keeps_the_order_and_never_makes_a_p_value_smaller(p_values):
    found = holm(p_values)
    pairs = sorted((p, q) for p, q in zip(p_values, found, strict=True) if p is not None)
    assert [p is None for p in p_values] == [q is None for q in found]
    assert all(p <= q <= 1 for p, q in pairs)
    assert all(a[1] <= b[1] for a, b in zip(pairs, pairs[1:], strict=False))


def test_ten_seeds_all_in_favour_reach_the_smallest_wilcoxon_p():
    """2 / 2¹⁰ = .00195; three comparisons in the row make it .00586."""
    worse = by_seed([0.02 + 0.0001 * i * i for i in range(10)])
    better = by_seed([0.01] * 10)
    found = compare(better, worse)
    assert found.wilcoxon == pytest.approx(2 / 2**10)
    assert found.smallest == found.wilcoxon
    assert found.difference == pytest.approx(-0.01285)
    low, high = found.interval
    assert low < found.difference < high < 0
    assert [c.wilcoxon for c in corrected([found] * 3)] == pytest.approx([6 / 2**10] * 3)
    assert corrected([found] * 3)[0].caution == ""


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_seeds_get_a_caution_and_no_p_value(n):
    found = compare(by_seed(range(n)), by_seed([10 * i for i in range(1, n + 1)]))
    assert found.wilcoxon is None
    assert (found.interval is None) == (n < 3)
    assert found.caution == f"n = {n}: no test can be significant"
    assert not found.decidable


def test_six_seeds_decide_one_comparison_but_not_three():
    """2 / 2⁶ = .03125 alone, .09375 as one of three."""
    found = compare(by_seed(range(6)), by_seed([2 * i + 1 for i in range(6)]))
    assert found.wilcoxon == pytest.approx(2 / 2**6)
    assert corrected([found])[0].caution == ""
    assert corrected([found] * 3)[0].caution == "n = 6: Wilcoxon's p is at least 0.094 here"


def test_runs_are_paired_by_seed_and_the_others_counted():
    found = compare({0: 1.0, 1: 2.0, 7: 9.0}, {1: 1.5, 0: 0.5, 3: 4.0})
    assert (found.n, found.unpaired, found.difference) == (2, 2, 0.5)
    assert compare({0: 1.0}, {1: 1.0}) is None


def test_equal_runs_differ_by_nothing():
    same = by_seed([0.1 * i for i in range(8)])
    found = compare(same, same)
    assert (found.difference, found.interval) == (0.0, (0.0, 0.0))
    assert (found.wilcoxon, found.smallest) == (1.0, 1.0)


def test_a_tie_by_rounding_is_a_tie():
    """.0091 - .0095 and .0090 - .0094 differ in the last bit of a float."""
    first, second = {0: 0.0091, 1: 0.0090}, {0: 0.0095, 1: 0.0094}
    assert first[0] - second[0] != first[1] - second[1]
    seeds = range(8)
    found = compare({s: first[s % 2] for s in seeds}, {s: second[s % 2] for s in seeds})
    assert found.interval == (-0.0004, -0.0004)


@settings(deadline=None, max_examples=12)
@given(st.lists(st.floats(-1, 1), min_size=6, max_size=9))
def test_exchanging_the_methods_exchanges_the_sign_and_nothing_else(values):
    zeros, values = by_seed([0.0] * len(values)), by_seed(values)
    there, back = compare(values, zeros), compare(zeros, values)
    assert there.difference == -back.difference
    assert there.wilcoxon == pytest.approx(back.wilcoxon)
    assert there.interval == pytest.approx([-end for end in reversed(back.interval)])


def test_the_interval_is_students():
    """Of 1, 2, 3: t(.975, 2) = 4.3027 standard errors of 1/√3 around 2."""
    half = 4.302652729911275 / math.sqrt(3)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half))
    assert interval([1.0, 2.0]) is None


def test_the_interval_covers_the_mean_in_95_of_100_small_samples():
    """Six normal values each; a BCa bootstrap covers 89 % here."""
    samples = np.random.default_rng(0).normal(size=(2000, 6))
    covered = [low <= 0 <= high for low, high in map(interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_a_run_that_diverged_has_the_worst_rank_and_is_in_no_mean():
    """Of seven pairs one diverged: all seven ranks speak, 2 / 2⁷; the mean is of six."""
    first = by_seed([0.01] * 7)
    second = by_seed([0.02, 0.03, 0.04, 0.05, 0.06, 0.07, DIVERGED])
    found = compare(first, second)
    assert (found.n, found.diverged, found.interval) == (7, 1, None)
    assert found.wilcoxon == pytest.approx(2 / 2**7)
    assert found.difference == pytest.approx(-0.035)
    assert found.caution == "1 diverged: the worst ranks, and no interval"
    back = compare(second, first)
    assert (back.wilcoxon, back.difference) == (found.wilcoxon, -found.difference)


def test_one_divergence_outweighs_any_number_on_the_other_side():
    """Ranks 1 to 6 for the first and 7 against it: W = 7, and 28 - 7 is as far from the middle."""
    differences = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    first = by_seed([*(10 + d for d in differences), DIVERGED])
    found = compare(first, by_seed([10.0] * 7))
    # Subsets of {1, ..., 7} that sum to at most 7: 1 + 1 + 1 + 2 + 2 + 3 + 4 + 5 = 19, of 128.
    assert found.wilcoxon == pytest.approx(2 * 19 / 128)


def test_two_that_diverged_are_a_tie_and_no_mean_is_left():
    found = compare(by_seed([DIVERGED] * 6), by_seed([DIVERGED] * 6))
    assert (found.difference, found.wilcoxon, found.diverged) == (None, 1.0, 6)


def test_welch_is_the_difference_over_its_standard_error():
    """Equal deviations of 1 over n = 3 and 3: √(2/3), with 4 degrees of freedom."""
    found = welch(summarize([3.0, 4.0, 5.0]), 2.0, 1.0, 3)
    assert found.difference == 2.0
    assert found.error == pytest.approx(math.sqrt(2 / 3))
    half = 2.7764451051977987 * math.sqrt(2 / 3)  # t(.975, 4)
    assert found.interval == pytest.approx((2 - half, 2 + half))
    t = 2 / math.sqrt(2 / 3)  # whose tail for 4 degrees of freedom is elementary
    tail = 0.5 - 0.5 * t / math.sqrt(4 + t * t) * (1 + 2 / (4 + t * t))
    assert found.p == pytest.approx(2 * tail)
    assert welch(summarize([1.0]), 2.0, 1.0, 10) is None


def test_mcnemar_counts_the_examples_that_one_alone_has_wrong():
    """One against five of six: (1 + 6) · 2 / 2⁶."""
    first = np.array([1, 0, 0, 0, 0, 0, 1, 0])
    second = np.array([0, 1, 1, 1, 1, 1, 1, 0])
    assert mcnemar(first, second) == (1, 5, pytest.approx(14 / 64))
    assert mcnemar(first, first) == (0, 0, 1.0)


def test_the_chance_of_the_examples_is_that_of_their_mean():
    """Differences 0 and 2: 1 ± √2 / √2; of several seeds their mean counts, example by example."""
    first, second = np.array([1.0, 3.0]), np.array([1.0, 1.0])
    assert over_examples(first, second) == pytest.approx((1.0, 1.0))
    seeds = np.array([[0.0, 4.0], [2.0, 2.0]])
    assert over_examples(seeds, np.ones((2, 2))) == pytest.approx((1.0, 1.0))
