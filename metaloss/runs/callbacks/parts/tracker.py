"""What trackers of experiments share: one run there for one run folder, each row told once."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from metaloss.errors import InputError
from metaloss.machine.files import writing
from metaloss.runs.callbacks.base import CALLBACKS, Callback, Look, Start
from metaloss.runs.callbacks.parts.numbers import scalars
from metaloss.runs.metrics import Row


class Tracker(Callback):
    """A service that keeps what it is told, and can take nothing back.

    A run that was killed tells once more what came after its last checkpoint. So the run folder
    notes, in `NAME.tracked`, the run's identity there and, by a dot each, the rows told; what comes
    again is left out.
    """

    def __init__(self) -> None:
        self._row = self._told = 0  # rows of the run; those of them that the service has
        self._note: Path | None = None

    def begin(self, start: Start, state: Mapping[str, Any]) -> None:
        note = start.folder / f"{CALLBACKS.name_of(self)}.tracked"
        identity, _, told = note.read_text("utf-8").partition("\n") if note.is_file() else ("",) * 3
        self._row, self._told = start.rows, len(told)
        opened = self.open(start, identity or None)
        with writing(note):
            if not identity:
                note.write_text(f"{opened}\n", "utf-8")
        self._note = note

    def after_step(self, row: Row) -> None:
        self._row += 1
        if self._row <= self._told:
            return
        # The initialisation counts steps of its own.
        before = "" if row["phase"] == "train" else f"{row['phase']}/"
        self.tell({f"{before}{tag}": number for tag, number in scalars(row).items()}, before, row)
        if "warning" in row:
            self.warn(row["warning"])
        assert self._note is not None
        with writing(self._note), self._note.open("a") as file:
            file.write(".")

    def after_evaluation(self, row: Row) -> None:
        self.after_step(row)

    def after_look(self, look: Look) -> None:
        if self._row >= self._told:
            self.look(look)

    @abstractmethod
    def open(self, start: Start, identity: str | None) -> str:
        """Makes a run there, or goes on with that of an identity.

        Returns:
            The identity.
        """

    @abstractmethod
    def tell(self, numbers: Mapping[str, float], phase: str, row: Row) -> None:
        """Keeps numbers of a step.

        Args:
            numbers: by tag.
            phase: what the phase's tags begin with; "" for the training.
            row: what they are of.
        """

    @abstractmethod
    def warn(self, trouble: str) -> None:
        """Keeps what is wrong with the learned loss."""

    def look(self, look: Look) -> None:
        """Keeps pictures."""


def title(start: Start) -> tuple[str, str]:
    """A run's group, which its seeds share, and its name."""
    group = "{task} {backbone} {method}".format(**start.names)
    return group, f"{group} seed {start.seed}"


def imported(callback: str, module: str) -> ModuleType:
    """The package behind a callback.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise
        raise InputError(
            f"callbacks.{callback} needs {module}: install metaloss[{callback}]"
        ) from None
