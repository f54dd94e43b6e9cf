"""The exact engine with its step compiled: for small models, whose steps are mostly calls."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from metaloss import checks, distributed, seeding, snapshot, vectors
from metaloss.batches import MicroBatches, StepBatch
from metaloss.engines.base import ENGINES, Draw, Engine, Hypergradient
from metaloss.engines.exact import Exact
from metaloss.errors import UnsupportedModelError
from metaloss.gradient_transform import refuse_hooks
from metaloss.meta_parameters import MetaParameters
from metaloss.problem import Problem
from metaloss.traced_step import Part, TracedStep, Values, trace

#: How many shapes of batches an engine compiles for; each takes seconds.
MOST_SHAPES = 8


@ENGINES.register("compiled")
class Compiled(Engine):
    """The gradient of `exact`, compiled: all that a step does before and after the optimizer's.

    For models so small that finding and calling kernels takes longer than their work. The first
    step on batches of a shape compiles for seconds. Base steps without a meta-step are compiled
    too. All are those of plain training up to rounding, where other engines' are bit for bit.

    It is for one base step by SGD on a batch of two tensors, φ learned alone, in one process and
    one precision, without a gradient transform; and for models and losses that draw no random
    numbers and leave their buffers alone: no BatchNorm or dropout in train mode. What no module
    owns, as class weights in a link, stays as it was in the first step. Anything else, or a machine
    without a C++ compiler, it warns of once, and does as `exact`.

    Args:
        compiler: "inductor"; or "none", which calls the recorded kernels one by one: without
            compiling and bit for bit as `exact`, for the time that finding them takes.
    """

    exact = True

    def __init__(self, compiler: Literal["inductor", "none"] = "inductor") -> None:
        checks.choice(compiler, "compiled.compiler", ("inductor", "none"))
        self.compiler = compiler
        self._eager = Exact()
        self._of: tuple[Any, Any] = (None, None)  # the problem and the meta-parameters
        self._steps: dict[Any, TracedStep | None] = {}  # by shapes; None: left to `exact`
        self._plain: dict[Any, Part] = {}  # by the training batch's shapes alone
        self._scale: tuple[float | None, Any] = (None, None)  # the latest c, and as a tensor
        self._warned = False

    def base_step(self, problem: Problem, batch: StepBatch) -> Tensor:
        plain = self._plain.get(_shapes(problem, batch))
        if plain is None or self._of[0] is not problem:
            return super().base_step(problem, batch)
        refuse_hooks(problem.theta)
        with torch.no_grad():
            learned_loss, *g = plain(*self._values(batch))
        for parameter, gradient in zip(problem.theta, g, strict=True):
            parameter.grad = vectors.laid_out(gradient, parameter)
        problem.optimizer.step()
        return learned_loss

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
    ) -> Hypergradient:
        objective = draw_objective()
        step = self._compiled_step(problem, meta, train, objective)
        if step is None:
            return self._eager.hypergradient(problem, meta, train, lambda: objective)
        refuse_hooks(problem.theta)
        theta = problem.theta
        with torch.no_grad():
            given = self._values(train[0])
            learned_loss, *found = step.opening(*given)
            taken = problem.take_step(found[: len(theta)], "nothing")
            scale = taken.scale()
            if scale is None:
                raise UnsupportedModelError(
                    "parameter groups have different learning rates or momenta, and had not when "
                    "engine 'compiled' compiled the step: take engine='exact'"
                )
            given[: len(theta)] = taken.theta_before
            again, kept = [given[place] for place in step.again], found[len(theta) :]
            if scale != self._scale[0]:
                self._scale = (scale, theta[0].new_tensor(scale))
            late = [*theta, *objective, self._scale[1]]
            task_loss, *phi = step.closing(*again, *kept, *late)
        return Hypergradient(learned_loss, task_loss, phi, None)

    def _compiled_step(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        objective: StepBatch,
    ) -> TracedStep | None:
        """The step for batches of these shapes; None where it is left to `exact`."""
        if self._of[0] is not problem or self._of[1] is not meta:
            self._of, self._steps, self._plain = (problem, meta), {}, {}
            self._scale = (None, None)  # of another precision or device
        shapes = (len(train), _shapes(problem, train[0]), _shapes(problem, objective))
        if shapes not in self._steps:
            try:
                if sum(step is not None for step in self._steps.values()) == MOST_SHAPES:
                    raise UnsupportedModelError(f"batches have more than {MOST_SHAPES} shapes")
                _require_supported(problem, meta, train, objective)
                self._values = Values(problem, meta)
                self._steps[shapes] = step = self._compile(problem, meta, train[0], objective)
                self._plain[shapes[1]] = step.plain
            except Exception as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                self._steps[shapes] = None
                self._warn(error)
        return self._steps[shapes]

    def _compile(
        self, problem: Problem, meta: MetaParameters, train: Any, objective: Any
    ) -> TracedStep:
        """The step, traced and compiled.

        Raises:
            NotImplementedError, RuntimeError: it cannot be done.
        """
        traced = trace(problem, meta, train, objective)
        if self.compiler == "none":
            return traced
        # Rather than torch.compile, whose first stage finds operations in Python code: they are
        # found already, and it costs a tenth of a millisecond at each call.
        import torch._inductor  # takes a second, and few runs need it

        compile: Any = torch._inductor.compile
        theta = [p.detach() for p in problem.theta]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of its own code
            given = [value.detach() for value in self._values(train)]
            plain = compile(traced.plain, given)
            opening = compile(traced.opening, given)
            kept = opening(*given)[1 + len(theta) :]
            again = [given[place] for place in traced.again]
            late = [*again, *kept, *theta, *objective, theta[0].new_tensor(1.0)]
            closing = compile(traced.closing, late)
        return TracedStep(plain, opening, closing, traced.again)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"engine 'compiled' does not compile this step, and takes engine 'exact': {reason}",
                stacklevel=4,
            )


def _shapes(problem: Problem, batch: StepBatch) -> Any:
    """What a compiled step depends on, beside the values of its tensors."""
    kinds = tuple(
        (part.shape, part.stride(), part.dtype) if torch.is_tensor(part) else None for part in batch
    )
    return type(batch), problem.autocast, problem.model.training, kinds


def _require_supported(
    problem: Problem, meta: MetaParameters, train: Sequence[StepBatch], objective: StepBatch
) -> None:
    """Makes a base step on trial, and looks at what it does.

    Raises:
        UnsupportedModelError: the step is not what `Compiled` is for; says why.
    """
    batch = train[0]
    several = len(train) > 1 or isinstance(batch, MicroBatches)
    tensors = all(torch.is_tensor(part) for part in (*batch, *objective))
    reasons = {
        "it is several steps or micro-batches": several or isinstance(objective, MicroBatches),
        "a batch is not two tensors": not several and not tensors,
        "there is no loss to learn": not meta.phi,
        "the learning rate is learned": meta.ratios is not None,
        "the gradient is transformed": problem.gradient_transform is not None,
        "the model runs under autocast": problem.autocast is not None,
        "several processes share it": distributed.several(),
    }
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedModelError(reason)
    before = _buffers(problem), seeding.global_state(problem.device)
    with snapshot.on_trial(problem):
        step = problem.base_step(batch, loss_graph=True)
        problem.task_gradient(objective)
        after = _buffers(problem), seeding.global_state(problem.device)
    names = ("a buffer of the model or the loss moves", "the model or the loss draws at random")
    for name, old, new in zip(names, before, after, strict=True):
        if not all(one.equal(other) for one, other in zip(old, new, strict=True)):
            raise UnsupportedModelError(name)
    if any(part is not None for part in step.gradient.passes[0].direct):
        raise UnsupportedModelError("the loss looks at θ itself")
    if step.taken.scale() is None:
        raise UnsupportedModelError("θ' does not depend on the gradient by one number, as in SGD")


def _buffers(problem: Problem) -> list[Tensor]:
    modules = [problem.model] if problem.loss is None else [problem.model, problem.loss]
    return [buffer.clone() for module in modules for buffer in module.buffers()]
