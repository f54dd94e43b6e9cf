"""Whole steps as graphs of tensor operations: the passes, SGD's step, and the meta-gradient.

The mathematics is that of `metaloss.engines.exact`, run once on given batches and recorded below
autograd: what is left is a list of kernel calls, without the machinery that found them, which a
compiler can fuse. It holds for batches of the same shapes, at any θ, φ, buffers and settings of the
optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import is_
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import get_decompositions
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from metaloss import links
from metaloss.engines.parts.certificate import adjoint_residual, product
from metaloss.errors import UnsupportedModelError
from metaloss.problem.forward_mode import ForwardMode, KeepPrimals
from metaloss.problem.problem import Problem
from metaloss.problem.slopes import Slope, TabulatedSlope, WholeSlope
from metaloss.problem.tables import Certified, make
from metaloss.problem.vectors import Vector


class Given:
    """All tensors that a step is a function of.

    Args:
        problem: what they are read from, at each call.
        phi: the parameters of the loss that are learned, by name.
        used: whether a parameter of the model has a gradient.

    Raises:
        UnsupportedModelError: see `TracedSGD`.
    """

    def __init__(self, problem: Problem, phi: Mapping[str, Tensor], used: Sequence[bool]) -> None:
        assert problem.loss is not None
        self.sgd = TracedSGD(problem, used)
        self._problem = problem
        self._theta, self._phi = problem.theta, list(phi.values())
        self.phi_names = list(phi)
        self.of_model = _constants(problem.model, problem.theta)
        self.of_loss = _constants(problem.loss, self._phi)

    def __call__(self, *batches: Any) -> list[list[Tensor]]:
        """θ, what SGD computes with, φ, what else model and loss hold, and (x, y) of each batch.

        Raises:
            UnsupportedModelError: see `TracedSGD.tensors`; or a parameter was replaced.
        """
        held = (self._problem.model.get_parameter(name) for name in self._problem.theta_names)
        if not all(map(is_, held, self._theta)):
            raise UnsupportedModelError(
                "the model has another parameter in the place of a trained one"
            )
        constants = (  # asked for each time: a module may have put new ones in their place
            [getattr(owner, name) for owner, name in owners.values()]
            for owners in (self.of_model, self.of_loss)
        )
        return [[*self._theta], self.sgd.tensors(), self._phi, *constants, *map(list, batches)]

    def with_own_buffers(self, of_model: Sequence[Tensor]) -> list[Tensor]:
        """What the model holds beside θ, its buffers copied: a pass may move them."""
        return [
            tensor.clone() if name in owner._buffers else tensor
            for tensor, (owner, name) in zip(of_model, self.of_model.values(), strict=True)
        ]


def _constants(module: nn.Module, learned: Sequence[Tensor]) -> dict[str, tuple[nn.Module, str]]:
    """A module's parameters and buffers that are not learned: their owners, and the names there."""
    named = [*module.named_parameters(), *module.named_buffers()]
    held = {id(tensor) for tensor in learned}
    paths = [name.rpartition(".") for name, tensor in named if id(tensor) not in held]
    return {f"{path}{dot}{name}": (module.get_submodule(path), name) for path, dot, name in paths}


class OfPairs(nn.Module):
    """What a table asks of a learned loss, with other tensors in the place of the loss's own.

    Args:
        loss: the loss.
        named: the tensors, by the names of its own.
    """

    def __init__(self, loss: nn.Module, named: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.loss = loss
        self._named = {f"loss.{name}": tensor for name, tensor in named.items()}

    def pair_losses(self, prediction: Tensor, target: Tensor, outputs: int) -> Tensor:
        """See `Representation.pair_losses`."""
        losses: Tensor = functional_call(self, self._named, (prediction, target, outputs))
        return losses

    def forward(self, *given: Any) -> Tensor:
        losses: Tensor = self.loss.pair_losses(*given)  # type: ignore[operator]
        return losses


def trace(problem: Problem, given: Given, table: Certified | None, *batches: Any) -> fx.GraphModule:
    """Records a base step on the first batch, and with a second one the meta-step through it.

    Nothing moves while it is recorded.

    Args:
        problem: as it is when the step is made.
        given: finds the tensors.
        table: by which the learned loss is read; None: it is evaluated at each pair.
        batches: one, or two.

    Returns:
        A function of all tensors in `given(*batches)`, one after the other, which moves θ, the
        momenta, and the buffers that the base pass moves. It gives M_φ; and of a meta-step L_T, the
        residual of its certificate, and ∇_φ L_T, None for what is zero.

    Raises:
        NotImplementedError: an operator of the model has no forward derivative.
        UnsupportedModelError: the model or a loss reads numbers out of its tensors, and so may do
            something else for other values of them.
    """
    assert problem.loss is not None
    learned_loss = problem.loss

    def at(theta: Sequence[Tensor], constants: Sequence[Tensor]) -> AbstractContextManager[None]:
        named = dict(zip(problem.theta_names, theta, strict=True))
        return problem.replaced(named | dict(zip(given.of_model, constants, strict=True)), None)

    def slope_at(f: Tensor, y: Tensor, named: dict[str, Tensor], graph: bool) -> Slope:
        classes = None if table is None else links.classes(problem.link, f, y)
        if table is not None and classes is not None:
            reading = make(OfPairs(learned_loss, named), classes.rows(f), table, graph)
            return TabulatedSlope(reading, classes, f, 1.0, graph)
        prediction, target, *weights = problem.link(f.requires_grad_(), y)
        loss = links.mean(functional_call(learned_loss, named, (prediction, target)), *weights)
        return WholeSlope(loss, f, [], graph)

    def step(parts: list[list[Tensor]]) -> tuple[list[Tensor | None], list[Tensor]]:
        theta, sgd, phi, of_model, of_loss, (x, y), *objective = parts
        before, phi, primals = _leaves(theta), _leaves(phi), KeepPrimals()
        # Each pass moves buffers of its own, as BatchNorm's; those of the base pass stay.
        left = given.with_own_buffers(of_model)
        named = dict(zip([*given.phi_names, *given.of_loss], [*phi, *of_loss], strict=True))
        with torch.enable_grad(), at(before, left):
            with primals:
                f = problem.forward(x)
            slope = slope_at(f.detach(), y, named, graph=bool(objective))
            along = slope.hand_out(keep=True)
            g = torch.autograd.grad(f, before, along, allow_unused=True)
        moved = [*given.sgd.step(theta, g, sgd), *left]
        if not objective:
            return [slope.loss], moved
        ((valid_x, valid_y),) = objective
        after, aside = _leaves(moved[: len(theta)]), given.with_own_buffers(left)
        with torch.enable_grad(), at(after, aside):  # which checkpoints are run again in too
            task = problem.task_loss(problem.forward(valid_x), valid_y)
            v = torch.autograd.grad(task, after, allow_unused=True)
        with torch.enable_grad():
            with (
                forward_ad.dual_level(),
                ForwardMode(primals),
                at(_duals(theta, v), given.with_own_buffers(of_model)),
            ):
                t = forward_ad.unpack_dual(problem.forward(x)).tangent
            u = None if t is None else given.sgd.scale(sgd) * t
            phi_bar = slope.pullback(phi, u, ())
        residual = adjoint_residual(
            problem, product(problem, g, v), product(problem, [along], [t]), len(y)
        )
        return [slope.loss, task.detach(), residual, *phi_bar], moved

    parts = given(*batches)
    sizes = [len(part) for part in parts]
    flat = [tensor.detach() for part in parts for tensor in part]  # new names for all

    def flat_step(*flat: Tensor) -> Any:
        left = iter(flat)
        return step([[next(left) for _ in range(size)] for size in sizes])

    try:
        graph = make_fx(flat_step, decomposition_table=DECOMPOSITIONS)(*flat)
    except RuntimeError as error:
        if "tracing tensor" not in str(error):
            raise
        reason = "the model or a loss reads numbers out of its tensors"
        raise UnsupportedModelError(reason) from error
    graph = make_fx(functionalize(graph, remove="mutations"))(*flat)
    momenta = range(sizes[0] + 1, sizes[0] + sizes[1])
    of_model = range(sum(sizes[:3]), sum(sizes[:4]))
    return _in_place(graph, [*range(sizes[0]), *momenta, *of_model])


def _thin_product(a: Tensor, b: Tensor) -> Any:
    """a @ b where a dimension is at most 2, as sums that are fused with what is around them."""
    rows, inner, columns = *a.shape, b.shape[1]
    if inner <= 2:
        products = [a[:, k, None] * b[k] for k in range(inner)]
        return sum(products[1:], products[0])
    if rows <= 2:
        return torch.stack([(row[:, None] * b).sum(0) for row in a])
    if columns <= 2:
        return torch.stack([(a * column).sum(1) for column in b.mT], 1)
    return NotImplemented


def _thin_product_added(c: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Any:
    product = _thin_product(a, b)
    return NotImplemented if product is NotImplemented else beta * c + alpha * product


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    *settings: float,
) -> Any:
    """The operator that says that it moves running statistics: a recording must know."""
    if mean is None or var is None:
        return NotImplemented
    legit = torch.ops.aten._native_batch_norm_legit.default
    return legit(input, weight, bias, mean, var, training, *settings)


#: What is recorded in place of some operations.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.mm.default: _thin_product,
    torch.ops.aten.addmm.default: _thin_product_added,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    # The kernels of GPUs do not say it either: they are taken for the one above.
    torch.ops.aten.miopen_batch_norm.default: _batch_norm,
    **get_decompositions(
        [
            torch.ops.aten.cudnn_batch_norm,
            torch.ops.aten.cudnn_batch_norm_backward,
            torch.ops.aten.miopen_batch_norm_backward,
        ]
    ),
}


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _duals(theta: Sequence[Tensor], directions: Vector) -> list[Tensor]:
    return [
        before if direction is None else forward_ad.make_dual(before, direction)
        for before, direction in zip(theta, directions, strict=True)
    ]


def _in_place(graph: fx.GraphModule, places: Sequence[int]) -> fx.GraphModule:
    """A graph of (found, moved) that writes the latter into these of its inputs."""
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    (end,) = (node for node in nodes if node.op == "output")
    found, moved = end.args[0]
    with graph.graph.inserting_before(end):
        for place, value in zip(places, moved, strict=True):
            given = inputs[place]
            still = value.target is torch.ops.aten.clone.default and value.args[0] is given
            if value is not given and not still:
                graph.graph.call_function(torch.ops.aten.copy_.default, (given, value))
    end.args = (tuple(found),)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


class TracedSGD:
    """g̃ = ±g + λθ;  b' = μb + κg̃;  θ' = θ - lr·(b' or g̃ + μb' or g̃), for the θ of a problem.

    κ is 1 - dampening; in the first step it is 1, and b = 0. So θ' depends on g by a number c, and
    the cotangent of g is c times that of θ'.

    Args:
        problem: its optimizer's settings and momenta are read, and the latter written, there.
        used: whether a parameter has a gradient; SGD leaves the others alone.

    Raises:
        UnsupportedModelError: it is another optimizer.
    """

    def __init__(self, problem: Problem, used: Sequence[bool]) -> None:
        if type(problem.optimizer) is not torch.optim.SGD:
            raise UnsupportedModelError("the optimizer is not torch.optim.SGD")
        self._theta, self._used = problem.theta, used
        self._optimizer = problem.optimizer
        holders = {p: i for i, group in enumerate(self._groups) for p in group["params"]}
        self._group_of = [holders[p] for p in self._theta]
        self._settings: Any = None  # the latest, and what `tensors` made of them

    @property
    def _groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups  # other objects after load_state_dict

    def tensors(self) -> list[Tensor]:
        """The settings (lr, μ, λ, κ, c) of each group, [groups, 5], and the momenta.

        Raises:
            UnsupportedModelError: c is not the same for all parameters.
        """
        state = self._optimizer.state
        moved = [
            parameter
            for parameter, used, group in zip(self._theta, self._used, self._group_of, strict=True)
            if used and self._groups[group]["momentum"] != 0
        ]
        new = [p for p in moved if state[p].get("momentum_buffer") is None]
        settings = [_settings(group, first=bool(new)) for group in self._groups]
        dampened = any(group["dampening"] != 0 for group in self._groups)
        if len({row[-1] for row in settings}) > 1 or (dampened and 0 < len(new) < len(moved)):
            raise UnsupportedModelError(
                "θ' does not depend on the gradient by one number, the same for all parameters"
            )
        for parameter in new:
            state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        if settings != self._settings:
            # As Python's numbers, more precise than a parameter may be.
            tensor = torch.tensor(settings, dtype=torch.float64, device=self._theta[0].device)
            self._settings, self._tensor = settings, tensor
        return [self._tensor, *(state[parameter]["momentum_buffer"] for parameter in moved)]

    def step(self, theta: Sequence[Tensor], g: Vector, tensors: Sequence[Tensor]) -> list[Tensor]:
        """θ', and then the momenta after the step, aligned with what is given."""
        settings, *momenta = tensors
        left, moved, moved_momenta = iter(momenta), [], []
        for parameter, grad, place in zip(theta, g, self._group_of, strict=True):
            group = self._groups[place]
            lr, momentum, decay, taken, _ = settings[place].unbind()
            if grad is None:
                moved.append(parameter)
                continue
            grad = (-grad if group["maximize"] else grad) + decay * parameter
            if group["momentum"] != 0:
                moved_momenta.append(momentum * next(left) + taken * grad)
                along = moved_momenta[-1]
                grad = grad + momentum * along if group["nesterov"] else along
            moved.append(parameter - lr * grad)
        return [*moved, *moved_momenta]

    def scale(self, tensors: Sequence[Tensor]) -> Tensor:
        """c, shape []."""
        return tensors[0][0, -1]


def branches(optimizer: torch.optim.Optimizer) -> Hashable:
    """Of an SGD, what Python decides by in `TracedSGD.step`."""
    names = ("momentum", "nesterov", "maximize")
    return tuple(tuple(bool(group.get(name)) for name in names) for group in optimizer.param_groups)


def _settings(group: dict[str, Any], first: bool) -> list[float]:
    lr, momentum, decay = (float(group[key]) for key in ("lr", "momentum", "weight_decay"))
    taken = 1.0 if first or momentum == 0 else 1.0 - group["dampening"]
    ahead = 1.0 + momentum if group["nesterov"] else taken  # torch allows it no dampening
    return [lr, momentum, decay, taken, (lr if group["maximize"] else -lr) * ahead]
