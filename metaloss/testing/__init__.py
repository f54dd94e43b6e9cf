"""Contract checks: one per kind of component, for our tests and for those of plugin authors.

Each takes a component and raises `ContractError`, saying what does not hold. They run in float64 on
the CPU and are quick: `metaloss.testing.check_representation(MyLoss)`.
"""

from metaloss.testing.backbone import check_backbone
from metaloss.testing.base import ContractError
from metaloss.testing.base_optimizer import check_base_optimizer
from metaloss.testing.callback import check_callback
from metaloss.testing.descent import check_descent
from metaloss.testing.engine import check_engine
from metaloss.testing.grouping import check_grouping
from metaloss.testing.launcher import check_launcher
from metaloss.testing.meta_optimizer import check_meta_optimizer
from metaloss.testing.rate import check_rate
from metaloss.testing.representation import check_representation
from metaloss.testing.schedule import check_schedule
from metaloss.testing.task import check_task

__all__ = [
    "ContractError",
    "check_backbone",
    "check_base_optimizer",
    "check_callback",
    "check_descent",
    "check_engine",
    "check_grouping",
    "check_launcher",
    "check_meta_optimizer",
    "check_rate",
    "check_representation",
    "check_schedule",
    "check_task",
]
