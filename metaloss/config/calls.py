"""Calls: a component with the arguments that a gin file binds, to be made later."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from metaloss.config.arguments import Later, annotations_of, describe, is_a
from metaloss.config.registry import REGISTRIES
from metaloss.errors import ArgumentError, InputError


@dataclass(frozen=True)
class Call(Later):
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
            InputError: the component refuses its arguments; the place of the one it names, or of
                the reference, is added. Anything else that it raises is a bug and stays as it is.
        """
        arguments = {name: build(value) for name, value in self.arguments.items()}
        try:
            return self.component(*positional, **arguments, **named)
        except InputError as error:
            named_by_it = error.argument if isinstance(error, ArgumentError) else ""
            error.place = error.place or self.places.get(named_by_it, self.place)
            raise

    @property
    def result(self) -> type | None:
        """The class of what the component returns, as far as it is known."""
        if inspect.isclass(self.component):
            return self.component
        returned = annotations_of(self.component).get("return")
        return returned if inspect.isclass(returned) and returned is not Any else None

    def fits(self, hint: Any) -> bool:
        if get_origin(hint) is Callable:
            result = get_args(hint)[1]
            return not self.evaluate and (self.result is None or is_a(self.result, result))
        if not inspect.isclass(hint) or hint is Any:
            return get_origin(hint) is None
        return self.evaluate and (self.result is None or is_a(self.result, hint))


def build(value: Any) -> Any:
    """The value with every call in it made, in containers of its own; recipes stay calls."""
    if isinstance(value, Call):
        return value() if value.evaluate else value
    if isinstance(value, dict):
        return {build(key): build(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(build(item) for item in value)
    return value


def asked(hint: Any) -> str:
    """What an annotation asks for, in the words of gin files, which name components."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return " or ".join(_example(option) or describe(option) for option in options)


def _example(hint: Any) -> str | None:
    """The kind of component that an annotation asks for, with an example."""
    for kind, registry in REGISTRIES.items():
        for name, component in registry.items():
            call = Call("", component, not registry.supplied, {}, {}, "")
            if hint is not Any and call.result is not None and call.fits(hint):
                return f"one of {kind}, such as {reference(kind, name)}"
    return None


def reference(kind: str, name: str) -> str:
    """A component as a gin file refers to it: `@kind.name()`, or `@kind.name` for a recipe."""
    return f"@{kind}.{name}" + ("" if REGISTRIES[kind].supplied else "()")
