"""What the numbers of a run are called where they are shown."""

from __future__ import annotations

from metaloss.config.gin_files import bindings_of
from metaloss.runs.metrics import Row

#: The group of a number that does not belong to a split or to a training step.
GROUPS = {
    **dict.fromkeys(
        (
            "task_loss",
            "gradient_norm",
            "skipped",
            "adjoint_residual",
            "base_lr",
            "effective_base_lr",
            "cosine_theta",
            "ratio_theta",
        ),
        "meta",
    ),
    **dict.fromkeys(
        ("scale", "flatness", "flat_range", "argmin", "wrong_slope", "turns", "phi_distance"),
        "loss",
    ),
}


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row of metrics by their tag, `group/name`; those that are null are not."""
    found = {
        _tag(name, row): value
        for name, value in row.items()
        if isinstance(value, (int, float)) and name not in ("step", "seconds")
    }
    if "learned_loss" in row:  # the clock of a training step; other rows of the step repeat it
        found["time/seconds"] = row["seconds"]
    return found


def _tag(name: str, row: Row) -> str:
    if name.startswith("health_"):
        return name.replace("_", "/", 1)
    return f"{GROUPS.get(name, row.get('split', 'train'))}/{name}"


def bindings(config: str) -> dict[str, bool | int | float | str]:
    """The bindings of a complete configuration; what is no number is text."""
    return {
        name: value if isinstance(value, (bool, int, float, str)) else repr(value)
        for name, value in bindings_of(config, "config.gin").items()
    }
