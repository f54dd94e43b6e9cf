"""The contract of callbacks."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metaloss.runs.callbacks.base import Callback, Look, Start
from metaloss.testing.base import require

CONFIG = "Runner.steps = 4\nRunner.method = 'adalfl'\n"
RESULT = {
    "task": "digits", "backbone": "mlp", "method": "adalfl", "steps": 4, "metric": "error_rate",
    "test": 0.25, "select": None, "best_step": None, "status": "finished", "health": "healthy",
}  # fmt: skip
#: The rows of a run, and how many of them its checkpoint counts.
ROWS: list[dict[str, Any]] = [
    {"phase": "initialization", "step": 1, "learned_loss": 0.5, "task_loss": None, "seconds": 0.1},
    {"phase": "train", "step": 2, "learned_loss": 0.25, "base_lr": 0.1, "seconds": 0.2},
    {"phase": "train", "step": 2, "split": "valid", "loss": 1.5, "error_rate": 0.5, "seconds": 0.3},
    {"phase": "train", "step": 3, "health": "unhealthy", "warning": "it fails", "seconds": 0.4},
    {"phase": "train", "step": 4, "split": "test", "loss": 1.25, "error_rate": 0.25, "seconds": 1},
]
KEPT = 3


def check_callback(make: Callable[[], Callback]) -> None:
    """Holds a callback to the contract of `metaloss.runs.callbacks.base`, in a folder of its own.

    It is told of a run that is killed after its checkpoint, goes on from there and ends; and of one
    that is stopped, in the same process.

    Args:
        make: gives one, of equal settings each time.
    """
    before = torch.get_rng_state()
    with tempfile.TemporaryDirectory() as place:
        killed, other, again = make(), make(), make()
        for callback, seed in ((killed, 0), (other, 1)):
            callback.begin(_start(Path(place), seed, 0), {})
            _tell(callback, ROWS[:KEPT])
        state = killed.state_dict()
        try:
            plain = json.loads(json.dumps(state))
        except (TypeError, ValueError):
            plain = None
        require(plain == state, f"state_dict gives {state}, which is no plain data by names")
        _tell(killed, ROWS[KEPT:-1])
        _look(killed)
        killed.close()
        other.close()
        again.begin(_start(Path(place), 0, KEPT), copy.deepcopy(state))
        _tell(again, ROWS[KEPT:])
        _look(again)
        again.end(copy.deepcopy(RESULT))
        again.close()
    require(torch.get_rng_state().equal(before), "draws from torch's global generator")
    make().close()  # of a run that broke before it began


def _start(place: Path, seed: int, rows: int) -> Start:
    folder = place / f"seed{seed}"
    folder.mkdir(exist_ok=True)
    done = {"initialization": 1, "train": 2} if rows else {"initialization": 0, "train": 0}
    names = {name: str(RESULT[name]) for name in ("task", "backbone", "method")}
    return Start(folder, CONFIG, names, seed, "error_rate", done, rows)


def _tell(callback: Callback, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        given = copy.deepcopy(row)
        (callback.after_evaluation if "split" in row else callback.after_step)(given)
        require(given == row, f"changes the row that it is given: {given} was {row}")


def _look(callback: Callback) -> None:
    values = torch.tensor([0.5, -1.0, torch.nan])
    given = values.clone()
    look = Look(3, texts={"loss/warnings": "none"}, values={"loss/phi": given})
    callback.after_look(look)
    same = torch.equal(given.nan_to_num(), values.nan_to_num())
    require(same, "changes the values that it is given")
