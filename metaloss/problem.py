"""Problem: the base level of the bilevel problem, as functions of θ and φ.

A model f_θ, the torch.optim object that trains it, the learned loss M_φ it descends and the task
loss L_T it is judged by. Everything at the meta level sees the base level through this class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from metaloss import seeding, vectors
from metaloss.errors import InputError
from metaloss.forward_mode import KeepPrimals
from metaloss.reentrant import refusing_reentrant_checkpoints
from metaloss.taken_step import KeepState, TakenStep
from metaloss.update import update_of

Batch = tuple[Tensor, Tensor]
Link = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
TaskLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class BaseStep:
    """One base step θ → θ', and what the meta-gradient needs of it."""

    batch: Batch
    learned_loss: Tensor  #: M_φ on the batch before the step; a scalar without graph
    slope: Tensor  #: ∂M_φ/∂f, shaped like the outputs; with a graph to φ if one was asked for
    direct: vectors.Vector  #: ∂M_φ/∂θ at fixed f, of a loss that looks at θ itself; else empty
    taken: TakenStep
    primals: KeepPrimals  #: of the forward pass; empty unless asked for
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
        autocast: the lower precision in which the model's passes are made; None: its own.

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
        autocast: torch.dtype | None = None,
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
        self.autocast = autocast
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
        self._stepped = False  # whether a base step has shown that the model can be followed
        self._looks_at_theta = loss is not None  # whether M_φ depends on θ beside f; until seen

    def forward(self, inputs: Tensor) -> Tensor:
        """f_θ(x): outputs [batch, C], in θ's own precision."""
        if self.autocast is None:
            outputs: Tensor = self.model(inputs)
            return outputs
        # Within an outer autocast, cached casts of the weights would outlive the base step.
        with torch.autocast(self.device.type, self.autocast, cache_enabled=False):
            lower: Tensor = self.model(inputs)
            return lower.to(self.theta[0].dtype)

    @contextmanager
    def taking_autocast(self) -> Iterator[None]:
        """Within it, an autocast that is active outside holds for the model's passes alone.

        Losses, cotangents and φ keep their own precision: differences between two steps are small
        numbers, and derivatives of derivatives smaller ones.
        """
        kind = self.device.type
        if not torch.is_autocast_enabled(kind):
            yield
            return
        own, self.autocast = self.autocast, torch.get_autocast_dtype(kind)
        try:
            with torch.autocast(kind, enabled=False):
                yield
        finally:
            self.autocast = own

    def learned_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """M_φ(y, f): the mean over the batch; the task loss where nothing is learned.

        Args:
            outputs: f_θ(x), [batch, C].
            labels: as the link takes them.

        Returns:
            A scalar.
        """
        if self.loss is None:
            return self.task_loss(outputs, labels)
        loss: Tensor = self.loss(*self.link(outputs, labels))
        return loss.mean()

    def base_step(
        self,
        batch: Batch,
        *,
        loss_graph: bool = False,
        keep_primals: bool = False,
        keep: KeepState = "nothing",
    ) -> BaseStep:
        """One step of the user's optimizer along ∇_θ M_φ; running statistics move here only.

        The backward pass is cut at the outputs f: ∂M/∂f first, the backbone's backward pass second.
        That gives bit for bit the gradient of one backward pass, and keeps the graph from ∂M/∂f to
        φ without one through the backbone. Whether M_φ looks at θ itself too (a learned regulariser
        that holds the model) is found out in the first step.

        Args:
            loss_graph: keep the graph from ∂M_φ/∂f to φ, and what it takes to replay the pass.
            keep_primals: keep the intermediate values that a forward-mode pass can reuse.
            keep: how much of the optimizer's state before the step to keep.

        Raises:
            UnsupportedModelError: the model has reentrant activation checkpoints, or gradients that
                are sparse.
        """
        inputs, labels = batch
        random_state = seeding.global_state(self.device)
        buffers = self.copy_buffers() if loss_graph or keep != "nothing" else {}
        primals = KeepPrimals()
        with nullcontext() if self._stepped else refusing_reentrant_checkpoints():
            with primals if keep_primals else nullcontext():
                outputs = self.forward(inputs)
            free = outputs.detach().requires_grad_()
            loss = self.learned_loss(free, labels)
            slope, *direct = torch.autograd.grad(
                loss,
                [free, *self.theta] if self._looks_at_theta else [free],
                create_graph=loss_graph,
                allow_unused=True,
            )
            slope = torch.zeros_like(free) if slope is None else slope
            grads: vectors.Vector = torch.autograd.grad(
                outputs, self.theta, slope.detach(), allow_unused=True
            )
        if self._looks_at_theta:
            self._looks_at_theta = any(part is not None for part in direct)
            grads = [None if g is None else g.detach() for g in vectors.add(grads, direct)]
        self._stepped = True
        taken = self.take_step(grads, keep)
        return BaseStep(batch, loss.detach(), slope, direct, taken, primals, buffers, random_state)

    def take_step(self, grads: Sequence[Tensor | None], keep: KeepState) -> TakenStep:
        """Lets the optimizer step along g.

        Args:
            grads: of the shapes of `theta`; None where the model did not use a parameter.
            keep: how much of the optimizer's state before the step to keep.

        Raises:
            UnsupportedModelError: a gradient is sparse.
        """
        for parameter, grad in zip(self.theta, grads, strict=True):
            parameter.grad = grad
        return TakenStep(self.optimizer, self.theta, keep)

    def task_gradient(self, batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
        """L_T on a batch at the current θ, and v = ∇_θ L_T. Leaves running statistics alone.

        Returns:
            A scalar, and tensors of the shapes of `theta`, None where L_T does not use a parameter;
            none has a graph.
        """
        inputs, labels = batch
        with self.replaced({}, self.copy_buffers()):
            loss = self.task_loss(self.forward(inputs), labels)
            v = torch.autograd.grad(loss, self.theta, allow_unused=True)
        return loss.detach(), list(v)

    def copy_buffers(self) -> dict[str, Tensor]:
        """The model's buffers by name, in their shapes, for passes that must leave them alone."""
        return {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    def replaced(
        self, theta: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> AbstractContextManager[None]:
        """Within it, the model has other parameters and buffers, by name, of the same shapes.

        A backward pass belongs inside too: activation checkpoints run the model again in it.
        """
        if not theta and not buffers:
            return nullcontext()
        return _reparametrize_module(
            self.model,
            {**buffers, **theta},
            tie_weights=self._tied or bool(buffers),
            stack_weights=True,  # else a module that the model holds twice would not be put back
        )
