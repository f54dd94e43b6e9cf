"""Compiling: the backbone's passes by `torch.compile`, where nothing looks into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metaloss.engines.compiled import Compiled
from metaloss.errors import InputError

if TYPE_CHECKING:
    from metaloss.runs.runner import Runner


def refuse_compiling(plan: Runner, cuda_graphs: bool, sharded: bool) -> None:
    """Raises InputError for a run whose passes are compiled otherwise, or cannot be."""
    reasons = {
        "engine 'compiled' compiles whole steps, the backbone in them": isinstance(
            getattr(plan.adaptation, "engine", None), Compiled
        ),
        "cuda_graphs record the kernels of a step as they are": cuda_graphs,
        "--sharded gathers parameters on the way": sharded,
        "Runner.checkpointed says what a pass keeps, and so does a compiler": bool(
            plan.checkpointed
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"Runner.compile_backbone: {reason}: leave one of them out")
