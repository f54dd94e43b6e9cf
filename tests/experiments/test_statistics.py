"""Statistics over seeds, against numbers worked out by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaloss.experiments.statistics import compare, corrected, holm, summarize

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
    assert (found.t, found.wilcoxon, found.interval) == (None, None, None)
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
    assert (found.difference, found.interval, found.t) == (0.0, (0.0, 0.0), None)
    assert (found.wilcoxon, found.smallest) == (1.0, 1.0)


def test_a_tie_by_rounding_is_a_tie():
    """.0091 - .0095 and .0090 - .0094 differ in the last bit of a float."""
    first, second = {0: 0.0091, 1: 0.0090}, {0: 0.0095, 1: 0.0094}
    assert first[0] - second[0] != first[1] - second[1]
    seeds = range(8)
    found = compare({s: first[s % 2] for s in seeds}, {s: second[s % 2] for s in seeds})
    assert found.interval == (-0.0004, -0.0004)
    assert found.t is None


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=6, max_size=9))
def test_exchanging_the_methods_exchanges_the_sign_and_nothing_else(values):
    zeros, values = by_seed([0.0] * len(values)), by_seed(values)
    there, back = compare(values, zeros), compare(zeros, values)
    assert there.difference == -back.difference
    assert there.wilcoxon == pytest.approx(back.wilcoxon)
    assert (there.t is None) == (back.t is None)
    assert there.t is None or math.isclose(there.t, back.t)
