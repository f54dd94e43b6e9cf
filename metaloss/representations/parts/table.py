"""Tables of a function over [0, 1]: evaluated on few nodes, read anywhere, linear in the nodes.

A loss of single pairs with hard labels is a function of one number for each label. On `panels`
equal panels of [0, 1] it is known at Chebyshev nodes alone; between them it is the polynomial
through a panel's nodes, which is written down once as polynomials of low degree on thousands of
equal cells. Reading is then a lookup by index and a multiplication or two for each pair. All of
this is linear in the values at the nodes, so a gradient comes back to them by the transposed
steps: scattered to the cells, and from these to the nodes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ORDER = 16  #: Chebyshev nodes of a panel
HEAD = 2.0**-6  #: the end at 0 that one polynomial covers
BLOCK = 32  #: numbers that are beyond the head together


@dataclass(frozen=True)
class Grid:
    """Where a function is evaluated, and how it is read between.

    Args:
        panels: of equal width, a power of two.
        degree: of the polynomial on a cell: 1 reads faster, 2 needs fewer cells.
        cells: of equal width, over all panels; a power of two.
        head: degree of the polynomial that covers the end at 0, up to HEAD.
    """

    panels: int
    degree: int
    cells: int
    head: int

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return self.panels * ORDER

    def places(self, like: Tensor) -> Tensor:
        """The nodes, [nodes], panel by panel."""
        return _places(self).to(like)

    def checks(self, like: Tensor) -> Tensor:
        """Points of [0, 1] where the polynomials through the nodes are furthest off.

        Those between the nodes, where the product of the distances to them is largest, and the ends
        of the panels: in each panel the extrema of its Chebyshev polynomial. And some in the head.
        """
        extrema = (
            1 - torch.cos(math.pi * torch.arange(ORDER + 1, dtype=torch.float64) / ORDER)
        ) / 2
        head = HEAD * torch.arange(9, dtype=torch.float64) / 8
        return torch.cat((head, _over_panels(self.panels, extrema))).to(like)


@functools.lru_cache(maxsize=32)
def _places(grid: Grid) -> Tensor:
    return _over_panels(grid.panels, _chebyshev(ORDER))


@functools.lru_cache(maxsize=32)
def _to_cells(grid: Grid, device: torch.device) -> tuple[Tensor, ...]:
    """The cells of one panel from its nodes, degree + 2 matrices [ORDER, cells of a panel].

    First the value at a cell's left end; then the coefficients of 1, r, r², ..., r in [0, 1] over
    the cell, of the polynomial that meets the panel's at the cell's Chebyshev nodes.

    They are applied in float64 in any precision: a cell's value may be a hundredth of the panel's
    largest, as near 0 where a softmax has most of its outputs, and would be rounded as the largest.
    """
    own = grid.cells // grid.panels
    left = torch.arange(own, dtype=torch.float64) / own
    points = _chebyshev(grid.degree + 1)
    met = _through_nodes(left + points[:, None] / own)  # [degree + 1, cells, ORDER]
    powers = points[:, None] ** torch.arange(grid.degree + 1)
    coefficients = torch.tensordot(torch.linalg.inv(powers), met, 1)
    both = torch.cat((_through_nodes(left)[None], coefficients)).mT
    return both.contiguous().to(device).unbind()


@functools.lru_cache(maxsize=32)
def _to_head(grid: Grid, device: torch.device) -> Tensor:
    """The head's coefficients from the nodes of the first panel, [head + 1, ORDER], float64."""
    points = _chebyshev(grid.head + 1) * HEAD
    powers = points[:, None] ** torch.arange(grid.head + 1)
    coefficients = torch.linalg.solve(powers, _through_nodes(points * grid.panels))
    return coefficients.to(device)


def _chebyshev(count: int) -> Tensor:
    """Chebyshev nodes of [0, 1], ascending."""
    odd = 2 * torch.arange(count, dtype=torch.float64) + 1
    return (1 - torch.cos(math.pi * odd / (2 * count))) / 2


def _through_nodes(x: Tensor) -> Tensor:
    """What each node of a panel [0, 1] has in its polynomial at x: [..., ORDER]."""
    k = torch.arange(ORDER, dtype=torch.float64)

    def polynomials(u: Tensor) -> Tensor:
        return torch.cos(k * torch.arccos((2 * u - 1).clamp(-1, 1))[..., None])

    by_node = polynomials(_chebyshev(ORDER)) * (2 - (k == 0).double()) / ORDER
    return polynomials(x) @ by_node.T


def _over_panels(panels: int, inside: Tensor) -> Tensor:
    """Points of a panel, in each of them."""
    starts = torch.arange(panels, dtype=torch.float64)[:, None]
    return ((starts + inside) / panels).flatten()


class Table:
    """L functions on [0, 1], read by lookups.

    Args:
        grid: where they were evaluated.
        values: v at the nodes, [L, nodes].
        slopes: their derivatives s there, [L, nodes].
    """

    def __init__(self, grid: Grid, values: Tensor, slopes: Tensor) -> None:
        self.grid = grid
        self._functions = len(values)
        to_left, *to_coefficients = _to_cells(grid, values.device)
        dtype, panels = values.dtype, slopes.reshape(-1, ORDER).double()
        self._left = (values.reshape(-1, ORDER).double() @ to_left).view(-1).to(dtype)
        #: Coefficients of 1, r, ... on each cell of each function, [L · cells] each.
        self._cells = [(panels @ matrix).view(-1).to(dtype) for matrix in to_coefficients]
        self._slopes = slopes
        # Just below the number of cells: 1 lies in the last one. With a NaN the lookup is NaN.
        self._stretch = math.nextafter(grid.cells, 0.0)
        if values.dtype != torch.float64:
            self._stretch = grid.cells * (1 - torch.finfo(values.dtype).eps / 2)

    def look(self, x: Tensor, own: Tensor | int | None = None) -> Places:
        """Where each x is.

        Args:
            x: in [0, 1], contiguous, [rows, C].
            own: columns of each row, [rows, 1], that are of the second function; an integer takes
                all of x as being of that function. The others are of the first.
        """
        scaled = x * self._stretch
        place = scaled.int().clamp_(0, self.grid.cells - 1)  # of a NaN the integer is anything
        r = scaled.sub_(place)
        if torch.is_tensor(own):
            place.scatter_add_(1, own, place.new_full((), self.grid.cells).expand_as(own))
        elif own:
            place += own * self.grid.cells
        return Places(place.view(-1), r.view(-1))

    def read(self, at: Places) -> tuple[Tensor, Tensor]:
        """v and s, [N] each."""
        first, *others = (cells.index_select(0, at.cell) for cells in self._cells)
        *others, s = others
        for coefficient in reversed(others):
            s = coefficient.addcmul_(s, at.r)
        s = torch.addcmul(first, s, at.r)
        # The integral of s from the cell's left end, by the trapezoid.
        v = self._left.index_select(0, at.cell)
        v.addcmul_(first.add_(s), at.r, value=0.5 / self.grid.cells)
        return v, s

    def scattered(self) -> Scattered:
        """Nothing yet, to be filled by `scatter` and `Head.scatter`."""
        # float64: a cell may gather millions of terms.
        cells = self._left.new_zeros((len(self._cells), len(self._left)), dtype=torch.float64)
        return Scattered(cells, None)

    def scatter(self, into: Scattered, at: Places, t: Tensor) -> None:
        """Adds to `into` what takes ⟨s(x), t⟩ back to the cells; t [N]."""
        place, t = at.cell.long(), t.double()
        for number, cells in enumerate(into.cells):
            if number:
                t = t * at.r
            _add_at(cells, place, t)

    def gathered(self, into: Scattered) -> Tensor:
        """Back to the nodes: w with ⟨s(x), t⟩ = ⟨s at the nodes, w⟩, [L, nodes]."""
        device = self._left.device
        _, first, *others = _to_cells(self.grid, device)
        cells = into.cells.view(len(into.cells), -1, first.shape[1])
        weights = cells[0] @ first.T
        for part, matrix in zip(cells[1:], others, strict=True):
            weights.addmm_(part, matrix.T)
        if into.head is not None:
            weights[0] += into.head @ _to_head(self.grid, device)
        return weights.view(self._functions, -1).to(self._left.dtype)

    def head(self) -> Head:
        """The first function near 0, for batches of which nearly all lies there."""
        to_head = _to_head(self.grid, self._slopes.device)
        coefficients = (to_head @ self._slopes[0, :ORDER].double()).to(self._slopes.dtype)
        return Head(self, coefficients.unbind(), self._left[0])


@dataclass
class Places:
    """Where numbers are in a table; both flat, [N]."""

    cell: Tensor  #: int32
    r: Tensor  #: how far in it, in [0, 1]


@dataclass
class Scattered:
    """What takes ⟨s(x), t⟩ back to the nodes, on its way; float64."""

    cells: Tensor  #: ⟨r^k, t⟩ over the x of each cell, [degree + 1, L · cells]
    head: Tensor | None  #: ⟨x^k, t⟩ over the x of the head, [head + 1]; None without any


class Head:
    """The first function by one polynomial in x on [0, HEAD], and by lookups beyond.

    Of a softmax over thousands of classes nearly all lies there: at most 1/HEAD in a row do not.
    Whole blocks are taken by lookups where one number asks for it, as picking out single ones would
    cost more than all the rest.

    Args:
        table: for the lookups.
        coefficients: of s, those of 1, x, x², ..., [] each.
        start: v at 0, [].
    """

    def __init__(self, table: Table, coefficients: Sequence[Tensor], start: Tensor) -> None:
        self._table = table
        self._coefficients = coefficients
        self._start = start

    def read(self, x: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sum of v over all of x, shape [], and s.

        Args:
            x: [rows, C], contiguous.
            weights: of v in the sum, [rows]; None: 1.
        """
        flat, (a, *others) = x.view(-1), self._coefficients
        s = flat * others.pop()
        while others:
            s.add_(others.pop()).mul_(flat)
        s.add_(a)
        blocks = self._beyond(flat)
        beyond = _pick(flat, blocks)
        v, exact = self._table.read(self._table.look(beyond))
        _put(s, blocks, exact)
        # From 0 on by the trapezoid of s and its first correction; beyond the head v is known.
        bend = self._coefficients[2] / 6
        v -= self._start + (exact + a) * beyond / 2 - bend * beyond**3
        s, square = s.view_as(x), x * x
        if weights is None:
            squares, products = (torch.dot(flat, other.view(-1)) for other in (square, s))
            total = x.numel() * self._start + (a * x.sum() + products) / 2 - bend * squares
            return total + v.sum(), s
        squares, products = (torch.linalg.vecdot(x, other) for other in (square, s))
        by_row = x.shape[1] * self._start + (a * x.sum(-1) + products) / 2 - bend * squares
        places = _pick(torch.arange(len(flat), device=x.device), blocks)
        rows = weights[places.div_(x.shape[1], rounding_mode="floor")]
        return torch.dot(by_row, weights) + torch.dot(v, rows), s

    def scatter(self, into: Scattered, x: Tensor, t: Tensor) -> None:
        """Adds to `into` what takes ⟨s(x), t⟩ back; x, t [rows, C], contiguous; t is used up."""
        flat, t = x.view(-1), t.view(-1)
        blocks = self._beyond(flat)
        self._table.scatter(into, self._table.look(_pick(flat, blocks)), _pick(t, blocks))
        _put(t, blocks, None)
        degree = self._table.grid.head
        if into.head is None:
            into.head = into.cells.new_zeros(degree + 1)
        into.head[0] += t.sum()
        power = flat
        for k in range(1, degree + 1):
            into.head[k] += torch.dot(t, power)
            if k < degree:
                power = power * flat

    def _beyond(self, flat: Tensor) -> Tensor:
        """The blocks of which something is beyond the head, or NaN."""
        whole = len(flat) // BLOCK * BLOCK
        return (~(flat[:whole].view(-1, BLOCK).amax(-1) <= HEAD)).nonzero().view(-1)


def _pick(flat: Tensor, blocks: Tensor) -> Tensor:
    """The numbers of these blocks, and those that fill no block."""
    whole = len(flat) // BLOCK * BLOCK
    picked = flat[:whole].view(-1, BLOCK).index_select(0, blocks).view(-1)
    return torch.cat((picked, flat[whole:])) if whole < len(flat) else picked


def _put(flat: Tensor, blocks: Tensor, values: Tensor | None) -> None:
    """Writes what `_pick` would read; zeros for None."""
    whole = len(flat) // BLOCK * BLOCK
    inside, rest = flat[:whole].view(-1, BLOCK), flat[whole:]
    if values is None:
        inside.index_fill_(0, blocks, 0.0)
        rest.zero_()
    else:
        inside.index_copy_(0, blocks, values[: len(blocks) * BLOCK].view(-1, BLOCK))
        rest.copy_(values[len(blocks) * BLOCK :])


def _add_at(into: Tensor, place: Tensor, values: Tensor) -> None:
    if into.is_cuda:
        into.index_put_((place,), values, accumulate=True)  # in a fixed order, unlike the other
    else:
        into.scatter_add_(0, place, values)
