"""Arguments: what a component may be called with, read from its annotations.

One check serves gin and Python. A component states a range where it states the type,
`lr: PositiveFloat` or `order: Annotated[int, Ge(2)]`, and a choice as `Literal["valid", "train"]`;
gin's values are held against them when a file is loaded, and everybody's at each call. Code in a
component refuses only what two arguments make together, by `raise ArgumentError`.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from metaloss.errors import ArgumentError, ConfigError, did_you_mean

Component = TypeVar("Component", bound=Callable[..., Any])

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
#: A number with a bound is finite, here and in any `Annotated[float, ...]`.
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
FiniteFloat = Annotated[float, Gt(-math.inf)]
#: A part of a whole, which leaves something of it.
Share = Annotated[float, Gt(0), Lt(1)]
Probability = Annotated[float, Ge(0), Le(1)]
#: The weight of the past in a running mean.
Decay = Annotated[float, Ge(0), Lt(1)]

BOUNDS: dict[type, tuple[Callable[[Any, Any], bool], str]] = {
    Gt: (operator.gt, "above"),
    Ge: (operator.ge, "of at least"),
    Lt: (operator.lt, "below"),
    Le: (operator.le, "at most"),
}

WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "True or False",
    str: "a string in quotes",
    NoneType: "None",
    dict: "a dict",
    list: "a list",
    tuple: "a tuple",
}


class Later(ABC):
    """A value that stands for what will be made of it, as gin's references do."""

    @abstractmethod
    def fits(self, hint: Any) -> bool:
        """Whether what will be made is what an annotation asks for, as far as it is known."""


def checked(name: str = "") -> Callable[[Component], Component]:
    """A decorator: every call's arguments are held against the annotations before it is made.

    A class stays itself, and its constructor is wrapped; a function is replaced by its wrapper.

    Args:
        name: how errors call the component, "kind.name".

    Returns:
        The decorator. What it decorates raises ArgumentError for an argument that does not fit.
    """

    def decorate(component: Component) -> Component:
        if not inspect.isclass(component):
            return _checking(component, name)
        component.__init__ = _checking(component.__init__, name)  # type: ignore[method-assign]
        return component

    return decorate


def _checking(function: Any, name: str) -> Any:
    signature = inspect.signature(function)
    named = parameters_of(function)

    @functools.cache  # at the first call: an annotation may name what its module defines later
    def hints() -> dict[str, Any]:
        return annotations_of(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            given = {}  # the call below says it in Python's own words, and names the function
        try:
            for argument, value in given.items():
                if argument in named:
                    check(argument, value, hints().get(argument, Any))
            return function(*args, **kwargs)
        except ArgumentError as error:
            # A recipe passes arguments on to the class it builds: the outermost that has one of
            # this name is what was called.
            if error.argument in named:
                error.component = name
            raise

    call.__signature__ = signature  # type: ignore[attr-defined]  # gin follows no `__wrapped__`
    return call


def check(argument: str, value: Any, hint: Any) -> None:
    """Holds one value against an annotation.

    Raises:
        ArgumentError: it does not fit.
    """
    if not fits(value, hint):
        raise ArgumentError(argument, value, describe(hint) + nearest(hint, value))


def parameters_of(component: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that have a name to be bound by."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(component).parameters
    return {name: p for name, p in parameters.items() if p.kind not in variadic}


def require_parameters(
    names: Iterable[str], component: Callable[..., Any], called: str, supplied: Sequence[str] = ()
) -> None:
    """Raises ConfigError unless a component, less what the run supplies, has such parameters."""
    settable = [name for name in parameters_of(component) if name not in supplied]
    for name in names:
        if name not in settable:
            takes = f"it takes: {', '.join(settable)}" if settable else "it takes none"
            near = did_you_mean(name, settable)
            raise ConfigError(f"{called} has no parameter '{name}'{near}; {takes}")


def annotations_of(component: Callable[..., Any]) -> dict[str, Any]:
    """Type hints by parameter; none where they cannot be evaluated."""
    function = component.__init__ if inspect.isclass(component) else component  # type: ignore[misc]
    try:
        return get_type_hints(inspect.unwrap(function), include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value, or what will be made of it, is what an annotation asks for.

    Annotations that are not understood fit everything.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, inner[0]) and (isinstance(value, Later) or _in_bounds(value, inner[1:]))
    if origin in (Union, UnionType):
        return any(fits(value, option) for option in inner)
    if isinstance(value, Later):
        return value.fits(hint)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if origin is tuple and Ellipsis not in inner:
        return _is_list(value) and len(value) == len(inner) and all(map(fits, value, inner))
    if is_a(origin, Sequence):
        return _is_list(value) and all(fits(item, inner[0]) for item in value)
    if is_a(origin, Mapping):
        return isinstance(value, Mapping)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if origin is Callable:
        return callable(value)
    return hint is Any or not inspect.isclass(hint) or is_a(type(value), hint)


def describe(hint: Any) -> str:
    """What an annotation asks for, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = [_bound(bound) for bound in inner[1:] if type(bound) in BOUNDS]
        return f"{describe(inner[0])} {' and '.join(bounds)}".strip()
    if origin in (Union, UnionType):
        return " or ".join(map(describe, inner))
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}: {', '.join(map(describe, inner))}"
    if is_a(origin, Sequence):
        return f"a list, each item {describe(inner[0])}"
    if is_a(origin, Mapping):
        return WORDS[dict]
    if origin is Callable:
        return f"a function that gives {describe(inner[1])}"
    return WORDS.get(origin or hint) or (hint.__name__ if inspect.isclass(hint) else str(hint))


def nearest(hint: Any, value: Any) -> str:
    """A clause naming the word, of those an annotation lists, that is nearest to a value."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    known = [word for o in options if get_origin(o) is Literal for word in get_args(o)]
    return did_you_mean(str(value), map(str, known))


def is_a(found: Any, asked: Any) -> bool:
    """Whether one is a subclass of the other; of what cannot be asked, it is."""
    try:
        return inspect.isclass(found) and inspect.isclass(asked) and issubclass(found, asked)
    except TypeError:  # a Protocol or a TypedDict
        return True


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _in_bounds(value: Any, bounds: tuple[Any, ...]) -> bool:
    known = [(BOUNDS[type(bound)][0], _limit(bound)) for bound in bounds if type(bound) in BOUNDS]
    finite = not isinstance(value, float) or math.isfinite(value)
    return not known or (finite and all(holds(value, limit) for holds, limit in known))


def _bound(bound: Any) -> str:
    limit = _limit(bound)
    if limit == -math.inf:
        return "that is finite"
    return f"{BOUNDS[type(bound)][1]} {f'{limit:g}' if isinstance(limit, float) else limit}"


def _limit(bound: Any) -> Any:
    return getattr(bound, type(bound).__name__.lower())  # Ge(1).ge
