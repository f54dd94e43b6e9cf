"""The exact engine with its steps compiled: for small models, whose steps are mostly calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import is_
from typing import Any, Literal

import torch
from torch import Tensor, fx

from metaloss import links
from metaloss.base_optimizers.base import update_of
from metaloss.engines.base import ENGINES, Certificate, CertifiedEngine, Draw, Hypergradient
from metaloss.engines.exact import Exact
from metaloss.engines.parts import traced_step
from metaloss.engines.parts.certificate import tolerance
from metaloss.engines.parts.traced_step import Given, trace
from metaloss.errors import UnsupportedModelError, first_line
from metaloss.machine import clock, distributed, seeding
from metaloss.problem import snapshot
from metaloss.problem.batches import MicroBatches, StepBatch
from metaloss.problem.followed import Followed
from metaloss.problem.forward_mode import Watch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.refusals import refuse_hooks
from metaloss.problem.tables import Certified

#: How many kinds of steps an engine compiles, each for seconds: of batches of other shapes.
MOST_KINDS = 8
#: What reads a tensor's numbers into Python, where a recording has them as they were once.
READING_OUT = {Tensor.numpy, Tensor.tolist, Tensor.__array__}


@dataclass
class CompiledStep:
    """A base step, or a meta-step of one, as a function of tensors.

    Attributes:
        given: finds these.
        run: the function.
        constants: other tensors that it reads, as no module has them by name, and their versions.
        rows: of the shape of the model's outputs, without memory; None: no table serves them.
        table: by which it reads the learned loss; None: by none.
    """

    given: Given
    run: Callable[..., Sequence[Any]]
    constants: Sequence[tuple[Tensor, int]]
    rows: Tensor | None
    table: Certified | None

    def holds(self) -> bool:
        """Whether these are as they were: a compiler may write small ones out as numbers."""
        return all(tensor._version == version for tensor, version in self.constants)


@ENGINES.register("compiled")
class Compiled(CertifiedEngine):
    """The steps of `exact`, compiled as wholes: the passes, SGD's step and the meta-gradient.

    For models so small that finding and calling kernels takes longer than their work. The first
    step on batches of a shape compiles for seconds. All steps are those of plain training up to
    rounding, where other engines' are bit for bit. The optimizer's settings are read, and its
    momenta kept, where torch.optim.SGD has them; its own `step` is not called, and `.grad` is None.

    It is for one base step by SGD on a batch of two tensors, φ learned alone, in one process and
    one precision, without a gradient transform; for models and losses that draw no random numbers,
    as dropout does in train mode, and losses that leave their buffers alone. The model may move its
    own in place, as BatchNorm its running statistics, which the base pass alone does. Anything
    else, or a machine without a C++ compiler, it warns of once, and does as `exact`. Where
    something was changed that the step reads as Python has it, as an attribute, it is compiled
    anew.

    Args:
        compiler: "inductor"; or "none", which calls the recorded kernels one by one.
    """

    exact = True
    bitwise = False  # a compiler fuses operations, and a fused multiply-add rounds once

    def __init__(self, compiler: Literal["inductor", "none"] = "inductor") -> None:
        self.compiler = compiler
        self._eager = Exact()
        self._followed: Followed | None = None  # the parameters whose steps these are
        self._steps: dict[Any, CompiledStep | None] = {}  # by kind; None: left to `exact`
        self._warned = False

    def base_step(self, problem: Problem, batch: StepBatch) -> Tensor:
        found = self._take(problem, None, [batch], [])
        return self._eager.base_step(problem, batch) if found is None else found[0]

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
        certify: bool = False,
    ) -> Hypergradient:
        objective = draw_objective()
        found = self._take(problem, meta, train, [objective])
        if found is None:
            return self._eager.hypergradient(problem, meta, train, lambda: objective, certify)
        learned_loss, task_loss, residual, *phi = found
        # The graph has it at every step: another graph without it would take as long to compile as
        # it would ever save.
        certificate = Certificate(residual, tolerance(problem)) if certify else None
        return Hypergradient(learned_loss, task_loss, phi, None, certificate)

    def _take(
        self,
        problem: Problem,
        meta: MetaParameters | None,
        train: Sequence[StepBatch],
        objective: Sequence[StepBatch],
    ) -> Sequence[Any] | None:
        """Makes the step, if it can be compiled.

        Returns:
            M_φ; and of a meta-step L_T, its certificate's residual and ∇_φ L_T.
        """
        problem.follow()
        if self._followed is not problem.followed:
            self._followed, self._steps = problem.followed, {}
        changes = problem.surroundings.changes()
        kind = (meta, len(train), _kind(problem, [train[0], *objective]), changes)
        if (made := self._steps.get(kind)) is not None:
            table = _table(problem, made.rows, meta is not None)
            if not made.holds():
                self._steps[kind, made.run] = self._steps.pop(kind)  # it counts: see MOST_KINDS
            elif table != made.table:  # φ has come to ask for another one, and may go back
                self._steps[kind, made.table] = self._steps.pop(kind)
                if (kind, table) in self._steps:
                    self._steps[kind] = self._steps.pop((kind, table))
        if kind not in self._steps:
            self._steps[kind] = self._made(problem, meta, train, objective)
        step = self._steps[kind]
        if step is None:
            return None
        update_of(problem.optimizer)
        refuse_hooks(problem.theta)
        try:
            parts = step.given(train[0], *objective)
        except UnsupportedModelError as error:
            self._warn(error)
            return None
        for parameter in problem.theta:
            parameter.grad = None
        with torch.no_grad():
            return step.run(*(tensor for part in parts for tensor in part))

    @clock.part("compiling")
    def _made(
        self,
        problem: Problem,
        meta: MetaParameters | None,
        train: Sequence[StepBatch],
        objective: Sequence[StepBatch],
    ) -> CompiledStep | None:
        """The step for batches of these shapes; None where it is left to `exact`."""
        try:
            if sum(step is not None for step in self._steps.values()) == MOST_KINDS:
                raise UnsupportedModelError(f"there are more than {MOST_KINDS} kinds of steps")
            _require_supported(problem, meta, train, objective)
            with snapshot.on_trial(problem, train[0]):
                rows = _rows(problem, train[0])
                table = _table(problem, rows, meta is not None)
                used = _try(problem, train[0], objective)
                given = Given(problem, {} if meta is None else meta.named_phi, used)
                traced = trace(problem, given, table, train[0], *objective)
                parts = given(train[0], *objective)
                tensors = [tensor for part in parts for tensor in part]
                run = traced if self.compiler == "none" else _compile(traced, tensors)
                return CompiledStep(given, run, _constants(traced), rows, table)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = first_line(error)
            warnings.warn(
                f"engine 'compiled' does not compile this step, and takes engine 'exact': {reason}",
                stacklevel=5,
            )


def _kind(problem: Problem, batches: Sequence[StepBatch]) -> Any:
    """What a compiled step depends on, beside the values of its tensors."""
    parameter = problem.theta[0]
    parts = [
        (part.shape, part.stride(), part.dtype) if torch.is_tensor(part) else type(part)
        for batch in batches
        for part in batch
    ]
    modes = problem.model.training, problem.autocast, parameter.dtype, parameter.device
    return tuple(parts), modes, traced_step.branches(problem.optimizer)


def _rows(problem: Problem, batch: StepBatch) -> Tensor | None:
    """Of the shape [rows, C] of the model's outputs, without memory; None: no table serves them."""
    inputs, labels = batch
    with torch.no_grad():
        outputs = problem.forward(inputs)
    classes = None
    if problem.tables.asked(outputs):
        classes = links.classes(problem.link, outputs, labels)
    return None if classes is None else outputs.new_zeros(()).expand(classes.rows(outputs).shape)


def _table(problem: Problem, rows: Tensor | None, graph: bool) -> Certified | None:
    """The table that the learned loss is read by at the present φ; None: by none."""
    found = None if rows is None else problem.tables.serving(rows, graph)
    # The polynomial near 0 saves calls of kernels, which are fused here, and is no fixed graph.
    return None if found is None else replace(found, head=0)


def _constants(graph: fx.GraphModule) -> list[tuple[Tensor, int]]:
    """The tensors that a graph reads and is not given, and the versions of these now."""
    held = [getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"]
    return [(tensor, tensor._version) for tensor in held if torch.is_tensor(tensor)]


def _compile(graph: Any, given: Sequence[Tensor]) -> Callable[..., Sequence[Any]]:
    # Rather than torch.compile, whose first stage finds operations in Python code: they are found
    # already, and it costs a tenth of a millisecond at each call.
    import torch._inductor  # takes a second, and few runs need it

    compile: Any = torch._inductor.compile
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own code
        # Small convolutions are slower with their channels last.
        compiled: Callable[..., Sequence[Any]] = compile(
            graph, [value.detach() for value in given], options={"layout_optimization": False}
        )
    return compiled


def _require_supported(
    problem: Problem,
    meta: MetaParameters | None,
    train: Sequence[StepBatch],
    objective: Sequence[StepBatch],
) -> None:
    """Raises UnsupportedModelError if the step is not what `Compiled` is for; says why."""
    batches = [*train, *objective]
    several = len(train) > 1 or any(isinstance(batch, MicroBatches) for batch in batches)
    reasons = {
        "it is several steps or micro-batches": several,
        "a batch is not two tensors": not several
        and not all(torch.is_tensor(part) for batch in batches for part in batch),
        "there is no loss to learn": problem.loss is None or (meta is not None and not meta.phi),
        "the learning rate is learned": meta is not None and meta.ratios is not None,
        "the gradient is transformed": problem.gradient_transform is not None,
        "the model runs under autocast": problem.autocast is not None,
        "several processes share it": distributed.several(),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModelError(reason)


def _try(problem: Problem, batch: StepBatch, objective: Sequence[StepBatch]) -> list[bool]:
    """Makes the step on trial, and looks at what it does -> whether a parameter has a gradient.

    Raises:
        UnsupportedModelError: see `_require_supported`.
    """
    held = list(problem.model.buffers())
    before = _buffers_of_loss(problem), seeding.global_state(problem.device)
    if problem.probe(batch):
        raise UnsupportedModelError("the loss looks at θ itself")
    if problem.surroundings.beyond_tensors:
        raise UnsupportedModelError("the model or the loss changes Python objects, or draws")
    problem.base_step(batch)
    problem.probe(batch)  # what a first step makes, as a momentum, only a second look can see
    used = [parameter.grad is not None for parameter in problem.theta]
    for judging in objective:
        problem.task_gradient(judging)
    if not all(map(is_, held, problem.model.buffers())):
        raise UnsupportedModelError("the model has another buffer in the place of one")
    after = _buffers_of_loss(problem), seeding.global_state(problem.device)
    names = ("a buffer of the loss moves", "the model or the loss draws at random")
    for name, old, new in zip(names, before, after, strict=True):
        if not all(one.equal(other) for one, other in zip(old, new, strict=True)):
            raise UnsupportedModelError(name)
    with Watch() as watch:
        for inputs, labels in (batch, *objective):
            problem.task_loss(problem.forward(inputs), labels)
    if watch.called & READING_OUT:
        raise UnsupportedModelError("the model or a loss reads numbers out of its tensors")
    return used


def _buffers_of_loss(problem: Problem) -> list[Tensor]:
    return [] if problem.loss is None else [buffer.clone() for buffer in problem.loss.buffers()]
