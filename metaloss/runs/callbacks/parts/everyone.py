"""All callbacks of a run, told in turn; one that fails is left out, and the run goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metaloss.errors import InputError, RunFolderError, first_line
from metaloss.runs.callbacks.base import CALLBACKS, Callback, Look, Start
from metaloss.runs.metrics import Row


class Everyone(Callback):
    """Tells several callbacks what it is told.

    Args:
        callbacks: in the order in which they are told.
        warn: is told, once each, who is left out and why.
    """

    def __init__(self, callbacks: Sequence[Callback], warn: Callable[[str], None]) -> None:
        self._listening = dict(enumerate(callbacks))
        self._warn = warn
        self._states: dict[str, Any] = {}  # of who was left out too, for the run's next process

    def begin(self, start: Start, state: Mapping[str, Any]) -> None:
        self._states = dict(state)
        for index, callback in self._listening.items():
            try:
                callback.begin(start, state.get(str(index), {}))
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"{_name(callback)} cannot begin: {_reason(error)}") from error

    def after_step(self, row: Row) -> None:
        self._tell("after_step", row)

    def after_evaluation(self, row: Row) -> None:
        self._tell("after_evaluation", row)

    def after_look(self, look: Look) -> None:
        self._tell("after_look", look)

    def state_dict(self) -> dict[str, Any]:
        for index, state in self._tell("state_dict").items():
            self._states[str(index)] = state
        return dict(self._states)

    def end(self, result: Mapping[str, Any]) -> None:
        self._tell("end", result)

    def close(self) -> None:
        self._tell("close")
        self._listening.clear()

    def _tell(self, method: str, *what: Any) -> dict[int, Any]:
        """What each one's method gives that does not fail."""
        given: dict[int, Any] = {}
        for index, callback in list(self._listening.items()):
            try:
                given[index] = getattr(callback, method)(*what)
            except RunFolderError:
                raise
            except Exception as error:
                del self._listening[index]
                self._warn(f"goes on without {_name(callback)}: {_reason(error)}")
                with contextlib.suppress(Exception):
                    callback.close()
        return given


def _name(callback: Callback) -> str:
    return f"callbacks.{CALLBACKS.name_of(callback)}"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
