"""Tables of a learned loss: its network on some hundred nodes in place of every pair of a batch.

With hard labels a loss of single pairs is two functions of one number, ℓ(·, 0) and ℓ(·, 1). Between
changes of φ their slopes are tabulated (see `metaloss.representations.parts.table`), for as many
nodes as a certificate asks for: the table against the loss itself in float64, at the points where
it is furthest off, must agree to about the rounding of the precision at hand. Where no number of
nodes does, as at the kinks of a ReLU, there is no table.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from metaloss.representations.base import Representation
from metaloss.representations.parts.table import BLOCK, HEAD, ORDER, Grid, Table

#: When to tabulate: where it pays, wherever it can, or never.
Tabulate = Literal["auto", "always", "never"]

LABELS = (0.0, 1.0)
PANELS = (4, 8, 16, 32, 64)
HEADS = (3, 5, 8, 12)
#: The largest error of a slope, over the largest slope: a rounding or two of float32; in float64
#: what the cells' polynomials reach.
TOLERANCE = {torch.float64: 2e-10}
FLOAT32 = 2e-7
#: φ has moved far, and the table is certified anew, at this share of its norm; looked at once in
#: so many tables of a φ that is learned through them, and the error must leave room until then.
FAR, LOOK_EVERY, ROOM = 0.05, 8, 0.25
#: Pairs of a batch for each node, from which on a table pays; fewer where nobody asks for the way
#: back to φ: then one table serves until φ moves.
PAYS, PAYS_AT_ONCE = 16, 4
#: Outputs below which nobody gets a table unasked: it saves hardly anything there, and without one
#: a loss that stays as it is trains as plain training on it does, bit for bit.
FEW = 64
MANY = 1 << 16  #: pairs from which on a larger table that is read faster pays


@dataclass(frozen=True)
class Certified:
    """What a certificate found for a loss: nothing (0 panels), or a table that serves."""

    panels: int
    own: bool  #: whether ℓ(·, 1) is in the table too; else it is evaluated at each row's own pair
    head: int  #: degree of the polynomial near 0; 0: cells all the way


class Pairs(Protocol):
    """What a table asks of a loss."""

    def pair_losses(self, prediction: Tensor, target: Tensor, outputs: int) -> Tensor:
        """See `Representation.pair_losses`."""


@dataclass
class Reading:
    """A table at one φ, and the slopes at its nodes, [L · nodes], with a graph to φ if asked."""

    loss: Pairs
    table: Table
    slopes: Tensor
    own: bool
    head: bool  #: whether the polynomial near 0 is made use of


class Tables:
    """The tables of a learned loss: certified, made, and kept between changes of φ.

    They depend on φ alone, and on where it was certified: what `state_dict` holds.

    Args:
        loss: the learned loss.
        tabulate: "auto", where it pays; "always", wherever a certificate allows; "never".
    """

    def __init__(self, loss: nn.Module | None, tabulate: Tabulate) -> None:
        self.loss = loss if isinstance(loss, Representation) and loss.of_pairs else None
        self.tabulate = tabulate
        self._tensors = [] if self.loss is None else _tensors(self.loss)
        self._certified: dict[tuple[int, torch.dtype], Certified] = {}
        self._at: Tensor | None = None  # φ then, and the loss's buffers
        self._made = 0  # tables since
        self._counted: Any = None  # the version of φ that was counted last
        self._kept: dict[Any, Reading] = {}  # at that φ

    def asked(self, outputs: Tensor) -> bool:
        """Whether a table may serve outputs of such a shape; nobody need look at labels if not."""
        if self.loss is None or self.tabulate == "never":
            return False
        return self.tabulate == "always" or max(outputs.shape[1:], default=0) >= FEW

    def reading(self, rows: Tensor, graph: bool) -> Reading | None:
        """The table for a batch, at the present φ; None where the loss is evaluated at each pair.

        Args:
            rows: the model's outputs, [rows, C].
            graph: whether φ is to be learned through it.
        """
        if not self._may_serve(rows, graph):
            return None
        self._count(graph)
        key = (rows.shape[1], rows.dtype, rows.device, rows.numel() >= MANY)
        kept = self._kept.get(key)
        if kept is not None and not graph:
            return kept
        reading = self._made_of(rows, self._certificate(rows.shape[1], rows.dtype), graph)
        if reading is None:
            return None
        self._kept[key] = replace(reading, slopes=reading.slopes.detach())
        return reading if graph else self._kept[key]

    def serving(self, rows: Tensor, graph: bool) -> Certified | None:
        """What the table is that `reading` gives.

        Args:
            rows, graph: see `reading`.
        """
        if not self._may_serve(rows, graph):
            return None
        self._count(graph)
        found = self._certificate(rows.shape[1], rows.dtype)
        return found if self._pays(rows, found, graph) else None

    def glance(self, rows: Tensor) -> Reading | None:
        """A table for a look on the side, by the certificate at hand; nothing of it remains.

        Args:
            rows: see `reading`.
        """
        found = self._certified.get((rows.shape[1], rows.dtype))
        if found is None or not self._may_serve(rows, graph=False):
            return None
        return self._made_of(rows, found, graph=False)

    def _may_serve(self, rows: Tensor, graph: bool) -> bool:
        """Whether a table pays for such a batch, if the smallest one is certified."""
        if self.loss is None or self.tabulate == "never" or rows.shape[1] < 2:
            return False
        if self.tabulate == "auto" and rows.shape[1] < FEW:
            return False
        return rows.numel() >= self._least_pairs(graph) * PANELS[0] * ORDER

    def _least_pairs(self, graph: bool) -> int:
        """For each node of a table, from which on it pays."""
        return (PAYS if graph else PAYS_AT_ONCE) * len(LABELS) if self.tabulate == "auto" else 0

    def _pays(self, rows: Tensor, found: Certified, graph: bool) -> bool:
        """Whether there is a table by a certificate, and it pays for such a batch."""
        grid = _grid_of(rows, found)
        return found.panels > 0 and rows.numel() >= self._least_pairs(graph) * grid.nodes

    def _made_of(self, rows: Tensor, found: Certified, graph: bool) -> Reading | None:
        """The table of a certificate at the present φ; None where there is none that pays."""
        assert self.loss is not None
        return make(self.loss, rows, found, graph) if self._pays(rows, found, graph) else None

    def _version(self) -> Any:
        """Changes with φ, and with all else that the loss is made of."""
        return tuple((t.data_ptr(), t._version) for t in self._tensors)

    def _count(self, graph: bool) -> None:
        """Counts a φ that has not been seen yet."""
        version = self._version()
        if version != self._counted:
            self._look_again(graph)
            self._counted = version
            self._kept.clear()

    def _look_again(self, graph: bool) -> None:
        """Drops the certificates where φ has moved far from where they were made.

        Args:
            graph: whether φ is learned through the table: then it moves from each to the next by
                one step. Between others it may have been moved any number of times, by other means.
        """
        assert self.loss is not None
        self._made += 1
        if self._at is not None and (not graph or self._made % LOOK_EVERY == 0):
            now = _flat(self.loss)
            if bool((now - self._at).norm() > FAR * self._at.norm()):
                self._certified.clear()
                self._at = None

    def _certificate(self, outputs: int, dtype: torch.dtype) -> Certified:
        assert self.loss is not None
        key = (outputs, dtype)
        if key not in self._certified:
            if self._at is None:
                self._at = _flat(self.loss)
            self._certified[key] = certificate(self.loss, outputs, dtype)
        return self._certified[key]

    def forget(self) -> None:
        """Drops all that was certified and made: the loss is another one."""
        self._certified.clear()
        self._kept.clear()
        self._at, self._made, self._counted = None, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Where φ was certified, and with what result: plain data and tensors."""
        return {
            "at": self._at,
            "made": self._made,
            "counted": self.loss is not None and self._counted == self._version(),
            "certified": [
                (outputs, str(dtype).removeprefix("torch."), *astuple(found))
                for (outputs, dtype), found in self._certified.items()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave; φ itself has been loaded before."""
        self.forget()
        if self.loss is None:
            return
        if state["at"] is not None:
            self._at = state["at"].to(next(_floating(self.loss)).device)
        if state["counted"]:
            self._counted = self._version()
        self._made = state["made"]
        for outputs, dtype, *found in state["certified"]:
            self._certified[outputs, getattr(torch, dtype)] = Certified(*found)


def make(loss: Pairs, rows: Tensor, found: Certified, graph: bool) -> Reading:
    """The table of a certificate, for a batch.

    Args:
        loss: what it was certified for, or the same at another φ near.
        rows: see `Tables.reading`.
        found: there is a table by it.
        graph: whether φ is to be learned through it.
    """
    grid, outputs = _grid_of(rows, found), rows.shape[1]
    labels = LABELS if found.own else LABELS[:1]
    values, slopes = _evaluate(loss, *_pairs(grid, labels, rows.dtype, rows.device), outputs, graph)
    shape = (len(labels), grid.nodes)
    table = Table(grid, values.view(shape), slopes.detach().view(shape))
    # Nearly all of a softmax over many classes is near 0; a GPU would have to wait to know.
    head = found.head > 0 and rows.device.type == "cpu" and outputs > 4 / HEAD
    return Reading(loss, table, slopes, found.own, head)


def certificate(loss: Representation, outputs: int, dtype: torch.dtype) -> Certified:
    """The fewest panels whose table agrees with a loss, as far as the precision can tell.

    Args:
        loss: of single pairs, it says; that is looked at too.
        outputs: C.
        dtype: the precision in which the table will be used.
    """
    with torch.random.fork_rng(devices=()):  # to copy a module draws nothing, but who knows
        exact = copy.deepcopy(loss).double().requires_grad_(False)
    if not _adds_up(exact, outputs):
        return Certified(0, own=False, head=0)
    tolerance = ROOM * TOLERANCE.get(dtype, FLOAT32)
    like = next(_floating(exact)).new_zeros((), dtype=torch.float64)
    found = Certified(0, own=False, head=0)
    for panels in PANELS:
        grids = [_grid(panels, dtype, many, HEADS[-1]) for many in (False, True)]
        nodes, checks = grids[0].places(like), grids[0].checks(like)
        both = torch.cat((nodes, checks)), (len(nodes), len(checks))
        serve = []
        for label in LABELS:
            values, slopes = (
                part.split(both[1])
                for part in _evaluate(
                    exact, both[0], torch.full_like(both[0], label), outputs, graph=False
                )
            )
            tables = [Table(grid, values[0][None], slopes[0][None]) for grid in grids]
            read = [table.read(table.look(checks)) for table in tables]
            serve.append(
                all(
                    _near(s, slopes[1], tolerance) and _near(v, values[1], tolerance)
                    for v, s in read
                )
            )
        if not serve[0]:
            continue
        if found.panels == 0 or serve[1]:
            found = Certified(panels, serve[1], _head(exact, outputs, dtype, panels, tolerance))
        if serve[1]:
            break
    return found


def _head(
    loss: Representation, outputs: int, dtype: torch.dtype, panels: int, tolerance: float
) -> int:
    """The lowest degree that serves for ℓ(·, 0) near 0; 0: none does."""
    like = next(_floating(loss)).new_zeros((), dtype=torch.float64)
    for degree in HEADS:
        grid = _grid(panels, dtype, many=False, head=degree)
        nodes, near = grid.places(like), HEAD * torch.linspace(0, 1, 17).to(like)
        pairs = torch.cat((nodes, near))
        both = _evaluate(loss, pairs, torch.zeros_like(pairs), outputs, graph=False)
        (values, _), (slopes, exact) = (part.split((len(nodes), len(near))) for part in both)
        head = Table(grid, values[None], slopes[None]).head()
        # Not a block among them is beyond the head, for which these would be too few.
        found = head.read(near.repeat_interleave(BLOCK)[None], None)[1].view(-1, BLOCK)[:, 0]
        if _near(found, exact, tolerance * float(slopes.abs().max() / exact.abs().max())):
            return degree
    return 0


def _near(found: Tensor, exact: Tensor, tolerance: float) -> bool:
    """Whether two functions differ by no more than a share of the largest value."""
    return bool((found - exact).abs().max() <= tolerance * exact.abs().max())


def _adds_up(loss: Representation, outputs: int) -> bool:
    """Whether the loss of an example is the sum of its `pair_losses`, on two examples."""
    like = next(_floating(loss)).new_zeros((), dtype=torch.float64)
    x = torch.arange(2 * outputs, dtype=torch.float64, device=like.device).view(2, outputs)
    prediction = (2 * torch.sin(1 + x)).softmax(-1)
    target = torch.zeros_like(prediction)
    target[0, 0] = target[1, -1] = 1
    with torch.no_grad():
        whole = loss(prediction, target)
        pairs = loss.pair_losses(prediction.flatten(), target.flatten(), outputs)
        parts = pairs.view(2, outputs)
    return bool(((whole - parts.sum(-1)).abs() <= 1e-9 * parts.abs().sum(-1)).all())


def _grid(panels: int, dtype: torch.dtype, many: bool, head: int) -> Grid:
    """Cells grow with the panels: a sharper function asks for both."""
    if dtype == torch.float64:
        return Grid(panels, 2, panels << 11, head)
    return Grid(panels, 1, panels << 11, head) if many else Grid(panels, 2, panels << 8, head)


def _grid_of(rows: Tensor, found: Certified) -> Grid:
    return _grid(found.panels, rows.dtype, rows.numel() >= MANY, found.head)


@functools.lru_cache(maxsize=8)
def _pairs(
    grid: Grid, labels: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The nodes with each label, [L · nodes] both."""
    nodes = grid.places(torch.zeros((), dtype=dtype, device=device))
    return nodes.repeat(len(labels)), torch.cat([torch.full_like(nodes, y) for y in labels])


def _evaluate(
    loss: Pairs, prediction: Tensor, target: Tensor, outputs: int, graph: bool
) -> tuple[Tensor, Tensor]:
    """ℓ and ∂ℓ/∂f of pairs, [N]; the second with a graph to φ, if asked."""
    prediction = prediction.detach().requires_grad_()
    with torch.enable_grad():
        losses = loss.pair_losses(prediction, target, outputs)
        ones = torch.ones_like(losses)
        (slopes,) = torch.autograd.grad(
            losses, prediction, ones, create_graph=graph, materialize_grads=True
        )
    return losses.detach().to(prediction), slopes


def _tensors(loss: nn.Module) -> list[Tensor]:
    return [*loss.parameters(), *loss.buffers()]


def _floating(loss: nn.Module) -> Any:
    yield from (t for t in _tensors(loss) if t.is_floating_point())
    yield torch.zeros(())


def _flat(loss: nn.Module) -> Tensor:
    """φ and the loss's buffers in one vector, float64."""
    return torch.cat([t.detach().double().flatten() for t in _tensors(loss)] or [torch.zeros(0)])
