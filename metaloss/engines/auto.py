"""The engine that suits the model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from metaloss.engines.base import ENGINES, CertifiedEngine, Draw, Engine, Hypergradient, certified
from metaloss.engines.exact import ByIdentity, Exact
from metaloss.engines.logit_difference import LogitDifference
from metaloss.engines.parts.certificate import require_certified
from metaloss.engines.unrolled import Unrolled
from metaloss.errors import ConfigError, UnsupportedModelError, first_line
from metaloss.problem import snapshot
from metaloss.problem.batches import StepBatch
from metaloss.problem.followed import Followed
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.stacked import Stacked


@ENGINES.register("auto")
class Auto(CertifiedEngine):
    """Takes the first engine that works on the model: exact, unrolled, logit_difference.

    The first call tries them by a whole meta-step, of which nothing remains: an engine works if it
    can differentiate the model, and if its certificate holds. Another choice than exact is warned
    of, with the reason. A resumed run tries again, and chooses alike; so does one whose trained
    parameters are others than before.

    Attributes:
        chosen: the engine it took; None before the first call.
    """

    exact = True
    elementwise = True  # on a stack it takes only such engines
    of_shards = True  # and of shards, likewise

    def __init__(self) -> None:
        self.by_identity = False  #: whether it takes engines `ByIdentity` alone
        self.chosen: Engine | None = None
        self._chosen_for: Followed | None = None
        self._reasons: dict[str, str] = {}  # why engines were left, by name

    @property
    def recordable(self) -> bool:  # type: ignore[override]
        """That of the engine it took; no meta-step is recorded before the first gradient."""
        return self.chosen is None or self.chosen.recordable

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
        certify: bool = False,
    ) -> Hypergradient:
        chosen = self.settled(problem, meta, train)
        return certified(chosen, certify)(problem, meta, train, draw_objective)

    def settled(self, problem: Problem, meta: MetaParameters, train: Sequence[StepBatch]) -> Engine:
        """The engine that it takes, or has taken.

        Raises:
            UnsupportedModelError: none works.
        """
        known = self._chosen_for is problem.followed
        if not known or not problem.followed.holds(problem.model, problem.optimizer):
            problem.follow()
            self._reasons = {}
            self._choose(problem, meta, train)
            self._chosen_for = problem.followed
        assert self.chosen is not None
        return self.chosen

    def leave(
        self, problem: Problem, meta: MetaParameters, train: Sequence[StepBatch], reason: str
    ) -> None:
        """Takes another engine than so far, since that one's certificate did not hold.

        Raises:
            UnsupportedModelError: no other works.
        """
        assert self.chosen is not None
        self._reasons[ENGINES.name_of(self.chosen)] = reason
        self._choose(problem, meta, train)

    def _choose(self, problem: Problem, meta: MetaParameters, train: Sequence[StepBatch]) -> None:
        self.chosen = self._first_that_works(problem, meta, train)
        if self._reasons:
            warnings.warn(
                f"the meta-gradient is taken by engine '{ENGINES.name_of(self.chosen)}': "
                + "; ".join(self._each()),
                stacklevel=5,
            )

    def _first_that_works(
        self, problem: Problem, meta: MetaParameters, train: Sequence[StepBatch]
    ) -> Engine:
        """The first engine that works; notes why those before it do not.

        Raises:
            UnsupportedModelError: none works; says why of each.
        """
        problem.probe(train[0])
        stacked = isinstance(problem.model, Stacked)
        for engine in (Exact(), Unrolled(), LogitDifference()):
            name = ENGINES.name_of(engine)
            if name in self._reasons or (stacked and not engine.elementwise):
                continue
            if self.by_identity and not isinstance(engine, ByIdentity):
                continue
            if problem.shards is not None and not engine.of_shards:
                continue
            try:
                with snapshot.on_trial(problem, train[0]):
                    found = certified(engine)(problem, meta, train, lambda: train[-1])
                if found.certificate is not None:
                    require_certified(problem, train[0], found.certificate)
            except (UnsupportedModelError, ConfigError) as error:  # others are bugs, and are seen
                self._reasons[name] = first_line(error)
            else:
                return engine
        reasons = [*self._reasons.values()]
        if len(set(reasons)) == 1:
            raise UnsupportedModelError(reasons[0])
        raise UnsupportedModelError(
            "no engine can differentiate this model: "
            + "; ".join(self._each())
            + " · 'evolution' asks nothing of a model"
        )

    def _each(self) -> list[str]:
        return [f"'{name}' does not work ({reason})" for name, reason in self._reasons.items()]
