"""Files: written whole or not at all, and JSON objects."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metaloss.errors import InputError, RunFolderError

PARTIAL = ".partial"  #: how the name of a file that is still being written ends


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then puts it there in one move.

    Whoever reads `path` sees the old content or the new, also after a kill or a power cut.

    Raises:
        RunFolderError: the folder cannot be written to; the old content is untouched.
    """
    try:
        handle, name = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
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


def write_new(path: Path, text: str) -> None:
    """Writes a file that is not there yet.

    Raises:
        InputError: it is, or it cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(
            f"{path} is there already: it stays as it is; give another --output"
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def remove_partial(folder: Path) -> None:
    """Removes what `write_atomically` left in a folder when it was killed.

    Raises:
        RunFolderError: a file cannot be removed.
    """
    for path in folder.glob(f".*{PARTIAL}"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError(f"{path} cannot be removed: {error}") from error


def _sync_folder(folder: Path) -> None:
    """Makes the move itself durable, where folders can be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # not on every file system; the file's content is synced already
        pass
    finally:
        os.close(descriptor)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes readable JSON in one move."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} holds no JSON object")
    return content


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, an OSError becomes a RunFolderError that names what could not be written.

    Raises:
        RunFolderError: `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error}") from error


def check_output(output: Path, endings: Sequence[str]) -> None:
    """Whether a file may be written: before the work, not after it.

    No file of a run folder has such an ending but for its figures, so that none is overwritten.

    Raises:
        InputError: its name has another ending, or its folder is not there.
    """
    if output.suffix not in endings:
        raise InputError(f"--output {output}: let its name end in {' or '.join(endings)}")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file")
