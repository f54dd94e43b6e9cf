"""By gradient: meta-parameters that move along a meta-gradient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from metaloss.base_optimizers.rates.base import Rate
from metaloss.engines.auto import Auto
from metaloss.engines.base import (
    ENGINES,
    Certificate,
    Draw,
    Engine,
    Hypergradient,
    certified,
    engine_by,
)
from metaloss.engines.parts.certificate import refusal, tolerance
from metaloss.errors import InputError, MissingGradientError, UncertifiedError
from metaloss.machine import clock
from metaloss.meta_optimizers.base import MetaOptimizer, MetaStep
from metaloss.meta_optimizers.descents.base import Descent, Group, JacobianDescent, descent_by
from metaloss.problem.batches import StepBatch
from metaloss.problem.followed import Followed
from metaloss.problem.jacobian import Jacobian
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.vectors import Vector

FIRST = 3  #: meta-steps that all have a certificate: what is wrong mostly is so from the start


class ByGradient(MetaOptimizer):
    """A meta-optimizer that differentiates through base steps, and descends.

    What is common to learning online and offline; `step` is what a kind writes. Beside the contract
    of `MetaOptimizer` it keeps an optional one: what Python decides in its next step is known
    before, so that the step can be recorded as a CUDA graph (`branch`, `replayed`), and several of
    one build can make their steps on a stack of problems (see `stacked`).

    Args:
        meta_lr: η of φ.
        objective: what the task loss is taken on, see `MetaOptimizer`.
        objective_batch_size: examples in that batch; None takes the task's batch size.
        learn: patterns of names of the loss's parameters; those that match one are learned.
        rate: the parametrisation of a base learning rate that is learned beside them; None leaves
            it to the optimizer.
        rate_meta_lr: η of its parameter; None takes `meta_lr`.
        descent: how the meta-parameters move: a recipe, or a registered name.
        engine: how the meta-gradient is computed, by name or built.
        steps: meta-steps of the phase, where it is used as an initialisation.
        certify_every: see `Guard`.
        uncertified: see `Guard`.
    """

    #: Whether one model is trained on and on, so that something may set in later.
    goes_on = True

    def __init__(
        self,
        meta_lr: float,
        objective: Literal["valid", "train", "next"],
        objective_batch_size: int | None,
        learn: Sequence[str],
        rate: Rate | None,
        rate_meta_lr: float | None,
        descent: Callable[..., Descent] | str,
        engine: Engine | str,
        steps: int,
        certify_every: int,
        uncertified: Literal["raise", "warn"],
    ) -> None:
        self.meta_lr = meta_lr
        self.objective = objective
        self.objective_batch_size = objective_batch_size
        self.learn = tuple(learn)
        self.rate = rate
        self.rate_meta_lr = rate_meta_lr
        self.descent = descent_by(descent)
        self.engine = engine_by(engine)
        self.steps = steps
        self.certify_every = certify_every
        self.uncertified = uncertified

    def attach(self, problem: Problem) -> None:
        if problem.shards is not None and not self.engine.of_shards:
            raise InputError(
                f"engine '{ENGINES.name_of(self.engine)}' needs the whole model in each process, "
                "and it is sharded by fully_shard: take 'auto', 'exact' or 'logit_difference'"
            )
        self.problem = problem
        self.meta = MetaParameters(problem, self.learn, self.rate)
        self.meta_descent = MetaDescent(self.meta, self.descent, self.meta_lr, self.rate_meta_lr)
        self.guard = Guard(self.certify_every, self.uncertified, self.goes_on)
        self.guard.trained = list(problem.theta_names)

    @clock.part("meta")
    def meta_step(self, train: Sequence[StepBatch], draw_objective: Draw) -> MetaStep:
        """A base step on each training batch, and a step of the meta-parameters through them."""
        self.guard.follow(self.problem)
        self.guard.settle(self.engine, self.problem, self.meta, train)
        certify = self.guard.due()
        jacobian = self.meta_descent.look(self.problem, train[0])
        found = certified(self.engine, certify)(self.problem, self.meta, train, draw_objective)
        result = self.descend(found, jacobian)
        self.settle_early(found, train)
        return result

    def descend(self, found: Hypergradient, jacobian: Jacobian | None = None) -> MetaStep:
        """A step of the meta-parameters, which is counted."""
        self.guard.count()
        if not self.certify_every:
            found.certificate = None  # what sets in has one all the same
        result = self.meta_descent.descend(found, self.uncertified == "warn", jacobian)
        if found.certificate is not None:
            self.guard.note(found.certificate)
        return result

    def settle_early(self, found: Hypergradient, train: Sequence[StepBatch]) -> None:
        """After one of the first steps: nothing is lost by waiting for its certificate."""
        if found.certificate is not None and self.guard.early():
            self.guard.settle(self.engine, self.problem, self.meta, train, wait=True)

    def branch(self) -> Hashable | None:
        """What Python will decide by in the next `step`; None if no CUDA graph can hold it.

        "base" is a base step alone, which draws no objective.
        """
        if self.rate is not None or not self.engine.recordable:
            return None  # a learned rate is written by Python
        if not self.due():
            return "base"
        branch = self.meta_descent.branch()
        if branch is None or self.guard.early() or self.guard.failed():
            return None
        return branch, self.guard.due()

    def replayed(self) -> None:
        """A CUDA graph makes a step: counts it."""
        if self.due():
            self.meta_descent.replayed()
        self.passed()

    def passed(self) -> None:
        """Counts a step that a CUDA graph or a stack makes for it."""
        if self.due():
            self.guard.count()
        self.count()

    def rest(self, draw_objective: Draw) -> None:
        if self.due() and self.objective != "next":
            draw_objective()
        self.count()

    def certified(self, residual: Tensor) -> None:
        """Takes the residual of a step that a CUDA graph has made."""
        self.guard.note(Certificate(residual, tolerance(self.problem)))

    def due(self) -> bool:
        """Whether the next step moves the meta-parameters."""
        return True

    def count(self) -> None:  # noqa: B027 - most kinds count no steps
        """Counts a step: one of its own, or one that a CUDA graph or a stack has made for it."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "descent": self.meta_descent.state_dict(),
            "engine": self.engine.state_dict(),
            **self.guard.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.guard.load_state_dict(state)
        self.meta_descent.load_state_dict(state["descent"])
        self.engine.load_state_dict(state["engine"])


class Guard:
    """Sees to it that meta-gradients are those of the steps that were made, by their certificates.

    A meta-gradient whose certificate does not hold moves nothing. What is then to be done is asked
    for when the certificate has left the device anyway: nothing waits for it but in the first
    meta-steps. An engine that chooses takes another one, with the reason; one that was asked for by
    name raises, or warns.

    Args:
        every: meta-steps per certificate, after the first ones, which all have one; 0: none.
        uncertified: what becomes of a meta-gradient whose certificate does not hold, where the
            engine was asked for by name: "raise" ends the training; "warn" warns, once, and uses it
            all the same.
        in_between: whether the fourth, the eighth and so on have one too.
    """

    def __init__(
        self, every: int, uncertified: Literal["raise", "warn"], in_between: bool = True
    ) -> None:
        self._every = every
        self._in_between = in_between
        self._uncertified = uncertified
        self.meta_steps = 0  #: made so far
        self._pending: list[tuple[Certificate, torch.cuda.Event | None]] = []
        self._warned = False
        self._followed: tuple[Problem, Followed] | None = None  # at the latest, and of what
        self.trained: list[str] | None = None  #: at the latest meta-step, by names in the model
        self._since = 0  # meta-steps before that

    def follow(self, problem: Problem) -> None:
        """Begins anew where a problem's model, or what is trained of it, is another than before."""
        if not problem.followed.holds(problem.model, problem.optimizer):
            problem.follow()
        known, names = self._followed, list(problem.theta_names)
        if known is None:  # perhaps a resumed run's first meta-step
            other = self.trained not in (None, names)
        else:
            other = known[0] is problem and known[1] is not problem.followed
        if other:
            self._since = self.meta_steps
        self._followed, self.trained = (problem, problem.followed), names

    def state_dict(self) -> dict[str, Any]:
        """What says when the next certificate is due."""
        return {"meta_steps": self.meta_steps, "since": self._since, "trained": self.trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.meta_steps, self._since = state.get("meta_steps", 0), state.get("since", 0)
        self.trained = state.get("trained", self.trained)
        self._followed = None

    def early(self) -> bool:
        """Whether these are the first meta-steps, whose certificates are waited for."""
        return self._every > 0 and self.meta_steps - self._since <= FIRST

    def due(self, before: int = 0) -> bool:
        """Whether the next meta-step has a certificate.

        Args:
            before: meta-steps that come before it.
        """
        made = self.meta_steps + before - self._since
        # Those in between are ever further apart: what sets in later mostly does so soon.
        between = self._in_between and made < self._every and made.bit_count() == 1
        regular = self._every > 0 and (self.meta_steps + before) % self._every == 0
        return self._every > 0 and (made < FIRST or between or regular)

    def count(self) -> None:
        """A meta-step is made."""
        self.meta_steps += 1

    def note(self, certificate: Certificate) -> None:
        """Sends a certificate on its way from the device."""
        residual = certificate.residual.detach()
        if residual.is_cuda:
            if torch.cuda.is_current_stream_capturing():
                return  # of a recording; what it gives comes with each replay
            residual = residual.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            self._pending.append((replace(certificate, residual=residual), arrived))
        else:
            self._pending.append((certificate, None))

    def failed(self, wait: bool = False) -> Certificate | None:
        """The first certificate that has arrived and does not hold, if there is one."""
        while self._pending:
            certificate, arrived = self._pending[0]
            if arrived is not None and not wait and not arrived.query():
                return None
            if arrived is not None:
                arrived.synchronize()
            if not bool(certificate.holds.all()):
                return certificate
            self._pending.pop(0)
        return None

    def settle(
        self,
        engine: Engine,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        wait: bool = False,
    ) -> None:
        """Does what is to be done about a certificate that does not hold.

        Raises:
            UncertifiedError: the engine was asked for by name, and `uncertified` is "raise".
        """
        if problem.surroundings.lost:
            problem.surroundings.lost = False
            self._say_more("the step before was taken without it")
        certificate = self.failed(wait)
        if certificate is None:
            return
        self._pending.clear()
        reason = refusal(problem, train[0], certificate)
        if problem.look_again(train[0]):
            self._since = self.meta_steps
            self._say_more("each meta-gradient since the certificate before was taken without it")
            return
        if isinstance(engine, Auto):
            engine.leave(problem, meta, train, reason)
            return
        name = ENGINES.name_of(engine)
        if self._uncertified == "raise":
            raise UncertifiedError(
                f"engine '{name}' does not give the gradient of the step: {reason} · "
                "engine='auto' finds another"
            )
        if not self._warned:
            self._warned = True
            warnings.warn(f"engine '{name}': {reason}", stacklevel=6)

    def _say_more(self, without: str) -> None:
        warnings.warn(
            "the model changes more in its forward pass than at first, as a teacher or a queue "
            f"that sets in later does: from here on it is followed, and {without}",
            stacklevel=7,
        )


class MetaDescent:
    """The meta-parameters of a problem on their way down, guarded against unusable gradients.

    Args:
        meta: the meta-parameters.
        descent: a recipe for how they move.
        meta_lr: η of φ.
        rate_meta_lr: η of a learned base learning rate's parameter; None takes that of φ.

    Raises:
        MissingGradientError: there is nothing to learn.
    """

    def __init__(
        self,
        meta: MetaParameters,
        descent: Callable[..., Descent],
        meta_lr: float,
        rate_meta_lr: float | None = None,
    ) -> None:
        groups = []
        if meta.phi:
            groups.append(Group(meta.named_phi, meta_lr))
        if meta.ratios is not None:
            groups.append(Group({"lr": meta.x}, rate_meta_lr or meta_lr))
        if not groups:
            raise MissingGradientError(
                "there is nothing to learn: the loss has no parameter that requires a gradient"
            )
        self._meta = meta
        self._names = ", ".join(name for group in groups for name in group.tensors)
        self._descent = descent(groups=groups)
        self._usable = False  # whether any gradient has been usable so far

    @property
    def looks(self) -> bool:
        """Whether `look` looks at anything."""
        return bool(self._meta.phi) and isinstance(self._descent, JacobianDescent)

    def look(self, problem: Problem, batch: StepBatch) -> Jacobian | None:
        """What a descent that wants a Jacobian is to have of a step, before it is made."""
        if not self.looks:
            return None
        return Jacobian.of(problem, self._meta.phi, batch)

    def descend(
        self, found: Hypergradient, trusted: bool = False, jacobian: Jacobian | None = None
    ) -> MetaStep:
        """One step; skipped, and said so, where the gradient or a loss is not finite.

        So it is where the step's certificate does not hold, but for a gradient that is `trusted`.

        Args:
            found: by the engine.
            trusted: it needs no certificate that holds.
            jacobian: what `look` gave before the step.

        Raises:
            MissingGradientError: no meta-parameter has a gradient; or the very first gradient is
                not finite although both losses are.
        """
        gradients = [*found.phi]
        if self._meta.ratios is not None:
            gradients.append(self._meta.through_rate(found.alpha))
        given = self.given(gradients)
        device = found.task_loss.device
        norm = torch.linalg.vector_norm(torch.cat([part.to(device).flatten() for part in given]))
        all_ = norm + found.task_loss + found.learned_loss
        usable = all_ - all_ == 0  # neither infinite nor NaN, in fewer calls than isfinite makes
        residual = None
        if found.certificate is not None:
            residual = found.certificate.residual
            if not trusted:
                usable &= found.certificate.holds.to(usable.device)
        self.move(found, gradients, usable, jacobian)
        return MetaStep(found.learned_loss, found.task_loss, norm, ~usable, residual)

    def given(self, gradients: Vector) -> list[Tensor]:
        """The gradients that there are, of the shapes of the meta-parameters.

        Raises:
            MissingGradientError: there is none.
        """
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            raise MissingGradientError(
                f"no meta-parameter received a gradient ({self._names}): the base step does not "
                "depend on them, as with an output bias alone or a loss that is constant in the "
                "prediction"
            )
        return given

    def move(
        self,
        found: Hypergradient,
        gradients: Vector,
        usable: Tensor,
        jacobian: Jacobian | None = None,
    ) -> None:
        """One step along gradients, if they can be used.

        Args:
            found: what is to be told of, should there never be a usable gradient.
            gradients: of the shapes of the meta-parameters.
            usable: bool [].
            jacobian: see `descend`.

        Raises:
            MissingGradientError: see `descend`.
        """
        if not self._usable:  # later, nothing here waits for the device
            self._usable = bool(usable)
            both = torch.isfinite(found.learned_loss) & torch.isfinite(found.task_loss)
            if found.certificate is not None:
                both &= found.certificate.holds.to(both.device).all()
            if not self._usable and bool(both):
                raise MissingGradientError(
                    f"no meta-parameter received a finite gradient ({self._names}) although both "
                    "losses are finite: look for a derivative of the loss or the model that is "
                    "infinite or NaN"
                )
        if isinstance(self._descent, JacobianDescent):
            self._descent.descend(gradients, usable, jacobian)
        else:
            self._descent.descend(gradients, usable)
        # A fused kernel, as Adam's, does not tell that it has written: tables of M_φ ask for that.
        torch.autograd.graph.increment_version(self._meta.phi)
        self._meta.write_rate()

    def branch(self) -> Hashable | None:
        """Of the descent; None before the first usable gradient, and where a rate is learned."""
        if not self._usable or self._meta.ratios is not None:
            return None
        return self._descent.branch()

    def replayed(self) -> None:
        """A CUDA graph has made a step: counts it."""
        self._descent.replayed()

    def state_dict(self) -> dict[str, Any]:
        return {
            "descent": self._descent.state_dict(),
            "usable": self._usable,
            "x": float(self._meta.x),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._descent.load_state_dict(state["descent"])
        self._usable = state["usable"]
        self._meta.x.fill_(state["x"])
        self._meta.write_rate()
