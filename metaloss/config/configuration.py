"""Configurations: from gin files and bindings to a Runner or a Sweep, with errors that teach.

What a run will use is found by following the references from `Runner` through the bindings; what no
reference leads to is reported as unread. Components are called plainly, after everything was
checked: the Runner receives objects and never reads gin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from metaloss.config.arguments import annotations_of, fits, nearest, parameters_of
from metaloss.config.calls import Call, asked, reference
from metaloss.config.gin_files import (
    TAKEN_BY,
    Bound,
    Macro,
    Reference,
    Source,
    component_of,
    find,
    flatten,
    look_up,
    short,
    supplied_to,
)
from metaloss.config.registry import REGISTRIES
from metaloss.errors import ArgumentError, ConfigError, did_you_mean


@dataclass(frozen=True)
class Config:
    """A configuration: checked, nothing built yet.

    Attributes:
        text: every parameter of every component that the run uses, defaults included, as a gin file
            that loads back to the same run.
        unread: bindings that no component of the run reads, and where they are.
    """

    text: str
    unread: tuple[str, ...]
    _root: Call

    def build(self) -> Any:
        """The Runner (or Sweep), with everything it holds.

        Whatever draws random numbers in a constructor (a representation) draws them here: seed
        first.

        Raises:
            ConfigError: a component refuses its arguments.
        """
        return self._root()


def load(
    files: Sequence[str | Path],
    bindings: Sequence[str] = (),
    root: Literal["Runner", "Sweep", "Search"] = "Runner",
) -> Config:
    """Reads gin files, then single bindings; later ones win. Plugins are imported before.

    Args:
        files: paths, or paths inside the shipped `gin_configs`.
        bindings: such as "Runner.steps = 500".
        root: what is to be built.

    Raises:
        ConfigError: a file is missing; a name, parameter, value or macro is unknown; a value does
            not fit its parameter; a required parameter is not set.
    """
    source = Source()
    for file in files:
        source.read_file(find(file))
    for binding in bindings:
        source.read(binding, partial(_place_of_line, binding), Path())
    about = [name for name in TAKEN_BY if any(k[1] == f"metaloss.{name}" for k in source.bindings)]
    if about and root not in about:
        raise ConfigError(f"there is no {root}: a {about[0]} is what {TAKEN_BY[about[0]]} takes")
    resolution = _Resolution(source)
    called = resolution.call(Reference(root, evaluate=True), "", "the command line")
    blocks = [f"import {module}\n" for module in source.imports] + list(resolution.blocks.values())
    return Config("\n".join(filter(None, blocks)), tuple(resolution.unread()), called)


def _place_of_line(binding: str, line: int) -> str:
    return place_of(binding)


def place_of(binding: str) -> str:
    """How errors and `Config.unread` name a single binding."""
    return f"--gin_param {binding!r}"


class _Resolution:
    """Follows the references from the root; checks every value on the way."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.blocks: dict[tuple[str, str], str] = {}  # gin text, by scope and selector
        self.read: set[tuple[str, str, str] | str] = set()
        self.path: list[Any] = []  # from the root to what is being followed

    def call(self, asked: Reference, scope: str, place: str) -> Call:
        """A reference with its arguments, which may hold further calls."""
        own_scope, _, name = asked.name.rpartition("/")
        scope, selector = own_scope or scope, look_up(name)
        component, supplied = component_of(selector), supplied_to(selector)
        text = f"@{_path(own_scope, selector)}{'()' * asked.evaluate}"
        kind, _, name = selector.rpartition(".")
        if kind in REGISTRIES and asked.evaluate == bool(supplied):
            why = f"the run calls it with {', '.join(supplied)}" if supplied else "to make it"
            raise ConfigError(f"{text}: write {reference(kind, name)}, {why} · in {place}")
        bound = self._bindings(scope, selector)
        hints, path = annotations_of(component), _path(scope, selector)
        arguments, lines = {}, []
        self.blocks[scope, selector] = ""  # its place in the text: before what it refers to
        with self._once((scope, selector), text, place):
            for name, parameter in parameters_of(component).items():
                if name in supplied:
                    continue
                full_name = f"{path}.{name}"
                if name in bound:
                    value = self._argument(bound[name], scope, path, name, hints.get(name, Any))
                    arguments[name] = value
                elif parameter.default is parameter.empty:
                    raise ConfigError(
                        f"{full_name} is not set: add it to a gin file, or --gin_param "
                        f"'{full_name} = ...'"
                    )
                else:
                    value = parameter.default
                if _is_writable(value):  # else it is a default, and holds without being written
                    lines.append(f"{full_name} = {written(value)}\n")
        self.blocks[scope, selector] = "".join(lines)
        places = {name: bound[name].place for name in arguments}
        return Call(text, component, asked.evaluate, arguments, places, place)

    def unread(self) -> Iterator[str]:
        """Bindings that nothing reads, and where they are."""
        for key, bound in self.source.bindings.items():
            if key not in self.read:
                scope, selector, name = key
                yield f"{_path(scope, selector)}.{name} in {bound.place}"
        for name, bound in self.source.macros.items():
            if name not in self.read:
                yield f"macro {name} (no dot, so no parameter) in {bound.place}"

    def _bindings(self, scope: str, selector: str) -> dict[str, Bound]:
        """A component's bindings in a scope; inner scopes win."""
        keys: dict[str, tuple[str, str, str]] = {}
        parts = scope.split("/") if scope else []
        for depth in range(len(parts) + 1):
            outer = "/".join(parts[:depth])
            keys |= {k[2]: k for k in self.source.bindings if k[:2] == (outer, selector)}
        self.read |= set(keys.values())
        return {name: self.source.bindings[key] for name, key in keys.items()}

    def _argument(self, bound: Bound, scope: str, component: str, name: str, hint: Any) -> Any:
        value = self._value(bound, scope, f"{component}.{name}")
        if not fits(value, hint):
            error = ArgumentError(name, value, asked(hint) + nearest(hint, value))
            error.component, error.place = component, bound.place
            raise error
        return value

    def _value(self, bound: Bound, scope: str, name: str) -> Any:
        """The value with macros replaced by theirs, and its references followed."""
        value, place = bound.value, bound.place
        if isinstance(value, Reference):
            return self.call(value, scope, place)
        if isinstance(value, Macro):
            return self._macro(value.name, place, name)
        if isinstance(value, dict):
            return {
                self._value(Bound(k, place), scope, name): self._value(Bound(v, place), scope, name)
                for k, v in value.items()
            }
        if isinstance(value, (list, tuple)):
            return type(value)(self._value(Bound(item, place), scope, name) for item in value)
        return value

    def _macro(self, macro: str, place: str, name: str) -> Any:
        if macro == "gin.REQUIRED":
            raise ConfigError(f"{name} must be set: it is %gin.REQUIRED · in {place}")
        if macro not in self.source.macros:
            near = did_you_mean(macro, self.source.macros)
            raise ConfigError(
                f"%{macro} is used but never set{near}; add '{macro} = ...' · in {place}"
            )
        self.read.add(macro)
        with self._once(macro, f"%{macro}", place):
            return self._value(self.source.macros[macro], "", name)

    @contextmanager
    def _once(self, node: Any, text: str, place: str) -> Iterator[None]:
        """Following a node, which must not lead to itself."""
        if node in self.path:
            raise ConfigError(f"{text} refers to itself · in {place}")
        self.path.append(node)
        yield
        self.path.pop()


def _path(scope: str, selector: str) -> str:
    """A component in a scope, as gin files write it."""
    return f"{scope}/{short(selector)}" if scope else short(selector)


def _is_writable(value: Any) -> bool:
    """Whether gin files have a word for it."""
    return all(
        isinstance(item, (bool, int, float, str, bytes, type(None), Call)) and item == item
        for item in flatten(value)
    )


def written(value: Any) -> str:
    """A value as a gin file writes it."""
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(k)}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        items = ", ".join(map(written, value))
        if isinstance(value, list):
            return f"[{items}]"
        return f"({items},)" if len(value) == 1 else f"({items})"
    return repr(value)
