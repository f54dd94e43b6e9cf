"""The errors whose message is meant for the person at the keyboard."""

from __future__ import annotations

import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import TypeVar

Words = TypeVar("Words")

#: Packages that need not be there for all of metaloss, and the extras that bring them.
EXTRAS = {
    **dict.fromkeys(("torchvision", "timm", "PIL"), "images"),
    **dict.fromkeys(("polars", "sklearn"), "tables"),
    **dict.fromkeys(("matplotlib", "scipy", "jinja2", "joblib"), "reports"),
    "tensorboard": "tensorboard",
}


class InputError(ValueError):
    """What was given cannot be used: a config, a data file, a run folder, an optimizer.

    The message is one line: what was asked, what is near or known, where it was written. The tools
    print it and exit with code 2; any other exception is a bug of ours and keeps its traceback.

    Attributes:
        place: where the cause was written, in a gin file or on the command line; told by who read
            it, for what raises the error does not know.
    """

    place: str | None = None

    @property
    def message(self) -> str:
        """The line without the place."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return f"{self.message} · in {self.place}" if self.place else self.message


class ConfigError(InputError):
    """A gin file, a gin binding or a component's argument that cannot be used."""


class ArgumentError(ConfigError):
    """An argument that a component cannot use: `kind.name.argument = value: give ...`.

    Args:
        argument: its name.
        value: what was given.
        asked: what to give in its place.

    Attributes:
        component: "kind.name", told by the component's registry.
    """

    component = ""

    def __init__(self, argument: str, value: object, asked: str) -> None:
        super().__init__(argument, value, asked)
        self.argument = argument

    @property
    def message(self) -> str:
        argument, value, asked = self.args
        name = f"{self.component}.{argument}".lstrip(".")
        shown = textwrap.shorten(repr(value), 200, placeholder=" …")
        return f"{name} = {shown}: give {asked}"


class DataError(InputError):
    """A data file that is missing, cut short or not what it should be."""


class RunFolderError(InputError):
    """A run folder or a checkpoint that cannot be written to or continued from."""


class UncertifiedOptimizerError(InputError):
    """A base optimizer whose step the meta-gradient engines do not know."""


class UnsupportedModelError(InputError):
    """A model that the chosen engine cannot differentiate."""


class UncertifiedError(UnsupportedModelError):
    """A meta-gradient that was found to be another than that of the step that was made."""


class MissingGradientError(InputError):
    """No meta-parameter received a usable gradient, so the loss could never learn."""


class HealthWarning(UserWarning):
    """A learned loss that does not work, as far as it shows; see `metaloss.problem.health`."""


class LostProcessError(Exception):
    """Of the processes that share a run, another one has ended or does not answer.

    No InputError, as nothing that was given is wrong; the run's last checkpoint stands.
    """


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """A clause naming the known word nearest to `asked`, or nothing if none is near."""
    near = difflib.get_close_matches(asked, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def exit_code(error: Exception) -> int:
    """Of a command that ends with this error: 2 if what was given cannot be used, else 1."""
    return 2 if isinstance(error, InputError) else 1


def lacks(error: BaseException) -> str | None:
    """The line for a package that an extra brings and that is not there; None: it is not that."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRAS:
        return None
    return f"this needs {package}, which is not installed: install metaloss[{EXTRAS[package]}]"


def answered(command: Callable[[Words], int], words: Words) -> int:
    """The exit code of a command line; an error that is meant for a person is one line.

    Args:
        command: carries it out; gives the exit code.
        words: the parsed command line.
    """
    try:
        code = command(words)
        sys.stdout.flush()
        return code
    except ModuleNotFoundError as error:
        if (lacking := lacks(error)) is None:
            raise
        print(f"error: {lacking}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read what it prints wants no more, as `| head`
        # Python flushes it once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell says of SIGPIPE
    except (InputError, LostProcessError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr)
        return exit_code(error)
