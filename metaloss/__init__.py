"""metaloss: meta-learned loss functions, by an exact meta-gradient in one forward-mode pass.

In one's own training loop: `metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"]())`.

The package imports nothing by itself, torch least of all: a name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

#: Every public name, and where it is.
_HOMES = {
    "BACKBONES": "metaloss.backbones:BACKBONES",
    "BASE_OPTIMIZERS": "metaloss.base_optimizers:BASE_OPTIMIZERS",
    "CALLBACKS": "metaloss.runs.callbacks:CALLBACKS",
    "DESCENTS": "metaloss.meta_optimizers.descents:DESCENTS",
    "ENGINES": "metaloss.engines:ENGINES",
    "GROUPINGS": "metaloss.base_optimizers.groupings:GROUPINGS",
    "LAUNCHERS": "metaloss.experiments.launchers:LAUNCHERS",
    "META_OPTIMIZERS": "metaloss.meta_optimizers:META_OPTIMIZERS",
    "RATES": "metaloss.base_optimizers.rates:RATES",
    "REPRESENTATIONS": "metaloss.representations:REPRESENTATIONS",
    "SCHEDULES": "metaloss.base_optimizers.schedules:SCHEDULES",
    "TASKS": "metaloss.tasks:TASKS",
    "AdaLFL": "metaloss.learner:AdaLFL",
    "ClipNorm": "metaloss.problem.gradient_transform:ClipNorm",
    "ClipValue": "metaloss.problem.gradient_transform:ClipValue",
    "LearnedLoss": "metaloss.representations.saved.learned_loss:LearnedLoss",
    "MicroBatches": "metaloss.problem.batches:MicroBatches",
    "Recorder": "metaloss.runs.recorder:Recorder",
    "Stack": "metaloss.stack:Stack",
    "load_loss": "metaloss.representations.saved.learned_loss:load_loss",
    "load_model": "metaloss.runs.trained.model:load_model",
    "load_plugins": "metaloss.config.plugins:load_all",
}
__all__ = list(_HOMES)

if TYPE_CHECKING:  # the same again, for those who read without running; a test compares the two
    from metaloss.backbones import BACKBONES as BACKBONES
    from metaloss.base_optimizers import BASE_OPTIMIZERS as BASE_OPTIMIZERS
    from metaloss.base_optimizers.groupings import GROUPINGS as GROUPINGS
    from metaloss.base_optimizers.rates import RATES as RATES
    from metaloss.base_optimizers.schedules import SCHEDULES as SCHEDULES
    from metaloss.config.plugins import load_all
    from metaloss.engines import ENGINES as ENGINES
    from metaloss.experiments.launchers import LAUNCHERS as LAUNCHERS
    from metaloss.learner import AdaLFL as AdaLFL
    from metaloss.meta_optimizers import META_OPTIMIZERS as META_OPTIMIZERS
    from metaloss.meta_optimizers.descents import DESCENTS as DESCENTS
    from metaloss.problem.batches import MicroBatches as MicroBatches
    from metaloss.problem.gradient_transform import ClipNorm as ClipNorm
    from metaloss.problem.gradient_transform import ClipValue as ClipValue
    from metaloss.representations import REPRESENTATIONS as REPRESENTATIONS
    from metaloss.representations.saved.learned_loss import LearnedLoss as LearnedLoss
    from metaloss.representations.saved.learned_loss import load_loss as load_loss
    from metaloss.runs.callbacks import CALLBACKS as CALLBACKS
    from metaloss.runs.recorder import Recorder as Recorder
    from metaloss.runs.trained.model import load_model as load_model
    from metaloss.stack import Stack as Stack
    from metaloss.tasks import TASKS as TASKS

    load_plugins = load_all
else:

    def __getattr__(name: str) -> Any:
        """A public name, or a module of the package, imported now."""
        import importlib
        import pkgutil

        if name in _HOMES:
            found = globals()[name] = pkgutil.resolve_name(_HOMES[name])
            return found
        try:
            return importlib.import_module(f"metaloss.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"metaloss.{name}":
                raise  # the module is there, and lacks another one
        raise AttributeError(f"module 'metaloss' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
