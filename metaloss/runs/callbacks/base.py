"""What a callback is: somebody who is told how a run goes, and cannot change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from metaloss.config.registry import Registry
from metaloss.runs.metrics import Row


@dataclass(frozen=True)
class Start:
    """A run that begins, or goes on."""

    folder: Path  #: the run folder, where a callback may keep files
    config: str  #: complete, as config.gin
    names: Mapping[str, str]  #: task, backbone and method
    seed: int
    metric: str  #: "error_rate" or "mse"
    done: Mapping[str, int]  #: steps made so far, by phase: "initialization", "train"
    rows: int = 0  #: of metrics.jsonl so far; what a killed process told beyond comes again

    @property
    def fresh(self) -> bool:
        """Whether the training is still to begin."""
        return not self.done["train"]


@dataclass(frozen=True)
class Look:
    """What is to be seen of the learned loss at a step of the training, by tag."""

    step: int
    texts: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)  #: for histograms
    images: Mapping[str, bytes] = field(default_factory=dict)  #: PNG


class Callback:
    """Is told how a run goes; a method that is not overridden lets it pass.

    Contract, held by `metaloss.testing.check_callback`: it changes nothing that it is given, and
    draws from no global generator, so that the run is the same bits with it and without;
    `state_dict` is plain data, and a run that was killed goes on from its last checkpoint with what
    that gave; a Python process may hold several at once, of several seeds.

    Only the first of several processes tells it anything. What it raises in `begin` ends the
    command, for nothing is lost yet; what it raises later costs the run this callback alone, with
    a warning. A RunFolderError always ends the command: the run could not write either.
    """

    def begin(self, start: Start, state: Mapping[str, Any]) -> None:
        """The run begins, or goes on.

        Args:
            start: which run it is, and where it stands.
            state: what `state_dict` gave at the checkpoint that the run goes on from; else empty.

        Raises:
            InputError: a package is missing, or a service cannot be reached.
        """

    def after_step(self, row: Row) -> None:
        """A row of metrics.jsonl: of a step that is logged, of indices of the loss, a warning.

        Args:
            row: not to be changed; "phase" and "step" say where it stands.
        """

    def after_evaluation(self, row: Row) -> None:
        """A row of metrics.jsonl: loss and metric on the row's "split"."""

    def after_look(self, look: Look) -> None:
        """The learned loss was looked at, `Runner.figures` times in a training."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data that the run's checkpoint keeps, see `begin`."""
        return {}

    def end(self, result: Mapping[str, Any]) -> None:
        """The run has ended by itself, with the content of result.json; figures are drawn."""

    def close(self) -> None:
        """The process leaves the run, whatever has become of it: ended, stopped or broken."""


CALLBACKS = Registry("callbacks", Callback)
