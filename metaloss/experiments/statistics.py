"""Statistics over seeds and over test examples, with the caution that small numbers ask.

Runs of one seed start from the same θ_0 and see the same batches, so that methods are compared seed
by seed. There is one test, Wilcoxon's signed-rank test: it assumes no distribution, and a run that
diverged has a place in it, the worst. Within one row of a table its p-values are corrected by
Holm's method; over a whole table with 10 seeds none could survive a correction.

Another training is one source of chance, and another test set is a second: `mcnemar` and
`over_examples` are about that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev

import numpy as np

#: Below this number of pairs no two-sided Wilcoxon test reaches .05: 2 / 2⁵ = .0625.
SMALLEST_N = 6
#: Below this number an interval says nothing: of 2 values it is 18 times their difference wide.
SMALLEST_INTERVAL = 3
LEVEL = 0.05
DIVERGED = math.inf  #: the number of a run that diverged: worse than every other


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
        n: seeds for which both have ended, with a number or diverged.
        diverged: seeds among them for which a method diverged.
        unpaired: seeds for which only one has ended.
        difference: the mean over the seeds for which neither diverged; None if there is none.
        interval: its 95 % confidence interval by Student's t, which takes the differences for
            normal; None below 3 pairs, or where a run diverged and so no mean can stand for all.
        wilcoxon: p-value of the signed-rank test, two-sided; None below 6 pairs.
        smallest: the smallest p-value the test could give for this many differences.
        family: the number of tests that the p-value is corrected for; see `corrected`.
        examples: standard error of the difference over the test examples; None if unknown.
    """

    n: int
    unpaired: int
    difference: float | None
    interval: tuple[float, float] | None
    wilcoxon: float | None
    smallest: float
    diverged: int = 0
    family: int = 1
    examples: float | None = None

    @property
    def decidable(self) -> bool:
        """Whether any outcome could have been significant at .05 after the correction."""
        return self.n >= SMALLEST_N and self.smallest * self.family <= LEVEL

    @property
    def caution(self) -> str:
        """What a reader must know before the p-value; empty if nothing."""
        found = []
        if self.diverged:
            found.append(f"{self.diverged} diverged: the worst ranks, and no interval")
        if self.n < SMALLEST_N:
            found.append(f"n = {self.n}: no test can be significant")
        elif not self.decidable:
            least = min(1.0, self.smallest * self.family)
            found.append(f"n = {self.n}: Wilcoxon's p is at least {least:.2g} here")
        return "; ".join(found)


@dataclass(frozen=True)
class Beside:
    """Our mean beside a published one; see `welch`.

    Attributes:
        difference: ours less theirs.
        error: its standard error.
        interval: its 95 % confidence interval.
        p: two-sided.
    """

    difference: float
    error: float
    interval: tuple[float, float]
    p: float


def summarize(values: Sequence[float]) -> Summary:
    """Mean and sample standard deviation of at least one value."""
    deviation = stdev(values) if len(values) > 1 else None  # exact: 0 where all are equal
    return Summary(len(values), float(np.mean(values)), deviation)


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison | None:
    """Compares two methods by their values per seed; None if they share no seed.

    Args:
        first, second: by seed; `DIVERGED` of a run that diverged.
    """
    from scipy import stats

    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    unpaired = len(first.keys() ^ second.keys())
    pairs = [(first[seed], second[seed]) for seed in seeds]
    # Rounded, since 0.0091 - 0.0095 and 0.0090 - 0.0094 are a tie; two that diverged are one too.
    differences = np.array([0.0 if a == b else round(a - b, 12) for a, b in pairs])
    finished = np.array([a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)])
    finished = finished.round(12)
    diverged = len(pairs) - len(finished)
    wilcoxon = None
    if len(seeds) >= SMALLEST_N:
        ranked = np.nan_to_num(differences, posinf=_beyond(finished), neginf=-_beyond(finished))
        wilcoxon = float(stats.wilcoxon(ranked).pvalue) if ranked.any() else 1.0
    return Comparison(
        len(seeds),
        unpaired,
        float(finished.mean()) if len(finished) else None,
        None if diverged else interval(finished),
        wilcoxon,
        min(1.0, 2.0 ** (1 - np.count_nonzero(differences))),
        diverged,
    )


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean by Student's t; None below 3 values."""
    from scipy import stats

    values = np.asarray(values)
    if len(values) < SMALLEST_INTERVAL:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    half = stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def welch(ours: Summary, mean: float, deviation: float, n: int) -> Beside | None:
    """Our values beside a published mean and sample standard deviation, by Welch's t-test.

    None where there is a single value, or no deviation at all.
    """
    from scipy import stats

    if ours.deviation is None or ours.deviation + deviation == 0:
        return None
    parts = ours.deviation**2 / ours.n, deviation**2 / n
    error, difference = math.sqrt(sum(parts)), ours.mean - mean
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (ours.n - 1) + parts[1] ** 2 / (n - 1))
    half = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    return Beside(difference, error, (difference - half, difference + half), p)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Two classifiers on the same examples, by McNemar's exact test.

    Args:
        first, second: of each example, whether it is wrong; [n].

    Returns:
        Examples that the first alone has wrong, those that the second alone has, and the two-sided
        p-value that they are equally likely.
    """
    from scipy import stats

    alone = int((first > second).sum()), int((second > first).sum())
    return *alone, float(stats.binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0


def over_examples(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The mean difference of two models' errors on the same examples, and its standard error.

    Args:
        first, second: errors [n], or [seeds, n], whose mean over seeds is taken.
    """
    differences = first - second
    if differences.ndim > 1:
        differences = differences.mean(0)
    return float(differences.mean()), float(differences.std(ddof=1) / len(differences) ** 0.5)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one row, their p-values corrected by Holm (1979)."""
    wilcoxon = holm([comparison.wilcoxon for comparison in comparisons])
    made = sum(p is not None for p in wilcoxon)
    return [
        replace(comparison, wilcoxon=wilcoxon[i], family=max(1, made))
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


def _beyond(finished: np.ndarray) -> float:
    """A difference that is larger than all others."""
    return 2.0 * float(np.abs(finished).max(initial=0.0)) + 1.0
