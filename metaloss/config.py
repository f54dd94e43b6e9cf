"""The only reader of gin files: from files and bindings to a Runner, with errors that teach.

gin builds objects and is done: the Runner receives them and never reads gin. What a run will use is
found by following the references from `Runner` through the bindings, before anything is built; the
rest is reported as unread.
"""

from __future__ import annotations

import difflib
import importlib.util  # noqa: F401  (gin uses importlib.util without importing it)
import inspect
import logging
import re
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin

from metaloss.errors import ConfigError, InputError, did_you_mean
from metaloss.registry import REGISTRIES
from metaloss.runner import Runner

ROOT = "metaloss.Runner"
gin.register("Runner", module="metaloss")(Runner)

#: Shipped gin files: beside the package in a checkout, inside it when installed.
_HERE = Path(__file__).parent
CONFIG_DIR = next((d for d in (_HERE.parent / "gin_configs", _HERE / "gin_configs") if d.is_dir()))
gin.add_config_file_search_path(str(CONFIG_DIR))


@dataclass(frozen=True)
class Config:
    """A parsed configuration.

    Attributes:
        text: every parameter of every component that the run uses, defaults included, as a gin file
            that loads back to the same run.
        unread: bindings that no component of the run reads, such as "representations.nn.hidden".
    """

    text: str
    unread: tuple[str, ...]


def load(files: Sequence[str | Path], bindings: Sequence[str] = ()) -> Config:
    """Parses gin files, then single bindings; later ones win. Plugins are imported before.

    Args:
        files: paths, or paths inside the shipped `gin_configs`.
        bindings: such as "Runner.steps = 500".

    Raises:
        ConfigError: a file is missing; a name, parameter, value or macro is unknown; a required
            parameter is not set.
    """
    gin.clear_config(clear_constants=True)
    for file in files:
        path = find(file)
        with _explaining_parse_errors(str(file)):
            gin.parse_config_file(str(path))
    for binding in bindings:
        with _explaining_parse_errors(f"--gin_param {binding!r}"):
            gin.parse_config(binding)
    return _resolve_all()


def build() -> Runner:
    """The Runner of the configuration that was loaded last, with everything it holds.

    Whatever draws random numbers in a constructor (a representation) draws them here: seed first.

    Raises:
        ConfigError: a component refuses its arguments.
    """
    with explaining_calls():
        return gin.get_configurable(ROOT)()


@contextmanager
def explaining_calls() -> Iterator[None]:
    """Turns what a component raises about its arguments, when gin calls it, into a ConfigError."""
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        message, _, call = str(error).partition("\n  In call to configurable ")
        if not call:
            raise
        name = call.split("'")[1]
        raise ConfigError(f"{name}: {message.splitlines()[0]}") from error


def find(file: str | Path) -> Path:
    """The path of a gin file: as given, or inside the shipped `gin_configs`.

    Raises:
        ConfigError: there is none; the nearest shipped file is named.
    """
    for path in (Path(file), CONFIG_DIR / file):
        if path.is_file():
            return path
    shipped = sorted(p.relative_to(CONFIG_DIR).as_posix() for p in CONFIG_DIR.rglob("*.gin"))
    near = did_you_mean(Path(file).as_posix().removeprefix("gin_configs/"), shipped)
    raise ConfigError(f"no gin file '{file}'{near or ' · shipped: ' + ', '.join(shipped)}")


class _Resolution:
    """Follows the references from the root through the bindings that were parsed."""

    def __init__(self) -> None:
        self.bindings: dict[tuple[str, str], dict[str, Any]] = gin.config._CONFIG
        self.read: set[tuple[str, str, str]] = set()
        self.components: dict[tuple[str, str], dict[str, Any]] = {}

    def follow(self, scope: str, selector: str, evaluated: bool) -> None:
        """Notes a component's parameters, bound or default, and follows what they refer to."""
        if (scope, selector) in self.components:
            return
        parameters = inspect.signature(gin.config._REGISTRY[selector].wrapped).parameters
        values = {
            name: p.default for name, p in parameters.items() if p.default is not p.empty
        }
        parts = scope.split("/") if scope else []
        for depth in range(len(parts) + 1):
            outer = "/".join(parts[:depth])
            for name, value in self.bindings.get((outer, selector), {}).items():
                self.read.add((outer, selector, name))
                values[name] = value
        missing = [name for name in parameters if name not in values]
        if evaluated and missing:
            raise ConfigError(
                f"{_name(selector)}.{missing[0]} is not set: add --gin_file or --gin_param "
                f"'{_name(selector)}.{missing[0]} = ...'"
            )
        resolved = self.components[scope, selector] = {}
        for name in parameters:  # in the order of the signature
            if name in values:
                resolved[name] = self._resolve(values[name], scope)

    def _resolve(self, value: Any, scope: str) -> Any:
        """The value with macros replaced by theirs, its references followed."""
        if isinstance(value, gin.config.ConfigurableReference):
            *scopes, _ = value.scoped_selector.split("/")
            if value.selector == "gin.macro":
                return self._macro("/".join(scopes))
            inner = "/".join(scopes) or scope
            self.follow(inner, value.selector, value.evaluate)
            call = "()" if value.evaluate else ""
            return _Reference("@" + "/".join([*scopes, _name(value.selector)]) + call)
        if isinstance(value, dict):
            return {key: self._resolve(item, scope) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._resolve(item, scope) for item in value)
        return value

    def _macro(self, name: str) -> Any:
        bound = self.bindings.get((name, "gin.macro"))
        if bound is None:
            raise ConfigError(f"%{name} is used but never set: add '{name} = ...' to a gin file")
        self.read.add((name, "gin.macro", "value"))
        return self._resolve(bound["value"], "")


class _Reference(str):
    """A reference as gin writes it: prints bare inside values."""

    def __repr__(self) -> str:
        return str(self)


def _resolve_all() -> Config:
    resolution = _Resolution()
    resolution.follow("", ROOT, evaluated=True)
    unread = tuple(
        scope if selector == "gin.macro" else "/".join([*scope.split("/"), key]).lstrip("/")
        for (scope, selector), values in resolution.bindings.items()
        for name in values
        for key in [f"{_name(selector)}.{name}"]
        if (scope, selector, name) not in resolution.read
    )
    blocks = []
    for (scope, selector), values in resolution.components.items():
        prefix = f"{scope}/{_name(selector)}".lstrip("/")
        blocks.append("".join(f"{prefix}.{key} = {value!r}\n" for key, value in values.items()))
    return Config("\n".join(block for block in blocks if block), unread)


def _name(selector: str) -> str:
    return selector.removeprefix("metaloss.")


@contextmanager
def _explaining_parse_errors(source: str) -> Iterator[None]:
    """Turns gin's parse errors into one line: what was asked, what is near, where it stands."""
    root_logger = logging.getLogger()
    root_logger.addFilter(_without_search_misses)
    try:
        yield
    except InputError:
        raise
    except (OSError, SyntaxError, tokenize.TokenError, ValueError, RuntimeError) as error:
        message, _, place = str(error).partition("\n  In ")
        file = re.match(r'file "([^"]+)", line (\d+)', place)
        line = re.search(r"\(.*?line (\d+)\)$", message)
        if file:
            source = f"{file[1]}:{file[2]}"
        elif line and not source.startswith("--gin_param"):
            source = f"{source}:{line[1]}"
        raise ConfigError(f"{_explain(error, message)} · in {source}") from None
    finally:
        root_logger.removeFilter(_without_search_misses)


def _explain(error: Exception, message: str) -> str:
    if reference := re.search(r"No configurable matching (?:reference )?'@?([^'(]+)", message):
        return _unknown_name(reference[1].split("/")[-1])
    if parameter := re.search(r"Configurable '([^']+)' doesn't have a parameter named '(.+)'", message):
        selector, name = parameter.groups()
        known = list(inspect.signature(gin.config._REGISTRY[selector].wrapped).parameters)
        takes = f"it takes: {', '.join(known)}" if known else "it takes none"
        return f"{_name(selector)} has no parameter '{name}'{did_you_mean(name, known)}; {takes}"
    if isinstance(error, OSError):
        return message.splitlines()[0].split(". Searched")[0]
    if isinstance(error, (SyntaxError, tokenize.TokenError)):
        return (
            "not a gin value or statement: write 'name.parameter = value', strings in quotes, "
            "components as @kind.name(), macros as %NAME"
        )
    return message.splitlines()[0]


def _unknown_name(asked: str) -> str:
    kind, _, name = asked.rpartition(".")
    if kind in REGISTRIES:
        return REGISTRIES[kind].describe_unknown(name)
    known = [f"{kind}.{name}" for kind, registry in REGISTRIES.items() for name in registry]
    near = difflib.get_close_matches(asked, known, n=2) or [k for k in known if k.endswith(f".{name}")]
    return f"no component '{asked}'; near: {', '.join(near) or 'nothing'} · kinds: {', '.join(REGISTRIES)}"


def _without_search_misses(record: logging.LogRecord) -> bool:
    """gin logs an error for each place where an included file is not, even if the next has it."""
    return not str(record.msg).startswith("Path not found")
