"""Checkpoint: what a run's checkpoint holds, and how a run goes on from it."""

from __future__ import annotations

import contextlib
from typing import Any

from metaloss.errors import RunFolderError, first_line
from metaloss.machine import distributed, sealed
from metaloss.runs.folder import RunFolder
from metaloss.runs.progress import LOG
from metaloss.runs.state import State

Position = tuple[int, int]  #: meta-steps of the initialisation, base steps of the training


def save(
    folder: RunFolder,
    config: str,
    metrics_bytes: int,
    callbacks: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Writes the checkpoint of a run.

    Args:
        folder: the run's.
        config: the complete configuration.
        metrics_bytes: of the metrics so far, which are on disk.
        callbacks: what they go on from, see `Everyone.state_dict`.
        state: see `State.state_dict`.

    Raises:
        RunFolderError: it cannot be written; the one that is there stays.
    """
    content = {"config": config, "metrics_bytes": metrics_bytes, "state": state}
    content["callbacks"] = callbacks
    sealed.save(folder.checkpoint, content)


def positions(folder: RunFolder) -> list[Position]:
    """Where the run's whole checkpoints stand, the latest first; at its start if there is none.

    Raises:
        RunFolderError: no checkpoint is whole.
    """
    path = folder.checkpoint
    if not sealed.exists(path):
        return [(0, 0)]
    found = [_position(sealed.load_last(path)[0])]
    with contextlib.suppress(RunFolderError):  # there may be none before the latest
        found.append(_position(sealed.load(sealed.previous(path))))
    return found


def restore(
    state: State, folder: RunFolder, config: str, at: Position | None = None
) -> tuple[int, dict[str, Any]]:
    """Gives a state what the last whole checkpoint holds, if there is one.

    Args:
        at: one of `positions`, to go on from there.

    Returns:
        The bytes of the metrics that the checkpoint counts, and what the callbacks go on from.

    Raises:
        RunFolderError: no checkpoint is whole, or it is of another configuration or version;
            nothing is changed.
    """
    path = folder.checkpoint
    if not sealed.exists(path):
        return 0, {}
    saved, damage = sealed.load_last(path)
    if at is not None and _position(saved) != at:
        saved, damage = sealed.load(sealed.previous(path)), None
    if saved.get("config") != config:
        raise RunFolderError(f"{path} is of another configuration: nothing was changed")
    try:
        state.load_state_dict(saved["state"])
        counted = int(saved["metrics_bytes"])
        callbacks = dict(saved.get("callbacks", {}))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"of another version: {type(error).__name__}: {first_line(error)}"
        raise RunFolderError(sealed.damage(path, reason)) from error
    if damage is not None and distributed.rank() == 0:
        stands = f"meta-step {state.init_steps}, step {state.steps}"
        LOG.warning(f"{damage}: going on from the one before, {stands}")
    return counted, callbacks


def _position(saved: dict[str, Any]) -> Position:
    """Where a checkpoint stands; before everything if it is of another version."""
    state = saved.get("state", {})
    return state.get("init_steps", -1), state.get("steps", -1)
