"""The engine that suits the model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from metaloss.engines.base import ENGINES, Draw, Engine, Hypergradient
from metaloss.engines.exact import Exact
from metaloss.engines.logit_difference import LogitDifference
from metaloss.engines.unrolled import Unrolled
from metaloss.errors import ConfigError, UnsupportedModelError
from metaloss.problem import snapshot
from metaloss.problem.batches import StepBatch
from metaloss.problem.meta_parameters import MetaParameters
from metaloss.problem.problem import Problem
from metaloss.problem.stacked import Stacked


@ENGINES.register("auto")
class Auto(Engine):
    """Takes the first engine that works on the model: exact, unrolled, logit_difference.

    The first call tries them by a whole meta-step, of which nothing remains. Another choice than
    exact is warned of, with the reason. A resumed run tries again, and chooses alike.
    """

    exact = True
    elementwise = True  # on a stack it takes only such engines
    recordable = True  # until it has chosen: no meta-step is recorded before the first gradient

    def __init__(self) -> None:
        self.chosen: Engine | None = None

    def chosen_for(
        self, problem: Problem, meta: MetaParameters, train: Sequence[StepBatch]
    ) -> Engine:
        if self.chosen is None:
            self.chosen, reasons = choose(problem, meta, train)
            if reasons:
                warnings.warn(
                    f"the meta-gradient is taken by engine '{ENGINES.name_of(self.chosen)}': "
                    + "; ".join(reasons),
                    stacklevel=2,
                )
        return self.chosen

    def hypergradient(
        self,
        problem: Problem,
        meta: MetaParameters,
        train: Sequence[StepBatch],
        draw_objective: Draw,
    ) -> Hypergradient:
        engine = self.chosen_for(problem, meta, train)
        return engine.hypergradient(problem, meta, train, draw_objective)


def choose(
    problem: Problem, meta: MetaParameters, train: Sequence[StepBatch]
) -> tuple[Engine, list[str]]:
    """The first engine that works, and why those before it do not.

    Raises:
        UnsupportedModelError: none works; says why of each.
    """
    errors: dict[str, Exception] = {}
    stacked = isinstance(problem.model, Stacked)
    for engine in (Exact(), Unrolled(), LogitDifference()):
        if stacked and not engine.elementwise:
            continue
        try:
            with snapshot.on_trial(problem, train[0]):
                engine.hypergradient(problem, meta, train, lambda: train[-1])
        except (UnsupportedModelError, ConfigError) as error:  # others are bugs, and are seen
            errors[ENGINES.name_of(engine)] = error
        else:
            return engine, _reasons(errors)
    *_, last = errors.values()
    if len({str(error) for error in errors.values()}) == 1:
        raise last
    raise UnsupportedModelError(
        "no engine can differentiate this model: "
        + "; ".join(_reasons(errors))
        + " · 'evolution' asks nothing of a model"
    )


def _reasons(errors: Mapping[str, Exception]) -> list[str]:
    return [f"'{name}' does not work ({_first_line(error)})" for name, error in errors.items()]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
