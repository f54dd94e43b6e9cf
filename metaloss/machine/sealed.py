"""Checkpoints: written whole or not at all, verified when read, never able to run code.

A checkpoint is a file of `torch.save` and one more line, the SHA-256 of all before it: torch itself
checks nothing, and the checksums inside of its archive leave out the archive's directory. The
checkpoint before the latest is kept beside it, for the day when the latest is damaged.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from metaloss.errors import RunFolderError, first_line
from metaloss.machine.files import write_atomically

SEAL = len(b"\nsha256 \n") + 64  #: bytes of a checkpoint's last line


class _Damage(Exception):
    """Why a file is no whole checkpoint."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a state of tensors and plain data; the one that was there is kept as `previous(path)`.

    At every moment one of the two is whole. Of a tensor that is a part of a larger one that part
    alone is written.

    Raises:
        RunFolderError: see `write_atomically`; both are untouched.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            summed = _Summed(file)
            try:
                torch.save(_alone(state), summed)  # type: ignore[arg-type]
            except RuntimeError as error:  # torch's word for it when the file cannot be written
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            file.write(_seal(summed.digest.hexdigest()))
        if _is_whole(path):  # one that was damaged later must not replace the one before it
            path.replace(previous(path))

    write_atomically(path, write)


def load(path: Path) -> dict[str, Any]:
    """Reads a state onto the CPU.

    Raises:
        RunFolderError: the file is cut short, damaged (by its checksum) or holds more than
            tensors and plain data.
    """
    try:
        return _load(path)
    except _Damage as damaged:
        raise RunFolderError(damage(path, str(damaged))) from damaged


def load_last(path: Path) -> tuple[dict[str, Any], str | None]:
    """Reads the state at `path`, or the one before it if that is damaged or not there.

    Returns:
        The state, and what is wrong with `path` if it is damaged.

    Raises:
        RunFolderError: neither can be read, see `load`.
    """
    before = previous(path)
    if not before.is_file():
        return load(path), None
    if not path.is_file():  # killed between the two moves of `save`
        return load(before), None
    try:
        return _load(path), None
    except _Damage as damaged:
        try:
            return _load(before), f"{path} is no whole checkpoint ({damaged})"
        except _Damage as also:
            raise RunFolderError(
                f"neither {path} ({damaged}) nor {before.name} ({also}) is a whole checkpoint: the "
                "run is left as it was; remove both to start the run over"
            ) from damaged


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def exists(path: Path) -> bool:
    """Whether `load_last` has anything to read."""
    return path.is_file() or previous(path).is_file()


def damage(path: Path, reason: str) -> str:
    """What is wrong with a checkpoint, and what to do."""
    return (
        f"{path} is no whole checkpoint ({reason}): the run is left as it was; remove the file to "
        "start the run over"
    )


def _alone(value: Any) -> Any:
    """A state whose tensors are views of nothing larger: torch would write all of that."""
    if isinstance(value, dict):
        return {key: _alone(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_alone(part) for part in value]
    if torch.is_tensor(value) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()
    return value


def _load(path: Path) -> dict[str, Any]:
    try:
        _verify(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _Damage:
        raise
    except Exception as error:  # what is whole may still be anything
        reason = first_line(error).split(". ")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors and plain data"
        raise _Damage(reason) from error
    if not isinstance(state, dict):
        raise _Damage(f"it holds a {type(state).__name__}")
    return state


def _verify(path: Path) -> None:
    """Raises _Damage, or what `zipfile` does, unless the file is as it was written."""
    left = path.stat().st_size - SEAL
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
        seal = file.read()
    if b"\nsha256 " not in seal:  # cut short, or of torch.save alone, as it was once
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise _Damage(f"the checksum of {damaged} does not match")
    elif seal != _seal(digest.hexdigest()):
        raise _Damage("its checksum does not match")


def _is_whole(path: Path) -> bool:
    try:
        _verify(path)
    except Exception:  # see _load
        return False
    return True


class _Summed:
    """A file that is written, and the checksum of that."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def flush(self) -> None:
        self._file.flush()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self._file.write(content)


def _seal(digest: str) -> bytes:
    """A checkpoint's last line."""
    return f"\nsha256 {digest}\n".encode()
