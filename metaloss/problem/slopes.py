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

from metaloss.links import Classes
from metaloss.problem.tables import Reading
from metaloss.problem.vectors import Vector, add, gradient
from metaloss.representations.base import Representation

CHUNK = {"cpu": 1 << 15}  #: pairs that stay in a core's cache; a GPU likes more at once
CHUNK_ELSEWHERE = 1 << 22


class Slope(ABC):
    """M_φ of a pass and its slope in the outputs."""

    loss: Tensor  #: M_φ, a scalar without graph
    value: Tensor  #: ∂M_φ/∂f, of the outputs' shape, without graph

    @abstractmethod
    def pullback(self, phi: Sequence[Tensor], t: Tensor) -> list[Tensor | None]:
        """∇_φ ⟨∂M_φ/∂f, t⟩, t of the outputs' shape. May be called once."""


def chunks(rows: Tensor) -> Iterator[slice]:
    """Slices over the rows of [rows, C], of about as many pairs as are quick at once."""
    pairs = CHUNK.get(rows.device.type, CHUNK_ELSEWHERE)
    step = max(1, pairs // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


class TabulatedSlope(Slope):
    """Read from a table: softmax, lookups and the softmax's backward pass, in chunks of rows.

    Args:
        loss: of single pairs.
        reading: its table.
        classes: the labels.
        outputs: of the model, any shape.
        share: M_φ is divided by it.
    """

    def __init__(
        self,
        loss: Representation,
        reading: Reading,
        classes: Classes,
        outputs: Tensor,
        share: int,
        graph: bool,
    ) -> None:
        self._loss, self._reading, self._classes = loss, reading, classes
        self._outputs = outputs
        logits = classes.rows(outputs)
        own = classes.labels[:, None]
        self._weights = _row_weights(classes, logits, share)
        value = torch.empty_like(logits, memory_format=torch.contiguous_format)
        total: list[Tensor] = []
        at_own: list[Tensor] = []
        for part in chunks(logits):
            p = logits[part].softmax(-1)
            v, s = reading.table.read(p, own[part] if reading.own else None)
            if not reading.own:
                exact = self._at_own(p, own[part], graph)
                v.scatter_(1, own[part], exact[0])
                s.scatter_(1, own[part], exact[1].detach())
                at_own.append(exact[1])
            weights = self._weights[part]
            total.append(v.sum(-1) @ weights if weights.dim() else v.sum() * weights)
            s = s.mul_(weights[:, None] if weights.dim() else weights)
            torch.ops.aten._softmax_backward_data.out(s, p, -1, p.dtype, grad_input=value[part])
        self._slopes_at_own = at_own
        self.loss = torch.stack(total).sum() if len(total) > 1 else total[0]
        self.value = classes.like(outputs, value)

    def _at_own(self, p: Tensor, own: Tensor, graph: bool) -> tuple[Tensor, Tensor]:
        """ℓ(·, 1) and its slope at each row's own pair, by the loss itself; [rows, 1] each."""
        free = p.gather(1, own).requires_grad_()
        with torch.enable_grad():
            losses = self._loss.pair_losses(free[:, 0], torch.ones_like(free[:, 0]), p.shape[1])
            ones = torch.ones_like(losses)
            (slopes,) = torch.autograd.grad(
                losses, free, ones, create_graph=graph, materialize_grads=True
            )
        return losses.detach()[:, None].to(p), slopes

    def pullback(self, phi: Sequence[Tensor], t: Tensor) -> list[Tensor | None]:
        table, classes = self._reading.table, self._classes
        logits, t = classes.rows(self._outputs), classes.rows(t)
        own = classes.labels[:, None]
        into = table.scattered()
        ends, bars = [self._reading.slopes], []
        for number, part in enumerate(chunks(logits)):
            p = logits[part].softmax(-1)
            weights = self._weights[part]
            # Jᵀ of the softmax is its own transpose: what t is, seen from the probabilities.
            moved = torch.ops.aten._softmax_backward_data(t[part], p, -1, p.dtype)
            moved = moved.mul_(weights[:, None] if weights.dim() else weights)
            if not self._reading.own:
                ends.append(self._slopes_at_own[number])
                bars.append(moved.gather(1, own[part]))
                moved.scatter_(1, own[part], 0.0)
            table.scatter(into, p, moved, own[part] if self._reading.own else None)
        bars.insert(0, table.gathered(into).flatten().to(self._reading.slopes))
        return gradient(ends, phi, bars)


class ChunkedSlope(Slope):
    """Evaluated at every pair, some rows at a time: nothing that the loss keeps grows with them.

    Args:
        loss: examples do not see each other in it, as `Representation` has it.
        link: what it sees of the outputs, as a function of them.
        outputs: of the model.
        share: M_φ is divided by it.
    """

    def __init__(self, loss: Representation, linked: tuple[Tensor, ...], free: Tensor,
                 share: int) -> None:  # fmt: skip
        self._loss, self._free = loss, free
        self._prediction, self._target, *weights = linked
        rows = len(self._prediction)
        self._weights = (
            weights[0].detach() / (weights[0].sum() * share)
            if weights
            else torch.full((rows,), 1 / (rows * share)).to(self._prediction)
        )
        slope = torch.empty_like(self._prediction)
        losses = []
        for part in chunks(slope):
            loss_share, slope[part] = self._at(part, graph=False)
            losses.append(loss_share)
        self.loss = torch.stack(losses).sum()
        (self.value,) = torch.autograd.grad(self._prediction, free, slope, retain_graph=True)

    def _at(self, part: slice, graph: bool) -> tuple[Tensor, Tensor]:
        prediction = self._prediction[part].detach().requires_grad_()
        with torch.enable_grad():
            losses = self._loss(prediction, self._target[part].detach())
            share = (losses * self._weights[part]).sum()
            (slope,) = torch.autograd.grad(
                share, prediction, create_graph=graph, materialize_grads=True
            )
        return share.detach(), slope

    def pullback(self, phi: Sequence[Tensor], t: Tensor) -> list[Tensor | None]:
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
        graph: keep the graph from the slope to φ.
    """

    def __init__(self, loss: Tensor, free: Tensor, graph: bool) -> None:
        (self._slope,) = torch.autograd.grad(
            loss, free, torch.ones_like(loss), create_graph=graph, materialize_grads=True
        )
        self.loss, self.value = loss.detach(), self._slope.detach()

    def pullback(self, phi: Sequence[Tensor], t: Tensor) -> list[Tensor | None]:
        return gradient([self._slope], phi, [t])


def _row_weights(classes: Classes, logits: Tensor, share: int) -> Tensor:
    """What each row has in M_φ: [rows], or one number for all, []."""
    if classes.weights is None:
        return logits.new_full((), 1 / (len(logits) * share))
    weights = classes.weights.to(logits)
    return weights / (weights.sum() * share)
