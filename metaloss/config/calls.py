"""Calls: a component with the arguments that a gin file binds, held against its signature.

gin passes any value to any parameter; here a value is compared with the parameter's annotation
before anything is built, so that components (and plugins) need no type checks of their own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from metaloss.config.registry import REGISTRIES
from metaloss.errors import ConfigError, InputError, did_you_mean

WORDS = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string in quotes",
    NoneType: "None",
    dict: "a dict",
    list: "a list",
    tuple: "a tuple",
}


@dataclass(frozen=True)
class Call:
    """A component and its arguments: `@kind.name()`, or a recipe for later, `@kind.name`.

    A recipe is passed on as the call itself; who receives it calls it with what is left.
    """

    text: str  #: as gin writes it: "@scope/kind.name()"
    component: Callable[..., Any]
    evaluate: bool  #: whether it stands for its result
    arguments: dict[str, Any]  #: what is bound; values may hold further calls
    places: dict[str, str]  #: where each argument was written
    place: str  #: where the reference itself was written

    def __repr__(self) -> str:
        return self.text

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The component, for `inspect.unwrap`."""
        return self.component

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """Builds the arguments, then calls the component.

        Raises:
            ConfigError: the component refuses its arguments.
        """
        arguments = {name: build(value) for name, value in self.arguments.items()}
        with self._explaining_refusal():
            return self.component(*positional, **arguments, **named)

    @property
    def result(self) -> type | None:
        """The class of what the component returns, as far as it is known."""
        if inspect.isclass(self.component):
            return self.component
        returned = annotations_of(self.component).get("return")
        return returned if inspect.isclass(returned) and returned is not Any else None

    @contextmanager
    def _explaining_refusal(self) -> Iterator[None]:
        """Adds to the component's objection where the arguments were written."""
        try:
            yield
        except (TypeError, ValueError, RuntimeError) as error:
            message = (str(error).splitlines() or [type(error).__name__])[0]
            if not isinstance(error, InputError):
                message = f"{self.text.strip('@()')}: {message}"
            blamed = [
                place
                for name, place in self.places.items()
                if re.search(rf"\b{name}\b", message, re.IGNORECASE)
            ]
            where = " and ".join(dict.fromkeys(blamed)) or self.place
            raise ConfigError(f"{message} · in {where}") from error


def build(value: Any) -> Any:
    """The value with every call in it made, in containers of its own; recipes stay calls."""
    if isinstance(value, Call):
        return value() if value.evaluate else value
    if isinstance(value, dict):
        return {build(key): build(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(build(item) for item in value)
    return value


def annotations_of(component: Callable[..., Any]) -> dict[str, Any]:
    """Type hints by parameter; none where they cannot be evaluated."""
    function = component.__init__ if inspect.isclass(component) else component  # type: ignore[misc]
    try:
        return get_type_hints(inspect.unwrap(function))
    except (NameError, TypeError, AttributeError):
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value, or what a call will give, is what an annotation asks for.

    Annotations that are not understood fit everything.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in inner)
    if isinstance(value, Call):
        return _call_fits(value, hint)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if origin is tuple and Ellipsis not in inner:
        whole = isinstance(value, (list, tuple)) and len(value) == len(inner)
        return whole and all(map(fits, value, inner))
    if _is_a(origin, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(item, inner[0]) for item in value)
    if _is_a(origin, Mapping):
        return isinstance(value, dict)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if origin is Callable:
        return False  # of what gin can write, only a component can be called
    return hint is Any or not inspect.isclass(hint) or _is_a(type(value), hint)


def describe(hint: Any, value: Any = None) -> str:
    """What an annotation asks for, in the words of gin files; the word nearest to `value`."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(describe(option, value) for option in inner)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}{did_you_mean(str(value), map(str, inner))}"
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}: {', '.join(map(describe, inner))}"
    if _is_a(origin, Sequence):
        return f"a list, each item {describe(inner[0])}"
    return _example(hint) or WORDS.get(origin or hint, str(hint))


def _call_fits(call: Call, hint: Any) -> bool:
    if get_origin(hint) is Callable:
        asked = get_args(hint)[1]
        return not call.evaluate and (call.result is None or _is_a(call.result, asked))
    if not inspect.isclass(hint) or hint is Any:
        return get_origin(hint) is None
    return call.evaluate and (call.result is None or _is_a(call.result, hint))


def _example(hint: Any) -> str | None:
    """The kind of component that an annotation asks for, with an example."""
    for kind, registry in REGISTRIES.items():
        for name, component in registry.items():
            call = Call("", component, not registry.supplied, {}, {}, "")
            if hint is not Any and call.result is not None and _call_fits(call, hint):
                return f"one of {kind}, such as {reference(kind, name)}"
    return None


def reference(kind: str, name: str) -> str:
    """A component as a gin file refers to it: `@kind.name()`, or `@kind.name` for a recipe."""
    return f"@{kind}.{name}" + ("" if REGISTRIES[kind].supplied else "()")


def _is_a(found: Any, asked: Any) -> bool:
    try:
        return inspect.isclass(found) and inspect.isclass(asked) and issubclass(found, asked)
    except TypeError:  # a Protocol or a TypedDict, which cannot be asked
        return True
