"""Certificates: whether a meta-gradient is that of the step that was made.

A linear map and its transpose give one number two ways. With g = Jᵀ ∂M/∂f the base gradient of the
step, u = (∂U/∂g)ᵀ v, and t = J u what an engine found along it,

    ⟨g, u⟩ = ⟨∂M/∂f, t⟩

holds of every sound step up to rounding. All four are at hand. It does not hold where the pass that
gave t was not the pass that gave g: other random numbers, another state of the model, parameters
that were not exchanged, gradients that a hook has changed, an operator whose two derivatives are
of different functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metaloss.engines.base import Certificate
from metaloss.errors import UncertifiedError
from metaloss.machine import distributed, seeding
from metaloss.problem import batches, snapshot
from metaloss.problem.base_step import BaseGradient
from metaloss.problem.batches import StepBatch
from metaloss.problem.forward_mode import Watch
from metaloss.problem.problem import Problem
from metaloss.problem.stacked import Stacked
from metaloss.problem.vectors import Vector, dot

#: The largest residual of a sound step, by the precision of the model's passes. Each is some powers
#: of ten above what rounding was seen to make of it (docs/step_certificates.md says what): the
#: residual is relative to lengths of vectors, so it is a few units in the last place times what
#: the depth of a model, and the cancellation in a normalisation, make of them.
TOLERANCES = {
    "float64": 1e-6,  # models compute parts in float32 all the same, as transformers' RMSNorm
    "float32": 2e-4,
    "tf32": 2e-2,
    "float16": 2e-2,  # of frozen parts; it has as many digits
    "bfloat16": 5e-2,
}
#: The share of ‖g‖‖u‖ that a residual is relative to at least: a tolerance of it is a few units in
#: the last place of g. It matters where u is large at entries at which g is next to nothing, as at
#: the first step of optimizers that divide by |g|: products are small, and their rounding is not.
ROUNDING = 5e-3
#: A quotient's error is taken for at most so many times what two of them, one with half the step of
#: the other, differ by: of rounding it is .9 times, of curvature a third, of a kink about once.
ERRORS = 2.0


def precision(problem: Problem) -> str:
    """Of the model's passes, a key of `TOLERANCES`."""
    dtype = problem.precision
    backends = torch.backends
    if dtype is torch.float32 and problem.device.type == "cuda":
        of_cuda = (backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]
        return "tf32" if "tf32" in of_cuda else "float32"
    return str(dtype).removeprefix("torch.")


def tolerance(problem: Problem) -> float:
    """The residual up to which a step is sound."""
    return TOLERANCES[precision(problem)]


@dataclass(frozen=True)
class Product:
    """⟨v, w⟩ and the squares of both lengths, in float64; scalars, or of a stack [S]."""

    value: Tensor
    squared_v: Tensor
    squared_w: Tensor

    def __add__(self, other: Product) -> Product:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Product(*(a + b for a, b in pairs))


def adjoint_residual(
    problem: Problem, left: Product, right: Product, weight: float | Tensor
) -> Tensor:
    """|⟨g, u⟩ - ⟨∂M/∂f, t⟩|, relative to the lengths of ∂M/∂f and t; of a stack, each one's.

    Args:
        left: of g and u; of shards, of this process's parts.
        right: of ∂M/∂f and t, over all passes, and of what M_φ sees of θ itself and u.
        weight: of this process's rows, over which the right side is a mean.

    Returns:
        A scalar, or [S]. It waits for no device.
    """
    if problem.shards is not None:
        left = Product(*distributed.total([left.value, left.squared_v, left.squared_w]))
    value, squared_s, squared_t = right.value, right.squared_v, right.squared_w
    if distributed.several():
        value, squared_s, squared_t = distributed.mean_beside(
            [], [], [value, squared_s, squared_t], weight
        )[1]
    # Not relative to the products themselves, which may be next to nothing, as rounding is not.
    size = torch.maximum((squared_s * squared_t).sqrt(), left.value.abs())
    size = torch.maximum(size, ROUNDING * (left.squared_v * left.squared_w).sqrt())
    return torch.where(size > 0, (left.value - value).abs() / size, 0.0)


def repeat_residual(problem: Problem, made: BaseGradient, again: Vector) -> Tensor:
    """‖g' - g‖ / ‖g‖, g' of a step that is run again to be gone back through; of a stack, each's.

    In several processes g' is the mean of theirs, as g is.
    """
    if distributed.several():
        again = distributed.mean(again, problem.theta, made.weight)
    gap = [
        x if y is None else -y if x is None else x - y for x, y in zip(again, made.g, strict=True)
    ]
    length = product(problem, gap, gap).value.sqrt()
    size = product(problem, made.g, made.g).value.sqrt()
    return torch.where(size > 0, length / size, length)


def product(problem: Problem, v: Vector, w: Vector) -> Product:
    """Of two vectors over θ, or over outputs; None stands for zero. Waits for no device."""
    stacked = isinstance(problem.model, Stacked)
    sums: tuple[list[Tensor], ...] = [], [], []
    for x, y in zip(v, w, strict=True):
        if x is None or y is None:
            continue
        x, y = x.detach(), y.detach()
        for terms, (a, b) in zip(sums, ((x, y), (x, x), (y, y)), strict=True):
            if stacked:
                terms.append((a.double() * b.double()).reshape(len(a), -1).sum(1))
            else:
                a, b = (a, b) if a.dtype == b.dtype else (a.double(), b.double())
                terms.append(dot(a, b))
    if not sums[0]:
        zero = torch.zeros((), dtype=torch.float64, device=problem.device)
        return Product(zero, zero, zero)
    return Product(*(torch.stack(terms).sum(0) for terms in sums))


def require_certified(problem: Problem, batch: StepBatch, certificate: Certificate) -> None:
    """Waits for a certificate, and refuses what it does not hold for.

    Args:
        batch: of training, to find the likely cause with.

    Raises:
        UncertifiedError: it does not hold.
    """
    if not bool(certificate.holds.all()):
        raise UncertifiedError(refusal(problem, batch, certificate))


def refusal(problem: Problem, batch: StepBatch, certificate: Certificate) -> str:
    """What is to be said of a certificate that does not hold."""
    return (
        f"its certificate does not hold: {certificate.compared} differ by "
        f"{float(certificate.residual.max()):.1e}, where {certificate.tolerance:.0e} is rounding "
        f"in {precision(problem)}; likely, of the model: "
        f"{'; '.join(likely_causes(problem, batch) or [certificate.cause])}"
    )


def likely_causes(problem: Problem, batch: StepBatch) -> list[str]:
    """What can be found out of a model whose certificate does not hold; nothing of it remains."""
    inputs, _ = batches.parts(batch)[0]
    causes: list[str] = []
    with snapshot.on_trial(problem, batch):
        kept, random_state = problem.surroundings.keep(), seeding.global_state(problem.device)
        outputs = []
        watch = Watch()
        for _ in range(2):
            with (
                seeding.replaying(random_state, problem.device),
                problem.replaced({}, kept),
                watch,
            ):
                outputs.append(problem.forward(inputs).detach())
        same = outputs[0].shape == outputs[1].shape and torch.equal(
            outputs[0].nan_to_num(), outputs[1].nan_to_num()
        )
        if not same:
            causes.append(
                "two passes over a batch, from the same state and the same generators, give other "
                "outputs: it draws random numbers, or keeps something, where that cannot be found"
            )
    if watch.hooked:
        causes.append("it registers hooks on activations, which change gradients on their way")
    for name, module in problem.model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            causes.append(f"its module '{name}' has hooks on the backward pass")
            break
    if watch.differentiates:
        causes.append("it takes gradients within its forward pass")
    return causes
