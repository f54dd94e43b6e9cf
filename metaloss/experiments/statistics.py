"""Statistics over seeds: means, deviations, and paired comparisons with the caution small n asks.

Runs of one seed start from the same θ_0 and see the same batches, so that methods are compared seed
by seed. Within one row of a table the p-values are corrected by Holm's method; over a whole table
with 10 seeds no Wilcoxon test could survive a correction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

#: Below this number of pairs no two-sided Wilcoxon test reaches .05: 2 / 2⁵ = .0625.
SMALLEST_N = 6
LEVEL = 0.05
RESAMPLES = 9999


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (ddof = 1; None for a single value) of n values."""

    n: int
    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same seeds; differences are first minus second, so negative is better.

    Attributes:
        n: seeds for which both have a number.
        unpaired: seeds for which only one has.
        difference: the mean.
        interval: its 95 % bootstrap confidence interval (BCa); None below 6 pairs.
        t: p-value of the paired t-test, two-sided; None below 6 pairs, where nothing speaks for
            its assumption that differences are normal, and where all are equal.
        wilcoxon: p-value of the Wilcoxon signed-rank test, two-sided; None below 6 pairs.
        smallest: the smallest p-value the Wilcoxon test could give for this many differences.
        family: the number of Wilcoxon tests that p-values are corrected for; see `corrected`.
    """

    n: int
    unpaired: int
    difference: float
    interval: tuple[float, float] | None
    t: float | None
    wilcoxon: float | None
    smallest: float
    family: int = 1

    @property
    def decidable(self) -> bool:
        """Whether any outcome could have been significant at .05 after the correction."""
        return self.n >= SMALLEST_N and self.smallest * self.family <= LEVEL

    @property
    def caution(self) -> str:
        """What a reader must know before the p-values; empty if nothing."""
        if self.n < SMALLEST_N:
            return f"n = {self.n}: no test can be significant"
        if not self.decidable:
            least = min(1.0, self.smallest * self.family)
            return f"n = {self.n}: Wilcoxon's p is at least {least:.2g} here"
        return ""


def summarize(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation of at least one value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(len(values), float(np.mean(values)), deviation)


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison | None:
    """Compares two methods by their values per seed; None if they share no seed."""
    from scipy import stats

    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    unpaired = len(first.keys() ^ second.keys())
    # Rounded, since 0.0091 - 0.0095 and 0.0090 - 0.0094 are a tie.
    differences = np.round([first[seed] - second[seed] for seed in seeds], 12)
    n, constant = len(seeds), bool(np.ptp(differences) == 0)
    interval = t = wilcoxon = None
    if n >= SMALLEST_N:
        t = None if constant else float(stats.ttest_1samp(differences, 0.0).pvalue)
        interval = (float(differences[0]),) * 2 if constant else _bootstrap(differences)
        wilcoxon = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    smallest = min(1.0, 2.0 ** (1 - np.count_nonzero(differences)))
    return Comparison(n, unpaired, float(differences.mean()), interval, t, wilcoxon, smallest)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one row, each test's p-values corrected by Holm (1979)."""
    t = holm([comparison.t for comparison in comparisons])
    wilcoxon = holm([comparison.wilcoxon for comparison in comparisons])
    made = sum(p is not None for p in wilcoxon)
    return [
        replace(comparison, t=t[i], wilcoxon=wilcoxon[i], family=max(1, made))
        for i, comparison in enumerate(comparisons)
    ]


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Step-down correction: the k-th smallest of m times m - k + 1, never below its predecessor.

    Tests that could not be made (None) do not count.
    """
    made = sorted((p, i) for i, p in enumerate(p_values) if p is not None and math.isfinite(p))
    out: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for k, (p, i) in enumerate(made):
        largest = max(largest, min(1.0, p * (len(made) - k)))
        out[i] = largest
    return out


def _bootstrap(differences: np.ndarray) -> tuple[float, float] | None:
    """The 95 % BCa interval of the mean, if there is one; the same for the same differences."""
    from scipy import stats

    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
