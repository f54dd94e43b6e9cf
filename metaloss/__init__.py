"""metaloss: meta-learned loss functions, by an exact meta-gradient in one forward-mode pass.

In one's own training loop: `metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"]())`.
"""

from metaloss.backbones import BACKBONES
from metaloss.base_optimizers import BASE_OPTIMIZERS
from metaloss.base_optimizers.groupings import GROUPINGS
from metaloss.base_optimizers.rates import RATES
from metaloss.base_optimizers.schedules import SCHEDULES
from metaloss.config.plugins import load_all as load_plugins
from metaloss.engines import ENGINES
from metaloss.experiments.launchers import LAUNCHERS
from metaloss.learner import AdaLFL
from metaloss.meta_optimizers import META_OPTIMIZERS
from metaloss.meta_optimizers.descents import DESCENTS
from metaloss.problem.batches import MicroBatches
from metaloss.problem.gradient_transform import ClipNorm, ClipValue
from metaloss.representations import REPRESENTATIONS
from metaloss.representations.saved.learned_loss import LearnedLoss, load_loss
from metaloss.runs.callbacks import CALLBACKS
from metaloss.runs.trained import load_model
from metaloss.stack import Stack
from metaloss.tasks import TASKS

__version__ = "0.1.0"

__all__ = [
    "BACKBONES",
    "BASE_OPTIMIZERS",
    "CALLBACKS",
    "DESCENTS",
    "ENGINES",
    "GROUPINGS",
    "LAUNCHERS",
    "META_OPTIMIZERS",
    "RATES",
    "REPRESENTATIONS",
    "SCHEDULES",
    "TASKS",
    "AdaLFL",
    "ClipNorm",
    "ClipValue",
    "LearnedLoss",
    "MicroBatches",
    "Stack",
    "load_loss",
    "load_model",
    "load_plugins",
]
