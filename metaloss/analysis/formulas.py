"""Distillation: short formulas that say what a learned loss does, and how nearly they say it.

Sparse least squares: of all sums of k terms from a library, the one whose slopes are nearest to
those of the learned loss, since slopes are what moves θ and a constant acts on none. The search is
exhaustive, so that nothing depends on an order or on chance.

In classification a slope that y = 1 and y = 0 share acts on no θ either, since softmax
probabilities sum to 1. It is fitted for free and does not count; where it is not zero it stands in
the formula as the term "f".
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metaloss import links
from metaloss.analysis import curves
from metaloss.analysis.curves import Panel
from metaloss.config.arguments import PositiveInt, checked
from metaloss.errors import InputError
from metaloss.representations.base import Representation
from metaloss.representations.saved.learned_loss import LearnedLoss
from metaloss.representations.terms import Terms

#: In classification: functions of f for both targets, and for either.
FUNCTIONS = ("f^2", "f^3", "log(f)", "log(1-f)", "f*log(f)", "sqrt(f)", "exp(f)")
OF_PROBABILITY = (
    "y*f",  # (1-y)*f is the same but for the common slope
    *FUNCTIONS,
    *(f"{gate}*{function}" for gate in ("y", "(1-y)") for function in FUNCTIONS),
)
#: In regression: of the error e = f - y, and of e and y.
OF_ERROR = (
    "e", "e^2", "e^3", "e^4", "sqrt(1+e^2)", "log(cosh(e))",
    "y*e", "y*e^2", "y*e^3", "y^2*e", "y^2*e^2",
)  # fmt: skip
TARGETS = tuple(i / 10 for i in range(11))  #: of regression
POINTS = 201  #: of a panel
LARGEST = 6  #: terms; more would be no short formula
EXACT = 1e-12  #: share of variance left unexplained by what is the same but for rounding


@dataclass(frozen=True)
class Closeness:
    """How near a formula is to the learned loss in one panel, but for a constant."""

    panel: str
    r2: float | None  #: share of the values' variance that is explained; None of a constant
    error: float  #: largest difference of values
    slope_r2: float | None  #: share of the squared slopes that is explained; None of a constant
    slope_error: float  #: largest difference of slopes
    scale: float  #: mean absolute slope of the learned loss


@dataclass(frozen=True)
class Formula:
    """A short formula for a learned loss.

    Attributes:
        size: terms, but for the common slope.
        terms, coefficients: of `representations.terms`.
        closeness: in each panel, see `panels`.
    """

    size: int
    terms: tuple[str, ...]
    coefficients: tuple[float, ...]
    closeness: tuple[Closeness, ...]

    def representation(self) -> Terms:
        """The formula as a loss."""
        return Terms(self.terms, self.coefficients)

    def as_loss(self, of: LearnedLoss) -> LearnedLoss:
        """The formula as a loss in the place of the learned one."""
        provenance = {**of.provenance, "distilled_from": of.summary}
        return LearnedLoss(self.representation(), of.link, step=of.step, provenance=provenance)


def classes_of(loss: LearnedLoss, given: int | None = None) -> int | None:
    """C of the task that a loss was learned on; None for regression.

    Args:
        loss: which may say it.
        given: C, where it does not, and 0 for regression.

    Raises:
        InputError: neither says it, or both, and not the same; or it is no number of classes.
    """
    said = loss.provenance.get("classes")
    if loss.link is links.values:
        said = 0
    if said is None and given is None:
        raise InputError("the loss does not say its number of classes: give --classes")
    if given is not None and said is not None and given != said:
        raise InputError(f"--classes {given}: the loss was learned with {said}")
    found = said if given is None else given
    if not isinstance(found, int) or found < 0 or found == 1:
        raise InputError(f"{found!r} is no number of classes: at least 2, or 0 for regression")
    return found or None


def of_size(formulas: Sequence[Formula], size: int | None) -> Formula:
    """The formula of a size; None takes the largest.

    Raises:
        InputError: there is none of that size.
    """
    if size is None:
        return formulas[-1]
    for formula in formulas:
        if formula.size == size:
            return formula
    raise InputError(f"--size {size}: there are formulas of 1 to {formulas[-1].size} terms")


@checked()
def distill(
    representation: Representation,
    classes: int | None,
    largest: PositiveInt = 5,
    library: Sequence[str] | None = None,
) -> list[Formula]:
    """The best formula of each size, up to `largest` or to one that is exact.

    Args:
        representation: the learned loss; it is left alone.
        classes: C; None for regression.
        largest: terms of the largest formula.
        library: terms to choose from; None takes those of the kind of task.

    Raises:
        ConfigError: `largest` is out of its range, or a term is unknown.
        InputError: the loss is constant, or not finite on its panels.
    """
    if library is None:
        library = OF_ERROR if classes is None else OF_PROBABILITY
    largest = min(largest, len(library), LARGEST)
    learned = copy.deepcopy(representation).cpu().double().requires_grad_(False)
    fit = _Fit(learned, classes, list(library))
    found = []
    for size in range(1, largest + 1):
        chosen = fit.best(size)
        if chosen is None:  # the library has not as many independent terms
            break
        terms, coefficients, unexplained = chosen
        near = tuple(_compare(learned, _in_float64(terms, coefficients), classes))
        found.append(Formula(size, terms, coefficients, near))
        if unexplained < EXACT:
            break
    return found


def panels(classes: int | None, targets: Sequence[float] = curves.TARGETS) -> dict[str, Panel]:
    """What a loss is held against its formula on, by name; see `LossCurves`.

    In classification an output is one of an example of C outputs, the others staying at 1/C, so
    that losses which sum over the outputs and those which average are both in their own unit.
    """
    seen = curves.panels(classes, targets)
    if classes is None:
        return seen
    return {**seen, "y = 1": _one_of(classes, 1.0), "y = 0": _one_of(classes, 0.0)}


def _one_of(classes: int, target: float) -> Panel:
    def see(grid: Tensor) -> tuple[Tensor, Tensor]:
        others = torch.full_like(grid, 1 / classes)[:, None].expand(-1, classes - 1)
        one_hot = torch.zeros(len(grid), classes, dtype=grid.dtype)
        one_hot[:, 0 if target else 1] = 1
        return torch.cat([grid[:, None], others], dim=1), one_hot

    return see


class _Fit:
    """Least squares on the slopes of a loss, each panel counting equally, for any choice of terms.

    Args:
        learned: the loss, in float64.
        classes: C; None for regression.
        library: terms to choose from.
    """

    def __init__(self, learned: Representation, classes: int | None, library: list[str]) -> None:
        grid = curves.grid_of(classes, POINTS).double()
        seen = list(panels(classes, TARGETS).values())

        def slopes(loss: Representation) -> np.ndarray:
            return np.stack([curves.curve(loss, panel, grid)[1] for panel in seen])  # [K, G]

        def slopes_of(terms: list[str]) -> np.ndarray:
            columns = [slopes(_in_float64((term,), (1.0,))).ravel() for term in terms]
            return np.stack(columns, axis=1) if columns else np.empty((len(seen) * POINTS, 0))

        goal = slopes(learned)
        if not np.isfinite(goal).all():
            raise InputError("the learned loss is not finite on [0, 1]: nothing can be fitted")
        self.library = library
        self.shared = [] if classes is None else ["f"]  # the slope that acts on no θ
        free = slopes_of(self.shared)
        sizes = np.linalg.norm(_without(free, goal.ravel()).reshape(goal.shape), axis=1)
        if sizes.max() <= EXACT * np.linalg.norm(goal):
            raise InputError("the learned loss moves no parameter: there is nothing to say of it")
        sizes[sizes < EXACT * sizes.max()] = sizes.max()
        weights = (1 / sizes).repeat(POINTS)
        self.goal = goal.ravel() * weights
        self.columns = slopes_of(library) * weights[:, None]
        self.free = free * weights[:, None]
        # The search is made without the free direction, and within the library's own span.
        columns = _without(self.free, self.columns)
        columns = columns / np.linalg.norm(columns, axis=0).clip(min=np.finfo(float).tiny)
        q, self._r = np.linalg.qr(columns)
        self._whole = _without(self.free, self.goal)
        self._c = q.T @ self._whole

    def best(self, size: int) -> tuple[tuple[str, ...], tuple[float, ...], float] | None:
        """Terms, coefficients and the unexplained share of the best choice; None if there is none.

        Choices that are linearly dependent are left out: another one says the same. Of choices that
        explain equally much, as y f² and (1-y) f² do beside f², the earliest in the library counts:
        rounding, which differs between processors, must not decide what is found.
        """
        choices = np.array(list(itertools.combinations(range(len(self.library)), size)))
        q, r = np.linalg.qr(np.moveaxis(self._r[:, choices], 0, 1))  # [n, L, size]
        independent = np.abs(np.diagonal(r, axis1=1, axis2=2)).min(axis=1) > 1e-7
        if not independent.any():
            return None
        explained = np.square(np.einsum("nls,l->ns", q, self._c)).sum(axis=1)
        explained = np.where(independent, explained, -1.0)
        equal = explained >= explained.max() - EXACT * np.square(self._c).sum()
        best = int(equal.argmax())
        names = [self.library[i] for i in choices[best]] + self.shared
        design = np.concatenate([self.columns[:, choices[best]], self.free], axis=1)
        weights, *_ = np.linalg.lstsq(design, self.goal, rcond=None)
        sizes = np.abs(weights) * np.linalg.norm(design, axis=0)
        kept = [i for i in range(len(names)) if i < size or sizes[i] > 1e-9 * sizes.max()]
        left = np.square(self.goal - design @ weights).sum() / np.square(self._whole).sum()
        return tuple(names[i] for i in kept), tuple(float(weights[i]) for i in kept), float(left)


def _in_float64(terms: Sequence[str], coefficients: Sequence[float]) -> Terms:
    """A formula as a loss, with all digits of its coefficients."""
    loss = Terms(terms, coefficients).double()
    loss.weights.data.copy_(torch.tensor(coefficients, dtype=torch.float64))
    return loss


def _without(free: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What is left of columns without the directions in `free`."""
    q, _ = np.linalg.qr(free)
    return columns - q @ (q.T @ columns)


def _compare(
    learned: Representation, formula: Representation, classes: int | None
) -> Iterator[Closeness]:
    grid = curves.grid_of(classes, POINTS).double()
    for name, panel in panels(classes).items():
        values, slopes = curves.curve(learned, panel, grid)
        own_values, own_slopes = curves.curve(formula, panel, grid)
        size = float(np.abs(values).max())
        values, own_values = values - values.mean(), own_values - own_values.mean()
        yield Closeness(
            name,
            _explained(values, own_values, size),
            float(np.abs(values - own_values).max()),
            _explained(slopes, own_slopes, float(np.abs(slopes).max())),
            float(np.abs(slopes - own_slopes).max()),
            float(np.abs(slopes).mean()),
        )


def _explained(learned: np.ndarray, formula: np.ndarray, size: float) -> float | None:
    """The share of squares that is explained; None where they are rounding errors of `size`."""
    if np.abs(learned).max() <= EXACT * size:
        return None
    return 1 - float(np.square(learned - formula).sum() / np.square(learned).sum())
