"""Tables of a learned loss: its network on some hundred nodes in place of every pair of a batch.

With hard labels a loss of single pairs is two functions of one number, ℓ(·, 0) and ℓ(·, 1). Between
changes of φ their slopes are tabulated (see `metaloss.representations.parts.table`), for as many
nodes as a certificate asks for: the table against the loss itself in float64, at the points where
it is furthest off, must agree to about the rounding of the precision at hand. Where no number of
nodes does, as at the kinks of a ReLU, there is no table.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metaloss.representations.base import Representation
from metaloss.representations.parts.table import HEAD, Grid, Table

#: When to tabulate: where it pays, wherever it can, or never.
Tabulate = Literal["auto", "always", "never"]

LABELS = (0.0, 1.0)
PANELS = (4, 8, 16, 32, 64)
#: The largest error of a slope, over the largest slope: a rounding or two of float32. In float64
#: the polynomials of the cells end a little above its rounding.
TOLERANCE = {torch.float64: 2e-11}
FLOAT32 = 2e-7
#: φ has moved far, and the table is certified anew, at this share of its norm; looked at once in
#: so many tables, and the error must leave room until then.
FAR, LOOK_EVERY, ROOM = 0.05, 8, 0.25
PAYS = 4  #: pairs of a batch for each node, from which on a table is made by itself
MANY = 1 << 16  #: pairs from which on a larger table that is read faster pays


@dataclass(frozen=True)
class Certified:
    """What a certificate found for a loss: nothing (0 panels), or a table that serves."""

    panels: int
    own: bool  #: whether ℓ(·, 1) is in the table too; else it is evaluated at each row's own pair


@dataclass
class Reading:
    """A table at one φ, and the slopes at its nodes, [L · nodes], with a graph to φ if asked."""

    loss: Representation
    table: Table
    slopes: Tensor
    own: bool


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
        self._certified: dict[tuple[int, torch.dtype], Certified] = {}
        self._at: Tensor | None = None  # φ then, and the loss's buffers
        self._made = 0  # tables since
        self._kept: dict[Any, tuple[Any, Reading]] = {}

    def reading(self, rows: Tensor, graph: bool) -> Reading | None:
        """The table for a batch, at the present φ; None where the loss is evaluated at each pair.

        Args:
            rows: the model's outputs, [rows, C].
            graph: whether φ is to be learned through it.
        """
        pairs, outputs = rows.numel(), rows.shape[1]
        if self.loss is None or self.tabulate == "never" or outputs < 2:
            return None
        if self.tabulate == "auto" and pairs < PAYS * PANELS[0] * 16 * len(LABELS):
            return None
        version = self._version()
        key = (outputs, rows.dtype, rows.device, pairs >= MANY)
        kept = self._kept.get(key)
        if kept is not None and kept[0] == version and not graph:
            return kept[1]
        if kept is None or kept[0] != version:
            self._look_again()
        found = self._certificate(outputs, rows.dtype)
        if found.panels == 0:
            return None
        grid = _grid(found.panels, rows.dtype, pairs >= MANY)
        if self.tabulate == "auto" and pairs < PAYS * grid.nodes * len(LABELS):
            return None
        labels = LABELS if found.own else LABELS[:1]
        values, slopes = _evaluate(self.loss, grid.places(rows), labels, outputs, graph)
        shape = (len(labels), grid.nodes)
        table = Table(grid, values.view(shape), slopes.detach().view(shape))
        reading = Reading(self.loss, table, slopes, found.own)
        self._kept[key] = (version, Reading(self.loss, table, slopes.detach(), found.own))
        return reading

    def _version(self) -> Any:
        """Changes with φ, and with all else that the loss is made of."""
        assert self.loss is not None
        return tuple((t.data_ptr(), t._version) for t in _tensors(self.loss))

    def _look_again(self) -> None:
        """Drops the certificates where φ has moved far from where they were made."""
        assert self.loss is not None
        self._made += 1
        if self._at is not None and self._made % LOOK_EVERY == 0:
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
        self._at, self._made = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Where φ was certified, and with what result: plain data and tensors."""
        return {
            "at": self._at,
            "made": self._made,
            "certified": [
                (outputs, str(dtype).removeprefix("torch."), found.panels, found.own)
                for (outputs, dtype), found in self._certified.items()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self.forget()
        if state["at"] is not None and self.loss is not None:
            self._at = state["at"].to(next(iter(_tensors(self.loss))).device)
        self._made = state["made"]
        for outputs, dtype, panels, own in state["certified"]:
            self._certified[outputs, getattr(torch, dtype)] = Certified(panels, own)


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
        return Certified(0, own=False)
    serves_others = 0
    for panels in PANELS:
        others, own = _serves(exact, outputs, dtype, panels)
        if others and own:
            return Certified(panels, own=True)
        if others and not serves_others:
            serves_others = panels
    return Certified(serves_others, own=False)


def _serves(
    loss: Representation, outputs: int, dtype: torch.dtype, panels: int
) -> tuple[bool, bool]:
    """Whether so many panels do for ℓ(·, 0), and for ℓ(·, 1)."""
    like = next(_floating(loss)).new_zeros((), dtype=torch.float64)
    grid = _grid(panels, dtype, many=False)
    nodes, checks = grid.places(like), grid.checks(like)
    both = torch.cat((nodes, checks))
    serve = []
    for label in LABELS:
        values, slopes = (
            part.split((len(nodes), len(checks)))
            for part in _evaluate(loss, both, (label,), outputs, graph=False)
        )
        table = Table(grid, values[0][None], slopes[0][None])
        v, s = table.read(checks)
        tolerance = ROOM * TOLERANCE.get(dtype, FLOAT32)
        most_s, most_v = slopes[1].abs().max(), values[1].abs().max()
        near = checks[checks <= HEAD]
        head = table.head().read(near[:, None], None)[1].squeeze(1)
        errors = [(s - slopes[1]) / most_s, (v - values[1]) / most_v]
        errors += [(head - slopes[1][: len(near)]) / most_s] if label == 0 else []
        close = [bool(error.abs().max() <= tolerance) for error in errors]
        serve.append(all(close))
    return serve[0], serve[1]


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


def _grid(panels: int, dtype: torch.dtype, many: bool) -> Grid:
    if dtype == torch.float64:
        return Grid(panels, 2, 1 << 14, head=9)
    return Grid(panels, 1, 1 << 14, head=5) if many else Grid(panels, 2, 1 << 11, head=5)


def _evaluate(
    loss: Representation, nodes: Tensor, labels: Sequence[float], outputs: int, graph: bool
) -> tuple[Tensor, Tensor]:
    """ℓ and ∂ℓ/∂f at all nodes for all labels, [L · nodes]; the second with a graph to φ."""
    prediction = nodes.repeat(len(labels)).requires_grad_()
    target = torch.cat([torch.full_like(nodes, label) for label in labels])
    with torch.enable_grad():
        losses = loss.pair_losses(prediction, target, outputs)
        ones = torch.ones_like(losses)
        (slopes,) = torch.autograd.grad(
            losses, prediction, ones, create_graph=graph, materialize_grads=True
        )
    return losses.detach().to(nodes), slopes


def _tensors(loss: nn.Module) -> list[Tensor]:
    return [*loss.parameters(), *loss.buffers()]


def _floating(loss: nn.Module) -> Any:
    yield from (t for t in _tensors(loss) if t.is_floating_point())
    yield torch.zeros(())


def _flat(loss: nn.Module) -> Tensor:
    """φ and the loss's buffers in one vector, float64."""
    return torch.cat([t.detach().double().flatten() for t in _tensors(loss)] or [torch.zeros(0)])
