"""Gin files: what they say, parameter by parameter, and where each word was written.

gin's parser reads, and gin's registry knows the names; an unknown name, parameter or file is an
error that shows the nearest known one and the place.
"""

from __future__ import annotations

import difflib
import importlib
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gin
from gin import config_parser

from metaloss.config.arguments import require_parameters
from metaloss.config.paths import asked_for
from metaloss.config.registry import REGISTRIES, ROOTS
from metaloss.errors import ConfigError, InputError, did_you_mean, first_line

#: Shipped gin files: beside the package in a checkout, inside it when installed.
_HERE = Path(__file__).parent.parent
CONFIG_DIR = next(d for d in (_HERE.parent / "gin_configs", _HERE / "gin_configs") if d.is_dir())

#: What a gin file may be about, and who takes it: the module of a root may not be imported.
TAKEN_BY = {
    "Runner": "tools/train.py --gin_file",
    "Sweep": "tools/sweep.py (plan, run and so on)",
    "Search": "tools/sweep.py search",
}

SYNTAX = (
    "not a gin value or statement: write 'name.parameter = value', strings in quotes, components "
    "as @kind.name(), macros as %NAME"
)


def find(file: str | Path, beside: Path = Path()) -> Path:
    """The path of a gin file: as given, or inside the shipped `gin_configs`.

    Args:
        file: the path that was asked for.
        beside: the folder of the file that includes it.

    Raises:
        InputError: there is none; the nearest shipped file is named.
    """
    file = asked_for(file, "--gin_file")
    for folder in (beside, Path(), CONFIG_DIR, CONFIG_DIR.parent):
        if (folder / file).is_file():
            return folder / file
    near = did_you_mean(file.as_posix().removeprefix("gin_configs/"), shipped())
    raise ConfigError(f"no gin file '{file}'{near or ' · `metaloss copy` lists those that ship'}")


def shipped() -> list[str]:
    """The shipped gin files, by their paths in `gin_configs`."""
    return sorted(path.relative_to(CONFIG_DIR).as_posix() for path in CONFIG_DIR.rglob("*.gin"))


@dataclass(frozen=True, repr=False)
class Reference:
    """`@scope/kind.name()`, as it was written."""

    name: str
    evaluate: bool

    def __repr__(self) -> str:
        return f"@{self.name}{'()' * self.evaluate}"


@dataclass(frozen=True)
class Macro:
    """`%NAME`."""

    name: str


@dataclass(frozen=True)
class Bound:
    """A value, and where it was written."""

    value: Any
    place: str


class _Delegate(config_parser.ParserDelegate):
    """Keeps references and macros as they stand; they are looked up when they are followed."""

    def configurable_reference(self, name: str, evaluate: bool) -> Reference:
        return Reference(name, evaluate)

    def macro(self, name: str) -> Macro:
        return Macro(name)


@dataclass
class Source:
    """What gin files and single bindings say; of two for the same parameter the later holds."""

    bindings: dict[tuple[str, str, str], Bound] = field(default_factory=dict)
    macros: dict[str, Bound] = field(default_factory=dict)
    imports: list[str] = field(default_factory=list)
    open_files: list[Path] = field(default_factory=list)

    def read_file(self, path: Path) -> None:
        """Reads a gin file and what it includes."""
        if path.resolve() in self.open_files:
            raise ConfigError(f"{path} includes itself")
        try:
            text = path.read_text(encoding="utf-8-sig")  # Windows editors write a mark
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
        self.open_files.append(path.resolve())
        self.read(text, lambda line: f"{path}:{line}", path.parent)
        self.open_files.pop()

    def read(self, text: str, place_of: Callable[[int], str], folder: Path) -> None:
        """Reads gin statements.

        Args:
            text: of a file, or of a binding.
            place_of: names a line of it.
            folder: where includes are looked for first.
        """
        for line, statement in _statements(text, place_of):
            if isinstance(statement, config_parser.IncludeStatement):
                with _placing(place_of(line)):
                    path = find(statement.filename, folder)
                self.read_file(path)
            else:
                with _placing(place_of(line)):
                    self._enter(statement, place_of(line))

    def _enter(self, statement: Any, place: str) -> None:
        if isinstance(statement, config_parser.ImportStatement):
            _import(statement.module)
            self.imports.append(statement.module)
        elif isinstance(statement, config_parser.BlockDeclaration):
            look_up(statement.selector)
        elif not statement.arg_name:
            name = "/".join(filter(None, (statement.scope, statement.selector)))
            self.macros[name] = Bound(statement.value, place)
        else:
            selector = look_up(statement.selector)
            _check_parameter(selector, statement.arg_name)
            for item in flatten(statement.value):
                if isinstance(item, Reference):
                    look_up(item.name.rpartition("/")[2])
            key = (statement.scope, selector, statement.arg_name)
            self.bindings[key] = Bound(statement.value, place)


def bindings_of(text: str, place: str) -> dict[str, Any]:
    """What gin statements bind, by `scope/kind.name.parameter`: nothing is looked up or imported.

    For the complete config of a run, whose components may be of another version, or not here.

    Raises:
        ConfigError: the text is no gin.
    """
    return {
        f"{statement.scope}/{statement.selector}.{statement.arg_name}".lstrip("/"): statement.value
        for _, statement in _statements(text, lambda line: f"{place}:{line}")
        if isinstance(statement, config_parser.BindingStatement)
    }


@contextmanager
def _placing(place: str) -> Iterator[None]:
    """Tells an error where its cause was written."""
    try:
        yield
    except InputError as error:
        error.place = place
        raise


def _statements(text: str, place_of: Callable[[int], str]) -> Iterator[tuple[int, Any]]:
    """gin's statements, each with its line."""
    try:
        for statement in config_parser.ConfigParser(text, _Delegate()):
            yield statement.location.line_num, statement
    except (SyntaxError, tokenize.TokenError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else error.args[1][0]
        raise ConfigError(f"{SYNTAX} · in {place_of(line or 1)}") from None


def look_up(name: str) -> str:
    """The full name of a component, which may be given by its last words if they are unique."""
    registry = gin.config._REGISTRY
    if name in TAKEN_BY and name not in ROOTS:
        raise ConfigError(f"a {name} is what {TAKEN_BY[name]} takes")
    found = [f"metaloss.{name}"] if name in ROOTS else registry.matching_selectors(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"'{name}' is ambiguous: {', '.join(sorted(map(short, found)))}")
    kind, _, last = name.rpartition(".")
    if kind in REGISTRIES:
        raise ConfigError(REGISTRIES[kind].describe_unknown(last))
    known = [*ROOTS, *(f"{kind}.{name}" for kind, names in REGISTRIES.items() for name in names)]
    near = [k for k in known if k.endswith(f".{last}")]
    near = near or difflib.get_close_matches(name, known, n=2)
    kinds = ", ".join(sorted(REGISTRIES))
    raise ConfigError(f"no component '{name}'; near: {', '.join(near) or 'none'} · kinds: {kinds}")


def component_of(selector: str) -> Callable[..., Any]:
    """The component of a full name, untouched by gin."""
    return gin.config._REGISTRY[selector].wrapped


def supplied_to(selector: str) -> tuple[str, ...]:
    """The parameters of a component that the run gives; none, if it is no recipe."""
    registry = REGISTRIES.get(selector.rpartition(".")[0])
    return registry.supplied if registry else ()


def _check_parameter(selector: str, name: str) -> None:
    supplied = supplied_to(selector)
    if name in supplied:
        raise ConfigError(f"{selector}.{name} is given by the run")
    require_parameters([name], component_of(selector), short(selector), supplied)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a stranger's code: anything may come
        reason = first_line(error)
        raise ConfigError(f"import {module}: {type(error).__name__}: {reason}") from error


def short(selector: str) -> str:
    """A full name as gin files write it."""
    return selector.removeprefix("metaloss.")


def flatten(value: Any) -> Iterator[Any]:
    """What stands in a value's lists, tuples and dicts, at any depth; the value itself if none."""
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from flatten(item)
    else:
        yield value
