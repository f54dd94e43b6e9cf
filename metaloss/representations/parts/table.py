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
from dataclasses import dataclass

import torch
from torch import Tensor

ORDER = 16  #: Chebyshev nodes of a panel


@dataclass(frozen=True)
class Grid:
    """Where a function is evaluated, and how it is read between.

    Args:
        panels: of equal width, a power of two.
        degree: of the polynomial on a cell: 1 reads faster, 2 needs fewer cells.
        cells: of equal width, over all panels; a power of two.
    """

    panels: int
    degree: int
    cells: int

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
        of the panels: in each panel the extrema of its Chebyshev polynomial.
        """
        extrema = (1 - torch.cos(math.pi * torch.arange(ORDER + 1, dtype=torch.float64) / ORDER)) / 2
        return _over_panels(self.panels, extrema).to(like)


@functools.lru_cache(maxsize=32)
def _places(grid: Grid) -> Tensor:
    return _over_panels(grid.panels, _chebyshev(ORDER))


@functools.lru_cache(maxsize=32)
def _to_cells(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The cells of one panel from its nodes, [degree + 2, ORDER, cells of a panel].

    First the value at a cell's left end; then the coefficients of 1, r, r², ..., r in [0, 1] over
    the cell, of the polynomial that meets the panel's at the cell's Chebyshev nodes.
    """
    own = grid.cells // grid.panels
    left = torch.arange(own, dtype=torch.float64) / own
    points = _chebyshev(grid.degree + 1)
    met = _through_nodes(left + points[:, None] / own)  # [degree + 1, cells, ORDER]
    powers = points[:, None] ** torch.arange(grid.degree + 1)
    coefficients = torch.tensordot(torch.linalg.inv(powers), met, 1)
    both = torch.cat((_through_nodes(left)[None], coefficients)).mT
    return both.contiguous().to(dtype=dtype, device=device)


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
        to_cells = _to_cells(grid, values.dtype, values.device)
        panels = (len(values) * grid.panels, ORDER)
        self._left = (values.reshape(panels) @ to_cells[0]).flatten()
        #: Coefficients of 1, r, ... on each cell of each function, [degree + 1, L · cells].
        self._cells = (slopes.reshape(panels) @ to_cells[1:]).flatten(1)
        # Just below the number of cells: 1 lies in the last one. With a NaN the lookup is NaN.
        self._stretch = math.nextafter(grid.cells, 0.0)
        if values.dtype != torch.float64:
            self._stretch = grid.cells * (1 - torch.finfo(values.dtype).eps / 2)

    def read(self, x: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """v and s at x.

        Args:
            x: in [0, 1], [rows, C], contiguous.
            own: [rows, 1], integer: a column of each row where the second function is read, in
                place of the first.

        Returns:
            v, s: shaped like x.
        """
        place, r = self._look(x, own)
        first, *others = (cells.index_select(0, place) for cells in self._cells)
        s = others[-1]
        for coefficient in reversed(others[:-1]):
            s = torch.addcmul(coefficient, s, r)
        s = torch.addcmul(first, s, r)
        # The integral of s from the cell's left end, by the trapezoid.
        v = self._left.index_select(0, place).addcmul_(
            first.add_(s), r, value=0.5 / self.grid.cells
        )
        return v.view_as(x), s.view_as(x)

    def slope(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """s alone, see `read`."""
        place, r = self._look(x, own)
        *others, s = (cells.index_select(0, place) for cells in self._cells)
        for coefficient in reversed(others):
            s = torch.addcmul(coefficient, s, r)
        return s.view_as(x)

    def scattered(self) -> Tensor:
        """Where `scatter` adds up: float64, as a cell may gather millions of terms."""
        return self._cells.new_zeros(self._cells.shape, dtype=torch.float64)

    def scatter(self, into: Tensor, x: Tensor, t: Tensor, own: Tensor | None = None) -> None:
        """Adds to `into` what takes ⟨s(x), t⟩ back to the cells.

        Args:
            into: of `scattered`.
            x, t: [rows, C], contiguous.
            own: see `read`.
        """
        place, r = self._look(x, own)
        place, t = place.long(), t.flatten().double()
        for number, cells in enumerate(into):
            if number:
                t = t * r
            _add_at(cells, place, t)

    def gathered(self, into: Tensor) -> Tensor:
        """From the cells to the nodes: w with ⟨s(x), t⟩ = ⟨s at the nodes, w⟩, [L, nodes]."""
        to_cells = _to_cells(self.grid, self._cells.dtype, self._cells.device)[1:]
        panels = into.to(self._cells.dtype).unflatten(1, (self._functions * self.grid.panels, -1))
        return (panels @ to_cells.mT).sum(0).view(self._functions, -1)

    def _look(self, x: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """The cell of each x, and how far it is in it, r in [0, 1]; both flat."""
        scaled = x * self._stretch
        place = scaled.int().clamp_(0, self.grid.cells - 1)  # of a NaN the integer is anything
        r = scaled.sub_(place)
        if own is not None:
            place.scatter_(1, own, place.gather(1, own) + self.grid.cells)
        return place.view(-1), r.view(-1)


def _add_at(into: Tensor, place: Tensor, values: Tensor) -> None:
    if into.is_cuda:
        into.index_put_((place,), values, accumulate=True)  # in a fixed order, unlike the other
    else:
        into.scatter_add_(0, place, values)
