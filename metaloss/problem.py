"""Problem: the base level of the bilevel problem, as functions of θ and φ.

A model f_θ, the torch.optim object that trains it, the learned loss M_φ it descends and the task
loss L_T it is judged by. Everything at the meta level sees the base level through this class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from metaloss import seeding
from metaloss.errors import InputError
from metaloss.forward_mode import KeepPrimals
from metaloss.update import KeepState, TakenStep, update_of

Batch = tuple[Tensor, Tensor]
Link = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
TaskLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class BaseStep:
    """One base step θ → θ', and what the meta-gradient needs of it."""

    batch: Batch
    learned_loss: Tensor  #: M_φ on the batch before the step; a scalar without graph
    slope: Tensor  #: ∂M_φ/∂f, shaped like the outputs; with a graph to φ if one was asked for
    taken: TakenStep
    primals: KeepPrimals  #: of the forward pass; empty unless a graph was asked for
    buffers: dict[str, Tensor]  #: before the forward pass; empty unless it may be replayed
    random_state: list[Tensor]  #: global generators before the forward pass (dropout masks)


class Problem:
    """The base level: `model`, `optimizer`, the learned loss and the task loss.

    Args:
        model: maps inputs [batch, ...] to outputs [batch, C]. Its mode (train or eval) is the
            caller's business.
        optimizer: a certified torch.optim object over parameters of the model. Parameters that
            need no gradient, or that the optimizer does not hold, stay as they are.
        loss: M_φ as a representation, `(prediction, target) -> loss [batch]`; its parameters are φ.
            None: the task loss itself is descended, and there is no φ.
        task_loss: L_T, `(outputs, labels) -> scalar`.
        link: how outputs and labels become prediction and target.

    Raises:
        UncertifiedOptimizerError: the optimizer's class has no certified step.
        InputError: the optimizer holds a parameter that is not the model's, or none to train; or
            the model is wrapped in DataParallel or DistributedDataParallel.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: nn.Module | None,
        task_loss: TaskLoss,
        link: Link,
    ) -> None:
        update_of(optimizer)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise InputError(
                f"the model is wrapped in {type(model).__name__}, whose gradients do not pass "
                "through torch.autograd.grad: give the plain module"
            )
        names = {parameter: name for name, parameter in model.named_parameters()}
        #: Whether a parameter has several names; most models are spared the search for them.
        self._tied = len(list(model.named_parameters(remove_duplicate=False))) > len(names)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        strangers = [tuple(p.shape) for p in held if p not in names]
        if strangers:
            raise InputError(
                f"the optimizer holds a parameter of shape {strangers[0]} that the model does not "
                "own, so its effect on the outputs cannot be followed"
            )
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.task_loss = task_loss
        self.link = link
        self.theta: list[nn.Parameter] = [p for p in held if p.requires_grad]
        if not self.theta:
            raise InputError("the optimizer holds no parameter that requires a gradient")
        self.theta_names = [names[p] for p in self.theta]
        followed = set(self.theta)
        #: Parameters that require a gradient and that this optimizer does not train.
        self.others = {
            name: p for p, name in names.items() if p.requires_grad and p not in followed
        }
        self.named_phi: dict[str, nn.Parameter] = (
            {}
            if loss is None
            else {name: p for name, p in loss.named_parameters() if p.requires_grad}
        )
        self.phi = list(self.named_phi.values())
        self.device = self.theta[0].device

    def learned_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """M_φ(y, f): the mean over the batch; the task loss where nothing is learned."""
        if self.loss is None:
            return self.task_loss(outputs, labels)
        return self.loss(*self.link(outputs, labels)).mean()

    def base_step(
        self, batch: Batch, *, loss_graph: bool = False, keep: KeepState = "nothing"
    ) -> BaseStep:
        """One step of the user's optimizer along ∇_θ M_φ; running statistics move here only.

        The backward pass is cut at the outputs f: ∂M/∂f first, the backbone's backward pass second.
        That gives bit for bit the gradient of one backward pass, and keeps the graph from ∂M/∂f to
        φ without one through the backbone.

        Args:
            loss_graph: keep the graph from ∂M_φ/∂f to φ, and what a forward-mode pass can reuse.
            keep: how much of the optimizer's state before the step to keep.
        """
        inputs, labels = batch
        random_state = seeding.global_state(self.device)
        buffers = self.copy_buffers() if loss_graph or keep != "nothing" else {}
        primals = KeepPrimals()
        with primals if loss_graph else nullcontext():
            outputs = self.model(inputs)
        free = outputs.detach().requires_grad_()
        loss = self.learned_loss(free, labels)
        (slope,) = torch.autograd.grad(loss, free, create_graph=loss_graph)
        grads = torch.autograd.grad(outputs, self.theta, slope.detach(), allow_unused=True)
        taken = self.take_step(grads, keep)
        return BaseStep(batch, loss.detach(), slope, taken, primals, buffers, random_state)

    def take_step(self, grads: Sequence[Tensor | None], keep: KeepState) -> TakenStep:
        """Lets the optimizer step along g; None where the model did not use a parameter."""
        for parameter, grad in zip(self.theta, grads, strict=True):
            parameter.grad = grad
        return TakenStep(self.optimizer, self.theta, keep)

    def task_gradient(self, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
        """L_T on a batch at the current θ, and v = ∇_θ L_T. Leaves running statistics alone."""
        inputs, labels = batch
        with self.replaced({}, self.copy_buffers()):
            loss = self.task_loss(self.model(inputs), labels)
            v = torch.autograd.grad(loss, self.theta, allow_unused=True)
        return loss.detach(), list(v)

    def copy_buffers(self) -> dict[str, Tensor]:
        """The model's buffers by name, for passes that must leave them alone."""
        return {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    def replaced(
        self, theta: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> AbstractContextManager[None]:
        """Within it, the model has other parameters and buffers, by name.

        A backward pass belongs inside too: activation checkpoints run the model again in it.
        """
        if not theta and not buffers:
            return nullcontext()
        tied = self._tied or bool(buffers)
        return _reparametrize_module(self.model, {**buffers, **theta}, tie_weights=tied)
