"""Paths, as a command line gives them."""

from __future__ import annotations

from pathlib import Path

from metaloss.errors import InputError


def asked_for(path: str | Path, flag: str) -> Path:
    """A path from a command line, its `~` expanded, which a shell leaves alone in --flag=~/x.

    Raises:
        InputError: it is empty, as an unset variable of a shell is; Path would take this folder.
    """
    if not str(path):
        raise InputError(f"{flag} is empty: give a path, or leave it out")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~name, of nobody here
        raise InputError(f"{flag} {str(path)!r}: {error}") from None
