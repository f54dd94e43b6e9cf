"""Replicas: one model in several processes, which see different examples and stay equal.

What `metaloss.machine.distributed` averages of it. In a single process there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from metaloss.machine import distributed
from metaloss.problem.shards import is_sharded


def start_alike(modules: Sequence[nn.Module]) -> None:
    """Gives every process the modules of the first one, but for what each has a part of.

    Raises:
        InputError: they are of other shapes in another process.
    """
    if not distributed.several():
        return
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    shapes = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
    distributed.require_equal(shapes, "has a model or a loss of other shapes")
    distributed.spread([tensor for tensor in tensors if not is_sharded(tensor)])


def mean_step(
    model: nn.Module,
    theta: Sequence[Tensor],
    grads: list[Tensor | None],
    loss: Tensor,
    weight: float | Tensor,
    examples: int,
) -> tuple[list[Tensor | None], Tensor]:
    """g and M_φ of a training pass in all processes' shares; the running statistics move alike.

    Differentiable in g; as they are in a single process.

    Args:
        weight: of this process's rows in the loss, together.
        examples: of this process.
    """
    if not distributed.several():
        return grads, loss
    moved = [
        statistic
        for module in model.modules()
        if isinstance(module, _NormBase) and module.training
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
    grads, (loss,) = distributed.mean_beside(grads, theta[: len(grads)], [loss], weight)
    # Statistics are of all examples, whatever these weigh in the loss.
    _, means = distributed.mean_beside([], [], moved, examples)
    for statistic, value in zip(moved, means, strict=True):
        statistic.data.copy_(value)  # of no interest to a graph that has saved it
    return grads, loss
