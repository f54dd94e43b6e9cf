"""A whole meta-step as two graphs of tensor operations: before and after the optimizer's own step.

The mathematics is that of `metaloss.engines.one_step`, run once on given batches and recorded below
autograd: what is left is a list of kernel calls, without the machinery that found them, which a
compiler can fuse. It holds for batches of the same shapes, at any θ, φ and buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from metaloss import links
from metaloss.batches import Batch
from metaloss.forward_mode import ForwardMode, KeepPrimals
from metaloss.meta_parameters import MetaParameters
from metaloss.problem import Problem
from metaloss.vectors import Vector, gradient

Part = Callable[..., Any]  #: of tensors; gives a sequence of tensors, None for what is zero


@dataclass
class TracedStep:
    """The parts of a step as functions of tensors, for SGD, where u = c·v with a number c."""

    plain: Part  #: (*values) -> M_φ, *g
    opening: Part  #: (*values) -> M_φ, *g, *kept
    closing: Part  #: (*again, *kept, *θ', x_v, y_v, c) -> L_T, *∇_φ L_T
    again: list[int]  #: places of the `values` that `closing` takes too, at the θ of the opening


class Values:
    """All tensors that a base step on M_φ is a function of.

    The modules are asked for their constants each time: they may put new tensors in their place.
    """

    def __init__(self, problem: Problem, meta: MetaParameters) -> None:
        assert problem.loss is not None
        self._learned = [*problem.theta, *meta.phi]
        self.of_model = _constants(problem.model, problem.theta)
        self.of_loss = _constants(problem.loss, meta.phi)
        self._owners = [*self.of_model.values(), *self.of_loss.values()]

    def __call__(self, batch: Any) -> list[Tensor]:
        """θ, φ, what else the model and the loss hold, and a batch (x, y)."""
        return [*self._learned, *(getattr(owner, name) for owner, name in self._owners), *batch]


def _constants(module: nn.Module, learned: Sequence[Tensor]) -> dict[str, tuple[nn.Module, str]]:
    """A module's parameters and buffers that are not learned: their owners, and the names there."""
    named = [*module.named_parameters(), *module.named_buffers()]
    held = {id(tensor) for tensor in learned}
    paths = [name.rpartition(".") for name, tensor in named if id(tensor) not in held]
    return {f"{path}{dot}{name}": (module.get_submodule(path), name) for path, dot, name in paths}


def trace(problem: Problem, meta: MetaParameters, train: Batch, objective: Batch) -> TracedStep:
    """Records a meta-step in graphs (torch.fx); model, optimizer and loss stay as they are.

    Raises:
        NotImplementedError: an operator of the model has no forward derivative.
        RuntimeError: the model or a loss does something else for other values of its tensors.
    """
    assert problem.loss is not None
    learned_loss = problem.loss
    values = Values(problem, meta)
    sizes = len(problem.theta), len(meta.phi), len(values.of_model), len(values.of_loss)

    def outputs(theta: Sequence[Tensor], constants: Sequence[Tensor], inputs: Tensor) -> Tensor:
        named = dict(zip(problem.theta_names, theta, strict=True))
        with problem.replaced(named | dict(zip(values.of_model, constants, strict=True)), {}):
            return problem.forward(inputs)

    def step(*flat: Tensor) -> list[Tensor | None]:
        given = iter(flat)
        theta, phi, of_model, of_loss = ([next(given) for _ in range(size)] for size in sizes)
        x, y = next(given), next(given)
        after = _leaves([next(given) for _ in theta])
        valid_x, valid_y, scale = given
        before, phi, primals = _leaves(theta), _leaves(phi), KeepPrimals()
        named = dict(zip([*meta.named_phi, *values.of_loss], [*phi, *of_loss], strict=True))
        with torch.enable_grad():
            with primals:
                f = outputs(before, of_model, x)
            free = f.detach().requires_grad_()
            prediction, target, *weights = problem.link(free, y)
            pairs = functional_call(learned_loss, named, (prediction, target))
            loss = links.mean(pairs, *weights)
            (slope,) = torch.autograd.grad(loss, free, create_graph=True, materialize_grads=True)
            g = torch.autograd.grad(f, before, slope.detach(), allow_unused=True)
            task = problem.task_loss(outputs(after, of_model, valid_x), valid_y)
            v = torch.autograd.grad(task, after, allow_unused=True)
            with forward_ad.dual_level(), ForwardMode(primals):
                t = forward_ad.unpack_dual(outputs(_duals(theta, v), of_model, x)).tangent
            phi_bar = gradient([slope], phi, [None if t is None else scale * t])
        return [loss.detach(), *g, task.detach(), *phi_bar]

    early = [value.detach() for value in values(train)]
    late = [part.detach() for part in (*problem.theta, *objective)]  # new names for all
    late.append(problem.theta[0].new_tensor(1.0))
    graph = make_fx(step)(*early, *late)
    graph = make_fx(functionalize(graph, remove="mutations"))(*early, *late)
    return _cut(graph, len(early), 1 + len(problem.theta))


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _duals(theta: Sequence[Tensor], directions: Vector) -> list[Tensor]:
    return [
        before if direction is None else forward_ad.make_dual(before, direction)
        for before, direction in zip(theta, directions, strict=True)
    ]


def _cut(graph: fx.GraphModule, early: int, first: int) -> TracedStep:
    """A graph in two, at what its later inputs have a part in.

    Args:
        graph: without mutations.
        early: how many of its inputs are there before the optimizer's step.
        first: how many of its outputs are.
    """
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    (ends,) = next(node for node in nodes if node.op == "output").args
    late = set(inputs[early:])
    for node in nodes:
        if node.op != "output" and any(source in late for source in node.all_input_nodes):
            late.add(node)
    soon = set(nodes) - late
    # What the later part takes of the earlier one. Views it makes again, as θ moves under them.
    kept: dict[fx.Node, None] = {}
    again: dict[fx.Node, None] = {}
    sources = [source for node in late for source in node.all_input_nodes]
    sources += [end for end in ends[first:] if end is not None]
    while sources:
        node = sources.pop()
        if node.op == "placeholder" and node in soon:
            again[node] = None
        elif node in soon and (node.op == "get_attr" or _is_view(node)):
            late.add(node)
            sources += node.all_input_nodes
        elif node not in late:
            kept[node] = None

    def part(
        given: Sequence[fx.Node], among: set[fx.Node], found: Sequence[fx.Node | None]
    ) -> fx.GraphModule:
        made = fx.Graph()
        copies = {node: made.placeholder(f"input_{place}") for place, node in enumerate(given)}
        for node in nodes:
            if node in among and node.op in ("call_function", "get_attr"):
                copies[node] = made.node_copy(node, lambda source: copies[source])
        made.output(tuple(None if node is None else copies[node] for node in found))
        made.eliminate_dead_code()
        return fx.GraphModule(graph, made)

    before, after = inputs[:early], inputs[early:]
    return TracedStep(
        plain=part(before, soon, ends[:first]),
        opening=part(before, soon, [*ends[:first], *kept]),
        closing=part([*again, *kept, *after], late, ends[first:]),
        again=[before.index(node) for node in again],
    )


def _is_view(node: fx.Node) -> bool:
    """Whether a node's result shares the memory of an input."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        result.alias_info is not None and not result.alias_info.is_write
        for result in schema.returns
    )
