"""Slopes: M_φ and ∂M_φ/∂f at a pass's outputs, with the way from there to φ.

Three ways to one result. In one piece, by autograd, which is what the others are held against; in
chunks of rows, where that would take too much memory at once; and read from a table (see
`metaloss.problem.tables`), where the network of the loss is evaluated on its nodes alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from metaloss import links
from metaloss.links import Classes
from metaloss.problem.tables import Reading
from metaloss.problem.vectors import Vector, add, gradient
from metaloss.representations.base import Representation
from metaloss.representations.parts.table import Places

CHUNK = {"cpu": 1 << 18}  #: pairs that stay in a core's cache; a GPU likes more at once
CHUNK_ELSEWHERE = 1 << 22
KEPT_PLACES = 1 << 15  #: pairs whose probabilities and places are kept rather than found again
#: Outputs from which on a loss is not evaluated at every pair at once: its network makes some 300
#: numbers of each.
MOST_AT_ONCE = 1 << 18


class Slope(ABC):
    """M_φ of a pass and its slope in the outputs."""

    loss: Tensor  #: M_φ, a scalar without graph
    _value: Tensor | None
    direct: Vector = ()  #: ∂M_φ/∂θ at fixed f, of a loss that looks at θ itself; else empty

    def hand_out(self, keep: bool = False) -> Tensor:
        """∂M_φ/∂f, of the outputs' shape, without graph; once, as it may be a gigabyte.

        Args:
            keep: once more after this time.
        """
        value = self._value
        assert value is not None
        if not keep:
            self._value = None
        return value

    @abstractmethod
    def pullback(self, phi: Sequence[Tensor], t: Tensor | None, u: Vector) -> list[Tensor | None]:
        """∇_φ (⟨∂M_φ/∂f, t⟩ + ⟨∂M_φ/∂θ, u⟩). May be called once.

        Args:
            t: of the outputs' shape; None for zero.
            u: of the shapes of θ; only a loss that looks at θ itself asks for it.
        """


def chunks(rows: Tensor) -> Iterator[slice]:
    """Slices over the rows of [rows, C], of about as many pairs as are quick at once."""
    pairs = CHUNK.get(rows.device.type, CHUNK_ELSEWHERE)
    step = max(1, pairs // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


class TabulatedSlope(Slope):
    """Read from a table: softmax, lookups and the softmax's backward pass, in chunks of rows.

    Args:
        reading: the table of a loss.
        classes: the labels.
        outputs: of the model, any shape.
        share: M_φ is divided by it.
        graph: whether φ is to be learned through it.
    """

    def __init__(
        self,
        reading: Reading,
        classes: Classes,
        outputs: Tensor,
        share: float | Tensor,
        graph: bool,
    ) -> None:
        self._reading, self._classes = reading, classes
        self._outputs = outputs
        logits = classes.rows(outputs)
        #: What a row has in M_φ; or what each has, [rows].
        self._weight = 1 / (max(len(logits), 1) * share)
        self._weights: Tensor | None = None
        if classes.weights is not None:
            weights = classes.weights.to(logits)
            total = weights.sum()
            self._weights = weights / (links.divisor(total) * share)
        self._head = reading.table.head() if reading.head else None
        self._slopes_at_own: list[Tensor] = []
        self._kept: tuple[Tensor, Places] | None = None  # of a small batch, for the way back
        value = torch.empty_like(logits, memory_format=torch.contiguous_format)
        losses = []
        for part in chunks(logits):
            p = logits[part].softmax(-1)
            loss, s = self._read(p, classes.labels[part, None], part, graph)
            losses.append(loss)
            torch.ops.aten._softmax_backward_data.out(s, p, -1, p.dtype, grad_input=value[part])
        losses = losses or [value.sum()]  # of no row at all
        self.loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
        if self._weights is not None:
            self.loss = links.nan_where_none_counts(self.loss, total)
        self._value = classes.like(outputs, value)

    def _read(self, p: Tensor, own: Tensor, part: slice, graph: bool) -> tuple[Tensor, Tensor]:
        """M_φ's share of a chunk, and its slope in the probabilities, both by the row's weight."""
        table, weights = self._reading.table, self._weights
        if self._head is None and self._reading.own:
            at = table.look(p, own)
            v, s = (part.view_as(p) for part in table.read(at))
            if p.numel() <= KEPT_PLACES and graph:
                self._kept = p, at
            if weights is None:
                return v.sum() * self._weight, s.mul_(self._weight)
            return torch.dot(v.sum(-1), weights[part]), s.mul_(weights[part, None])
        at_own = p.gather(1, own)
        if self._head is None:
            v, s = (part.view_as(p) for part in table.read(table.look(p)))
            before = v.gather(1, own)
            total = v.sum() if weights is None else torch.dot(v.sum(-1), weights[part])
        else:
            total, s = self._head.read(p, None if weights is None else weights[part])
            before = table.read(table.look(at_own))[0].view_as(own)
        if self._reading.own:
            v_own, s_own = (part.view_as(own) for part in table.read(table.look(at_own, 1)))
        else:
            v_own, s_own = self._at_own(at_own, p.shape[1], graph)
            self._slopes_at_own.append(s_own)
        s.scatter_(1, own, s_own.detach())
        change = v_own.sub_(before).squeeze(1)
        if weights is None:
            return (total + change.sum()) * self._weight, s.mul_(self._weight)
        return total + torch.dot(change, weights[part]), s.mul_(weights[part, None])

    def _at_own(self, at_own: Tensor, outputs: int, graph: bool) -> tuple[Tensor, Tensor]:
        """ℓ(·, 1) and its slope at each row's own pair, by the loss itself; [rows, 1] each."""
        free = at_own.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._reading.loss.pair_losses(
                free[:, 0], torch.ones_like(free[:, 0]), outputs
            )
            ones = torch.ones_like(losses)
            (slopes,) = torch.autograd.grad(
                losses, free, ones, create_graph=graph, materialize_grads=True
            )
        return losses.detach()[:, None].to(at_own), slopes

    def pullback(self, phi: Sequence[Tensor], t: Tensor | None, u: Vector) -> list[Tensor | None]:
        if t is None:
            return [None] * len(phi)
        table, classes = self._reading.table, self._classes
        logits, t = classes.rows(self._outputs), classes.rows(t)
        into = table.scattered()
        at_own: list[Tensor] = []
        for part in chunks(logits):
            own = classes.labels[part, None]
            p, at = self._kept or (logits[part].softmax(-1), None)
            # Jᵀ of the softmax is its own transpose: what t is, seen from the probabilities.
            moved = torch.ops.aten._softmax_backward_data(t[part], p, -1, p.dtype)
            weights = self._weights
            moved.mul_(self._weight if weights is None else weights[part, None])
            if self._head is None and self._reading.own:
                table.scatter(into, at or table.look(p, own), moved.view(-1))
                continue
            if self._reading.own:
                table.scatter(into, table.look(p.gather(1, own), 1), moved.gather(1, own).view(-1))
            else:
                at_own.append(moved.gather(1, own))
            moved.scatter_(1, own, 0.0)
            if self._head is None:
                table.scatter(into, table.look(p), moved.view(-1))
            else:
                self._head.scatter(into, p, moved)
        ends = [self._reading.slopes, *self._slopes_at_own]
        at_nodes = table.gathered(into).view(-1).to(self._reading.slopes)
        return gradient(ends, phi, [at_nodes, *at_own])


class ChunkedSlope(Slope):
    """Evaluated at every pair, some rows at a time: nothing that the loss keeps grows with them.

    Args:
        loss: examples do not see each other in it, as `Representation` has it.
        link: what it sees of the outputs, as a function of them.
        outputs: of the model.
        share: M_φ is divided by it.
    """

    def __init__(self, loss: Representation, linked: tuple[Tensor, ...], free: Tensor,
                 share: float | Tensor) -> None:  # fmt: skip
        self._loss, self._free = loss, free
        self._prediction, self._target, *weights = linked
        rows = len(self._prediction)
        total = self._prediction.new_tensor(rows)
        each = total.new_ones(rows)
        if weights:
            each, total = weights[0].detach(), weights[0].detach().sum()
        self._weights = each / (links.divisor(total) * share)
        slope = torch.empty_like(self._prediction)
        losses = []
        for part in chunks(slope):
            loss_share, slope[part] = self._at(part, graph=False)
            losses.append(loss_share)
        self.loss = torch.stack(losses or [total.new_zeros(())]).sum()
        self.loss = links.nan_where_none_counts(self.loss, total)
        (self._value,) = torch.autograd.grad(self._prediction, free, slope, retain_graph=True)

    def _at(self, part: slice, graph: bool) -> tuple[Tensor, Tensor]:
        prediction = self._prediction[part].detach().requires_grad_()
        with torch.enable_grad():
            losses = self._loss(prediction, self._target[part].detach())
            share = (losses * self._weights[part]).sum()
            (slope,) = torch.autograd.grad(
                share, prediction, create_graph=graph, materialize_grads=True
            )
        return share.detach(), slope

    def pullback(self, phi: Sequence[Tensor], t: Tensor | None, u: Vector) -> list[Tensor | None]:
        if t is None:
            return [None] * len(phi)
        # The link's derivative along t is the transpose of its transpose, which is linear.
        cotangent = torch.zeros_like(self._prediction).requires_grad_()
        with torch.enable_grad():
            (back,) = torch.autograd.grad(
                self._prediction, self._free, cotangent, create_graph=True
            )
        (moved,) = torch.autograd.grad(back, cotangent, t)
        phi_bar: list[Tensor | None] = [None] * len(phi)
        for part in chunks(moved):
            phi_bar = add(phi_bar, gradient([self._at(part, graph=True)[1]], phi, [moved[part]]))
        return phi_bar


class WholeSlope(Slope):
    """In one piece, by autograd.

    Args:
        loss: M_φ, a scalar (of a stack [S]) with its graph.
        free: the outputs in it.
        theta: of a loss that looks at θ itself; else empty.
        graph: keep the graph from the slope to φ.
    """

    def __init__(self, loss: Tensor, free: Tensor, theta: Sequence[Tensor], graph: bool) -> None:
        slope, *self.direct = torch.autograd.grad(
            loss, [free, *theta], torch.ones_like(loss), create_graph=graph, allow_unused=True
        )
        self._slope = torch.zeros_like(free) if slope is None else slope
        self.loss, self._value = loss.detach(), self._slope.detach()

    def pullback(self, phi: Sequence[Tensor], t: Tensor | None, u: Vector) -> list[Tensor | None]:
        ends = [self._slope, *self.direct]
        return gradient(ends, phi, [t, *(u if self.direct else [])])
