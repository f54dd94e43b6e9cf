"""Problem: the base level of the bilevel problem, as functions of θ and φ.

A model f_θ, the torch.optim object that trains it, the learned loss M_φ it descends and the task
loss L_T it is judged by. Everything at the meta level sees the base level through this class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from metaloss import links
from metaloss.base_optimizers.base import update_of
from metaloss.base_optimizers.parts.taken_step import take_step
from metaloss.errors import InputError, UnsupportedModelError, first_line
from metaloss.links import Link, TaskLoss
from metaloss.machine import clock, distributed, seeding
from metaloss.problem import batches, replicas, vectors
from metaloss.problem.base_step import (
    NOTHING,
    BaseGradient,
    BaseStep,
    Graph,
    Judge,
    Keep,
    Pass,
)
from metaloss.problem.batches import Batch, Outputs, Share, StepBatch
from metaloss.problem.double_backward import DoubleBackward
from metaloss.problem.followed import Followed, follow
from metaloss.problem.forward_mode import KeepPrimals
from metaloss.problem.gradient_transform import GradientTransform, Transformed
from metaloss.problem.graph import dtypes
from metaloss.problem.refusals import (
    refuse_aliases,
    refuse_failing_in_exchange,
    refuse_float16,
    refuse_frozen,
    refuse_hooks,
    refuse_left_gradient,
    refuse_looking_at_shards,
    refuse_moved,
    refuse_no_graph,
    refuse_no_number,
    refuse_other_devices,
    refuse_other_kinds,
    refuse_reading_past,
    refuse_touched,
    refuse_unshareable,
    refuse_without_grad,
    refuse_written_inputs,
    refusing_gradient_reads,
    refusing_kept_graphs,
    refusing_reentrant_checkpoints,
    refusing_single_backward,
    warn_of_other_outputs,
)
from metaloss.problem.shards import shards_of
from metaloss.problem.slopes import (
    MOST_AT_ONCE,
    ChunkedSlope,
    Slope,
    TabulatedSlope,
    WholeSlope,
)
from metaloss.problem.stacked import Stacked
from metaloss.problem.surroundings import Kept, Surroundings
from metaloss.problem.tables import Tables, Tabulate
from metaloss.representations.base import Representation

#: Of a model's parameters, the higher ones first.
PRECISIONS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
#: By how much more than rounding the outputs of two equal passes may differ: kernels on a GPU may
#: add in another order each time.
ROUNDINGS = 1e3
#: The same in low precision, relative to the outputs.
AT_MOST = 5e-2


class Problem:
    """The base level: `model`, `optimizer`, the learned loss and the task loss.

    Args:
        model: maps inputs to outputs [batch, C], or to what the link and the task loss take. Its
            mode (train or eval) is the caller's business.
        optimizer: a certified torch.optim object over parameters of the model. Parameters that
            need no gradient, or that the optimizer does not hold, stay as they are.
        loss: M_φ as a representation, `(prediction, target) -> loss [batch]`; its parameters are φ.
            None: the task loss itself is descended, and there is no φ.
        task_loss: L_T, `(outputs, labels) -> scalar`.
        link: how outputs and labels become prediction and target.
        autocast: the lower precision in which the model's passes are made; None: its own.
        outputs: what the model returns -> the tensor of outputs; None where it returns that.
        gradient_transform: what happens to the base gradient before the optimizer's step (see
            gradient_transform.py); None: nothing.
        tabulate: whether a loss of single pairs is read from a table, which is made of few of its
            values: "auto", where that pays; "always", wherever it is certified; "never".

    Raises:
        UncertifiedOptimizerError: the optimizer's class has no certified step.
        InputError, UnsupportedModelError: the model's parameters cannot be followed, or it cannot
            be shared by processes (see `metaloss.problem.refusals`); or the autocast is float16.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: nn.Module | None,
        task_loss: TaskLoss,
        link: Link,
        autocast: torch.dtype | None = None,
        outputs: Outputs | None = None,
        gradient_transform: GradientTransform | None = None,
        tabulate: Tabulate = "auto",
    ) -> None:
        refuse_other_kinds(
            model, optimizer, loss, task_loss,
            link=link, outputs=outputs, gradient_transform=gradient_transform,
        )  # fmt: skip
        update_of(optimizer)
        refuse_float16(autocast)
        refuse_unshareable(model)
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.task_loss = task_loss
        self.link = link
        self.autocast = autocast
        self.outputs = outputs
        self.gradient_transform = gradient_transform
        self.named_phi: dict[str, nn.Parameter] = (
            {}
            if loss is None
            else {name: p for name, p in loss.named_parameters() if p.requires_grad}
        )
        self.phi = list(self.named_phi.values())
        self._look(follow(model, optimizer))
        refuse_other_devices(loss, self.theta[0])
        refuse_float16(self.theta[0].dtype)
        self.device = self.theta[0].device
        self.tables = Tables(loss, tabulate)
        self.compiled: Callable[..., Any] | None = None  # see `compile`
        self._told: set[Callable[[], None]] = set()  # what was said of the model
        self.by_task_loss = False  # whether the task loss is descended in place of M_φ
        self.members_by_task_loss: Tensor | None = None  # of a stack, bool [S], which of its own do
        replicas.start_alike([model] if loss is None else [model, loss])

    def forward(self, inputs: Any, alone: bool = False) -> Tensor:
        """f_θ(x): outputs [batch, C], in θ's own precision.

        Args:
            alone: no other pass has to agree with this one, and nothing looks into it: it may be
                the compiled one, where there is one.
        """
        call = self._call_compiled if alone and self.compiled is not None else batches.call
        if self.autocast is None:
            return batches.outputs_of(call(self.model, inputs), self.outputs)
        # Within an outer autocast, cached casts of the weights would outlive the base step.
        with torch.autocast(self.device.type, self.autocast, cache_enabled=False):
            outputs = batches.outputs_of(call(self.model, inputs), self.outputs)
            return outputs.to(self.theta[0].dtype)

    def compile(self) -> None:
        """From here on `torch.compile` makes the passes that stand alone.

        These are base steps that nothing is learned through, and the task loss's. Each shape has a
        graph of its own, so that a resumed training is compiled as it was.
        """
        self.compiled = torch.compile(self.model, dynamic=False)

    def _call_compiled(self, model: nn.Module, inputs: Any) -> Any:
        assert self.compiled is not None
        try:
            return batches.call(self.compiled, inputs)
        except Exception as error:
            # By their module: to import that takes longer than to import torch.
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise UnsupportedModelError(
                f"the model cannot be compiled ({first_line(error)}): leave it as it is"
            ) from error

    def learned_loss(self, outputs: Tensor, labels: Any) -> Tensor:
        """M_φ(y, f): the mean over the batch's rows; the task loss where nothing is learned.

        Args:
            outputs: f_θ(x), [batch, C].
            labels: as the link takes them.

        Returns:
            A scalar; of a stack of problems one for each, [S].
        """
        if self.loss is None or self.by_task_loss:
            return self.task_loss(outputs, labels)
        prediction, target, *weights = self.link(outputs, labels)
        loss = links.mean(self.loss(prediction, target), *weights)
        if self.members_by_task_loss is not None:  # here, where every engine comes by
            loss = torch.where(self.members_by_task_loss, self.task_loss(outputs, labels), loss)
        return loss

    def weight(self, batch: StepBatch) -> float | Tensor:
        """What the rows of a step's batch weigh together, as the link has it, else its examples.

        A number, or a scalar where that waits for no device.
        """
        return sum(self._weights(batch))

    def shared_out(self, batch: StepBatch) -> list[tuple[Batch, Share]]:
        """The batches that make a step together, and the share of each."""
        parts = batches.parts(batch)
        if len(parts) == 1:
            return [(parts[0], None)]
        return list(zip(parts, batches.shares(self._weights(batch)), strict=True))

    def weight_beside_others(self, batch: StepBatch) -> float | Tensor:
        """`weight`, for a mean over processes; where there is one nobody looks at labels.

        A number or a scalar.
        """
        return self.weight(batch) if distributed.several() else 1.0

    def _weights(self, batch: StepBatch) -> list[float | Tensor]:
        weights = []
        for part in batches.parts(batch):
            known = links.weight(self.link, part[1])
            weights.append(batches.examples(part) if known is None else known)
        return weights

    def whole(self, batch: StepBatch, loss: TaskLoss | None = None) -> Tensor:
        """A loss of all of a step's batch, with the graph of all its passes; a scalar.

        Args:
            loss: None: M_φ.
        """
        loss, parts = loss or self.learned_loss, self.shared_out(batch)
        losses = [_share(loss(self.forward(x), y), share) for (x, y), share in parts]
        return batches.together(losses, [share for _, share in parts])

    def graph(
        self,
        theta: Sequence[Tensor],
        batch: Batch,
        share: Share,
        through: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """M_φ/share on a batch, and its gradient with its graph to θ and φ.

        It belongs where the model runs in `theta` (see `replaced`).

        Args:
            theta: leaves, which the model runs in.
            through: what the outputs go through on their way to M_φ.

        Returns:
            A scalar without graph, and tensors of the shapes of `theta`.

        Raises:
            UnsupportedModelError: an operator has no second derivative.
        """
        inputs, labels = batch
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            outputs = self.forward(inputs)
            if through is not None:
                outputs = through(outputs)
            loss = _share(self.learned_loss(outputs, labels), share)
            ones = torch.ones_like(loss)
            with refusing_single_backward():
                g = torch.autograd.grad(loss, theta, ones, create_graph=True, allow_unused=True)
        return loss.detach(), list(g)

    def follow(self) -> None:
        """Asks which parameters the optimizer trains now, and sees to it if they are others.

        A model that is built otherwise than before, by hooks or another mode too, is a new one.

        Raises:
            InputError, UnsupportedModelError: see `Problem`.
        """
        if self.followed.holds(self.model, self.optimizer):
            return
        for parameter in self.theta:
            parameter.grad = None  # else the optimizer would step along it for ever
        self._look(follow(self.model, self.optimizer))

    def _look(self, followed: Followed) -> None:
        self.followed = followed
        self.theta, self.theta_names = self.followed.theta, self.followed.names
        self.shards = shards_of(self.model, self.theta, self.theta_names)
        self.surroundings = Surroundings(
            self.model,
            self.loss,
            dict(zip(self.theta_names, self.theta, strict=True)),
            [self.link, self.outputs, self.gradient_transform],
        )
        self._looks_at_theta = False
        self.hooked = False  # whether a pass was seen to register a hook on a tensor
        self._known: set[Any] = set()  # what passes did whose steps had a certificate
        kinds = {p.dtype for p in self.model.parameters() if p.dtype in PRECISIONS}
        self._precision = max(kinds, key=PRECISIONS.index, default=torch.float32)

    @property
    def precision(self) -> torch.dtype:
        """The lowest one that a pass of the model computes in, as its parameters and a pass say."""
        return self.autocast or self._precision

    def probe(self, batch: StepBatch) -> bool:
        """Whether M_φ looks at θ itself, beside f, as a learned regulariser that holds the model.

        Comes before each base step. As long as the model is new, it asks all that only a batch can
        tell, by passes of which nothing remains.

        Raises:
            UnsupportedModelError: the model has reentrant activation checkpoints, does more with
                its trained parameters than to read them, or reads them past its modules.
            InputError: the learned loss is not made for such pairs.
        """
        refuse_without_grad()
        self.follow()
        if self.shards is not None:
            self.shards.gathered()
        if self.surroundings.unwatched:
            self._watch(batch)
        return self._looks_at_theta

    def _watch(self, batch: StepBatch) -> None:
        """Asks all that only a batch can tell, see `probe`."""
        inputs, labels = batches.parts(batch)[0]
        before, random_state = self.surroundings.watch(), seeding.global_state(self.device)
        leaves = [parameter.detach().requires_grad_() for parameter in self.theta]
        if self.shards is not None:  # whose modules have other parameters in their passes
            leaves = []
        named = dict(zip(self.theta_names, leaves, strict=bool(leaves)))
        both = [*leaves, *self.theta]
        past: vectors.Vector = []
        outputs: Tensor | None = None
        given = [
            (x, x.detach().clone())
            for x in tree_leaves(inputs)
            if torch.is_tensor(x) and x.layout is torch.strided and not x.is_nested
        ]
        try:
            # As after a step: what follows θ, as a teacher that is its copy, moves then.
            with (
                _nudged(leaves),
                refusing_kept_graphs(),
                refusing_reentrant_checkpoints(),
                self.replaced(named, None),
            ):
                with refusing_gradient_reads(both) as watch:
                    outputs = self.forward(inputs)
                self.hooked |= watch.hooked
                refuse_written_inputs(given)
                if self.shards is None:
                    refuse_touched(self.theta_names, self.theta, leaves)
                    refuse_moved(named, dict(self.model.named_parameters(remove_duplicate=False)))
                refuse_no_graph(outputs)
                # As by a cast within the model; what parts compute in float32 is known as float64.
                low = dtypes(outputs) & {torch.float16, torch.bfloat16}
                self._precision = max({self._precision, *low}, key=PRECISIONS.index)
                slope, direct = self._look_at_pairs(outputs.detach(), labels, both)
                if self.shards is None:
                    # A reentrant checkpoint shows in its backward pass.
                    past = torch.autograd.grad(outputs, both, slope, allow_unused=True)
                    for name, leaf in named.items():  # a reversible block may take its own
                        refuse_left_gradient(name, leaf, "backward")
                else:
                    self.shards.backward(outputs, slope, self.weight(batch))
        except Exception as error:
            if outputs is None and self.shards is None and not isinstance(error, InputError):
                self.forward(inputs)  # fails as in a plain loop, if it does there
                refuse_failing_in_exchange(error)
            raise
        finally:
            seeding.set_global_state(random_state, self.device)
            after = self.surroundings.learn(before, leaves)
        if self.shards is None:
            refuse_aliases(self.theta_names, past[len(leaves) :])
        self._looks_at_theta = any(part is not None for part in direct)
        if self._looks_at_theta:
            refuse_looking_at_shards(self.shards)
        del before, outputs, past, direct, given  # they may be as large as θ
        self._repeat(inputs, leaves, after)

    def _repeat(self, inputs: Any, leaves: Sequence[Tensor], surroundings: Kept) -> None:
        """Asks whether passes from one state give the same outputs, and says so if they do not.

        One is made in tensors that the model knows from another pass, with other numbers then, one
        in its own parameters, and two in copies of them; the last one while the model's own
        parameters have other numbers.

        Args:
            leaves: these tensors, in the memory of θ; of shards none.
            surroundings: those in which all are made.

        Raises:
            UnsupportedModelError: the numbers of θ are read past what can be exchanged.
        """
        random_state = seeding.global_state(self.device)
        copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]

        def outputs_in(theta: Sequence[Tensor]) -> Tensor:
            named = dict(zip(self.theta_names, theta, strict=bool(theta)))
            seeding.set_global_state(random_state, self.device)
            torch.clear_autocast_cache()  # of casts that an autocast around all of it keeps
            with self.replaced(named, surroundings):
                return self.forward(inputs).detach().nan_to_num()

        try:
            known = outputs_in(leaves)
            outputs = outputs_in(copies)
            same = self._equal(known, outputs)
            if same and leaves:
                same = self._equal(outputs_in([]), outputs)
            if same and leaves:
                with _nudged(leaves):
                    alone = self._equal(outputs, outputs_in(copies))
                if not alone:
                    same = self._equal(outputs, outputs_in(copies))
                    if same:
                        refuse_reading_past()
        finally:
            seeding.set_global_state(random_state, self.device)
        if not same:
            self.tell_once(warn_of_other_outputs)

    def tell_once(self, warn: Callable[[], None]) -> None:
        """Says something of the model, unless it was said before."""
        if warn not in self._told:
            self._told.add(warn)
            warn()

    def _equal(self, one: Tensor, other: Tensor) -> bool:
        """Whether two outputs are the same up to the order in which kernels add."""
        bound = min(ROUNDINGS * torch.finfo(self.precision).eps, AT_MOST)
        return one.shape == other.shape and bool((one - other).norm() <= bound * one.norm())

    def look_again(self, batch: StepBatch) -> bool:
        """Whether the model's passes change more by now than was known; afterwards it is known.

        Raises as `probe`.
        """
        surroundings = self.surroundings
        known = surroundings.found_moving()
        surroundings.watch_again()
        while surroundings.unwatched:
            self.probe(batch)
        return bool(surroundings.found_moving() - known)

    def _look_at_pairs(
        self, outputs: Tensor, labels: Any, theta: Sequence[Tensor]
    ) -> tuple[Tensor, vectors.Vector]:
        """A slope in the outputs, and what M_φ has in θ beside; asks if it is made for them.

        Where no link was said, it decides here what labels are.
        """
        if self.link is links.by_labels and self.loss is not None:
            of_classes = isinstance(self.loss, Representation) and self.loss.of_classes
            self.link = links.decided(self.task_loss, of_classes, outputs, labels)
        links.refuse_other_dimension(self.task_loss, self.link, outputs)
        if isinstance(self.loss, Representation) and outputs.numel() > MOST_AT_ONCE:
            # What is too much at once is not looked at twice. A representation sees pairs alone.
            classes = links.classes(self.link, outputs, labels)
            if classes is None:
                self._require_pairs(*self.link(outputs, labels))
            else:
                first = classes.rows(outputs)[:1]
                self._require_pairs(*links.probabilities(first, classes.labels[:1]))
            return torch.zeros_like(outputs), []
        free = outputs.requires_grad_()
        if isinstance(self.loss, Representation):
            self._require_pairs(*links.checked(self.link(free, labels)))
        loss = self.learned_loss(free, labels)
        slope, *direct = torch.autograd.grad(
            loss, [free, *theta], torch.ones_like(loss), allow_unused=True
        )
        return torch.zeros_like(free) if slope is None else slope, direct

    def _require_pairs(self, prediction: Tensor, target: Tensor, *weights: Tensor) -> None:
        """Asks the representation whether it is made for the rows that count."""
        assert isinstance(self.loss, Representation)
        counted = weights[0] != 0 if weights else slice(None)
        self.loss.require_pairs(prediction[counted], target[counted])

    def plain_step(self, batch: StepBatch, judge: Judge | None = None) -> Tensor:
        """One step of the user's optimizer along ∇_θ M_φ, which nobody will go back through.

        Gives M_φ on the batch before it, a scalar without graph. Takes and raises as `base_step`.
        """
        update_of(self.optimizer)
        made, g = self.gradient(batch, NOTHING, judge)
        self.set_gradients(g)
        self.optimizer.step()
        return made.learned_loss

    @clock.part("base")
    def base_step(
        self, batch: StepBatch, keep: Keep = NOTHING, judge: Judge | None = None
    ) -> BaseStep:
        """The same step, with what it takes to go back through it.

        Args:
            batch: micro-batches make the step together, along the mean of their gradients.
            keep: what the way back will need.
            judge: is given the task loss on the batch, which is then one alone: a second backward
                pass in place of a pass of its own.

        Raises:
            UnsupportedModelError: see `probe`; or the model has gradients that are sparse.
            InputError: see `probe`; or a parameter has hooks.
        """
        made, g = self.gradient(batch, keep, judge)
        # Whether running the one pass again gives g itself.
        again = len(made.passes) == 1 and made.transformed is None and not distributed.several()
        along = [] if again or keep.state == "nothing" else vectors.copy(g)
        self.set_gradients(g)
        return BaseStep(made, along, take_step(self.optimizer, self.theta, keep.state))

    def gradient(
        self, batch: StepBatch, keep: Keep = NOTHING, judge: Judge | None = None
    ) -> tuple[BaseGradient, vectors.Vector]:
        """How g over all of a step's batch came about, and g; running statistics move here.

        Takes and raises as `base_step`.
        """
        refuse_hooks(self.theta)
        self.probe(batch)
        for parameter in self.theta:
            parameter.grad = None  # the former step's, as large as θ, while a pass takes most
        parts, weight = self.shared_out(batch), self.weight_beside_others(batch)
        assert judge is None or len(parts) == 1
        passes: list[Pass] = []
        losses: list[Tensor] = []
        did: set[Any] = set()
        grads: list[Tensor | None] = [None] * len(self.theta)
        for part, share in parts:
            made, loss, gradient = self._pass(part, share, keep, weight, judge, did)
            passes.append(made)
            losses.append(loss)
            grads = vectors.add(grads, gradient)
        certify = keep.gradient or not did <= self._known
        if certify:
            self._known |= did
        whole = batches.together(losses, [share for _, share in parts])
        averaging = [] if self.shards is not None else grads  # of shards it is done
        means, learned_loss = replicas.mean_step(
            self.model, self.theta, averaging, whole, weight, batches.examples(batch)
        )
        grads = grads if self.shards is not None else means
        kept = vectors.copy(grads) if certify else []
        transformed = None
        if self.gradient_transform is not None:
            function = self.gradient_transform
            if self.shards is not None:
                function = self.shards.transform(function)
            transformed = Transformed(function, grads)
            grads = transformed.values()
        return BaseGradient(passes, weight, learned_loss, transformed, kept), grads

    def _pass(
        self,
        batch: Batch,
        share: Share,
        keep: Keep,
        weight: float | Tensor,
        judge: Judge | None,
        did: set[Any],
    ) -> tuple[Pass, Tensor, list[Tensor | None]]:
        """A share of M_φ on one batch, and of its gradient; what is handed out has no graph.

        The backward pass is cut at the outputs f: ∂M/∂f first, the backbone's backward pass second.
        That gives bit for bit the gradient of one backward pass, and keeps the graph from ∂M/∂f to
        φ without one through the backbone. Of micro-batches nothing is kept that grows with their
        number but the batches themselves.

        Args:
            did: what it does comes here: the functions of torch that it calls, as far as that is
                seen, and the parameters that it has gradients for.
        """
        inputs, labels = batch
        random_state = seeding.global_state(self.device) if keep.replay else []
        surroundings = self.surroundings.keep() if keep.replay else Kept()
        noting = self.surroundings.noting() if keep.replay else nullcontext(Kept())
        if keep.graph and share is None:
            theta = [parameter.detach().clone().requires_grad_() for parameter in self.theta]
            named = dict(zip(self.theta_names, theta, strict=True))
            with noting as news, DoubleBackward(), self.replaced(named, None):
                loss, g = self.graph(theta, batch, share)
            self.surroundings.passed()
            surroundings = news.beside(surroundings)
            whole = Graph(theta, g)
            made = Pass(batch, share, None, KeepPrimals(), surroundings, random_state, whole)
            # Copies: the optimizer may change its gradients in place.
            return made, loss, vectors.copy([None if x is None else x.detach() for x in g])
        # The pass that gives a micro-batch's outputs again takes its slope again too; what M_φ sees
        # of θ itself is kept, for no pass gives it again.
        graph = keep.slope and (share is None or bool(self._looks_at_theta))
        primals = KeepPrimals()
        with noting as news, primals if keep.primals and share is None else nullcontext():
            outputs = self.forward(inputs, alone=keep == NOTHING and judge is None)
        refuse_frozen(self.theta_names, self.theta)
        self.surroundings.passed()
        surroundings = news.beside(surroundings)
        if judge is not None:
            judge(*self._task_gradient_of(outputs, labels, weight))
        slope = self.slope(outputs, labels, share, graph)
        along = slope.hand_out(keep=True)
        grads = self._backward(outputs, along, weight)
        if keep.replay and not distributed.several():  # which would not have to agree
            did.update(primals.called, (i for i, g in enumerate(grads) if g is not None))
        if share is None and not keep.gradient and did <= self._known:
            slope.hand_out()  # for good
        del along  # it may be a gigabyte
        if slope.direct:
            grads = [None if g is None else g.detach() for g in vectors.add(grads, slope.direct)]
        made = Pass(batch, share, slope if graph else None, primals, surroundings, random_state)
        return made, slope.loss, grads

    def _backward(self, ends: Tensor, along: Tensor, weight: float | Tensor) -> list[Tensor | None]:
        """The gradient by θ of this process's rows; of shards that of all, in own parts.

        Args:
            weight: of the whole step's rows in this process.
        """
        if self.shards is not None:
            return self.shards.backward(ends, along, weight)
        with refusing_kept_graphs():
            return list(torch.autograd.grad(ends, self.theta, along, allow_unused=True))

    def slope(
        self, outputs: Tensor, labels: Any, share: Share, graph: bool, glance: bool = False
    ) -> Slope:
        """A share of M_φ, and its ∂M_φ/∂f at outputs f, [batch, C].

        Args:
            graph: whether φ is to be learned through it.
            glance: a look on the side, which leaves no trace in the tables.
        """
        outputs = outputs.detach()
        divisor = _divisor(share, outputs)
        with torch.enable_grad():
            loss = None if self.by_task_loss else self.loss
            tabulated = loss is not None and self.tables.asked(outputs)
            classes = links.classes(self.link, outputs, labels) if tabulated else None
            if classes is not None:
                rows = classes.rows(outputs)
                tables = self.tables
                reading = tables.glance(rows) if glance else tables.reading(rows, graph)
                if reading is not None:
                    return TabulatedSlope(reading, classes, outputs, divisor, graph)
            free = outputs.requires_grad_()
            if isinstance(loss, Representation) and outputs.numel() > MOST_AT_ONCE:
                return ChunkedSlope(loss, self.link(free, labels), free, divisor)
            looks = self.theta if self._looks_at_theta else []
            return WholeSlope(_share(self.learned_loss(free, labels), share), free, looks, graph)

    def set_gradients(self, grads: vectors.Vector) -> None:
        """Gives the optimizer g: of the shapes of `theta`, None for unused parameters."""
        for k, (parameter, grad) in enumerate(zip(self.theta, grads, strict=True)):
            if self.shards is not None and grad is not None:
                parameter.grad = self.shards.part(k, grad)
            else:
                parameter.grad = vectors.laid_out(grad, parameter)

    def task_gradient(self, batch: StepBatch) -> tuple[Tensor, list[Tensor | None]]:
        """L_T on a batch at the current θ, and v = ∇_θ L_T. Leaves the surroundings as they are.

        On a CPU the generators too: with φ frozen, θ has the bits of plain training.

        Returns:
            A scalar (see `learned_loss`), and tensors of the shapes of `theta`, None where L_T does
            not use a parameter; none has a graph.
        """
        parts, weight = self.shared_out(batch), self.weight_beside_others(batch)
        losses: list[Tensor] = []
        v: list[Tensor | None] = [None] * len(self.theta)
        with self.aside(), self.replaced({}, self.surroundings.keep()):
            for (inputs, labels), share in parts:
                # Nobody holds the outputs, which may be a gigabyte that the loss has no use for.
                loss = self._task_share(self.forward(inputs, alone=True), labels, share)
                ones = torch.ones_like(loss)
                v = vectors.add(v, self._backward(loss, ones, weight))
                losses.append(loss.detach())
        averaging = [] if self.shards is not None else v
        found, (loss,) = distributed.mean_beside(
            averaging, self.theta[: len(averaging)],
            [batches.together(losses, [share for _, share in parts])], weight,
        )  # fmt: skip
        return loss, found if self.shards is None else v

    def _task_gradient_of(
        self, outputs: Tensor, labels: Any, weight: float | Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The same of a base pass, whose graph stays: another backward pass is to go through it.

        Args:
            outputs: of the pass, with their graph.
            weight: of this process's rows, together.
        """
        # Within, for the sake of activation checkpoints, which run the model again.
        with self.aside(), self.replaced({}, self.surroundings.keep()):
            loss = self._task_share(outputs, labels, None)
            v = torch.autograd.grad(loss, self.theta, retain_graph=True, allow_unused=True)
        found, (loss,) = distributed.mean_beside(list(v), self.theta, [loss.detach()], weight)
        return loss, found

    def _task_share(self, outputs: Tensor, labels: Any, share: Share) -> Tensor:
        """A share of L_T on outputs, with its graph; a scalar, or of a stack [S]."""
        links.require_classes(self.link, outputs, labels)
        loss = self.task_loss(outputs, labels)
        refuse_no_number(loss, 1 if isinstance(self.model, Stacked) else 0)
        refuse_frozen(self.theta_names, self.theta)
        return _share(loss, share)

    def aside(self) -> AbstractContextManager[None]:
        """Within it belongs a pass on the side, whose random numbers move no others."""
        return seeding.aside(self.device)

    @contextmanager
    def descending_task_loss(self, wanted: bool = True) -> Iterator[None]:
        """Within it, base steps descend the task loss in place of the learned one, if wanted."""
        before = self.by_task_loss, self.members_by_task_loss
        self.by_task_loss, self.members_by_task_loss = wanted, None
        try:
            yield
        finally:
            self.by_task_loss, self.members_by_task_loss = before

    def replaced(
        self, named: Mapping[str, Tensor], surroundings: Kept | None
    ) -> AbstractContextManager[None]:
        """Within it, the model has other parameters and buffers by name, of the same shapes.

        A backward pass belongs inside too: activation checkpoints run the model again in it.

        Args:
            surroundings: those in which the model is run, of which nothing remains. None: it is the
                base pass, and what it changes stays.
        """
        if self.shards is None:
            return self.surroundings.exchanged(named, surroundings)
        return self._resharding(surroundings)

    @contextmanager
    def _resharding(self, surroundings: Kept | None) -> Iterator[None]:
        """`replaced` for a sharded model, whose parameters are exchanged by `Shards.at`."""
        assert self.shards is not None
        with self.surroundings.exchanged({}, surroundings):
            try:
                yield
            finally:
                self.shards.gathered()

    @contextmanager
    def again(self, named: Mapping[str, Tensor], part: Pass) -> Iterator[None]:
        """Within it, the model runs as it did in a base pass, on the same random numbers.

        Args:
            named: other parameters by name, of the same shapes.
            part: the pass.
        """
        with (
            seeding.replaying(part.random_state, self.device),
            self.replaced(named, part.surroundings),
        ):
            yield


@contextmanager
def _nudged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within it, tensors have numbers beside their own, by a 128th; afterwards the same bits.

    One bit of each is turned over.
    """
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    views = [
        (tensor.data.view(integers[tensor.element_size()]), _a_bit_of(tensor.dtype))
        for tensor in tensors
    ]
    for view, bit in views:
        view.bitwise_xor_(bit)
    try:
        yield
    finally:
        for view, bit in views:
            view.bitwise_xor_(bit)


def _a_bit_of(dtype: torch.dtype) -> int:
    """The one that has a 128th of a number's size."""
    return 1 << round(-math.log2(torch.finfo(dtype).eps) - 7)


def _share(loss: Tensor, share: Share) -> Tensor:
    """loss / share, as a loop over micro-batches writes it; the loss itself where it is alone."""
    return loss if share is None else loss / _divisor(share, loss)


def _divisor(share: Share, like: Tensor) -> float | Tensor:
    """A share in another tensor's type of numbers."""
    return share.to(like) if torch.is_tensor(share) else 1.0 if share is None else share
