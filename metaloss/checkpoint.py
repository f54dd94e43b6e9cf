"""Checkpoints: written whole or not at all, verified when read, never able to run code."""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metaloss.errors import RunFolderError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then puts it there in one move.

    Whoever reads `path` sees the old content or the new, also after a kill or a power cut.

    Raises:
        RunFolderError: the folder cannot be written to; the old content is untouched.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}") from error


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a state of tensors and plain data."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load(path: Path) -> dict[str, Any]:
    """Reads a state onto the CPU.

    Raises:
        RunFolderError: the file is cut short, damaged (by the checksums of its parts) or holds more
            than tensors and plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what damaged bytes raise depends on where they are
        reason = (str(error).splitlines() or [""])[0].split(". ")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors and plain data"
        raise RunFolderError(damage(path, reason)) from error
    if not isinstance(state, dict):
        raise RunFolderError(damage(path, f"it holds a {type(state).__name__}"))
    return state


def damage(path: Path, reason: str) -> str:
    """What is wrong with a checkpoint, and what to do."""
    return (
        f"{path} is no whole checkpoint ({reason}): the run is left as it was; remove the file to "
        "start the run over"
    )


def _sync_folder(folder: Path) -> None:
    """Makes the move itself durable, where folders can be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # not on every file system; the file's content is synced already
        pass
    finally:
        os.close(descriptor)
