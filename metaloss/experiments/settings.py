"""Settings: what a run was made with, parameter by parameter, and how two runs differ in it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metaloss.config.arguments import parameters_of
from metaloss.config.gin_files import Reference, bindings_of, flatten
from metaloss.config.registry import REGISTRIES
from metaloss.errors import ConfigError
from metaloss.runs.recorder import OWN_LOOP
from metaloss.runs.runner import Runner

#: Parameters by which a run is watched; its numbers do not depend on them.
WATCHING = frozenset(
    f"Runner.{name}"
    for name in ("log_every", "evaluate_every", "checkpoint_every", "samples", "figures")
)
METHOD = "Runner.method"
WORDS = 3  #: of a variant's name at most
REQUIRED = ("Runner.task", "Runner.backbone", "Runner.method")


class _NotSet:
    def __repr__(self) -> str:
        return "not set"


#: The value of a parameter that the other run has and this one has not.
NOT_SET = _NotSet()

#: How settings differ: pairs of a parameter and its value here, in the order of the names.
Difference = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Settings:
    """The content of a complete config.gin.

    Attributes:
        values: by `scope/kind.name.parameter`; references are kept as they are written.
        assumed: parameters that the file does not have, since an earlier version wrote it; their
            values are today's defaults.
    """

    values: Mapping[str, Any]
    assumed: tuple[str, ...] = ()

    def component(self, parameter: str) -> str:
        """The name of the component that a Runner's parameter refers to: "mnist", "lenet5"."""
        return repr(self.values.get(parameter)).rpartition(".")[2].removesuffix("()")

    @property
    def method(self) -> str:
        """The run's word for itself."""
        return str(self.values["Runner.method"])

    @property
    def own_loop(self) -> bool:
        """Whether it is somebody's own loop, of which a `Recorder` has told."""
        return repr(self.values.get("Runner.task")).startswith(f"@{OWN_LOOP}.")

    @property
    def key(self) -> frozenset[tuple[str, Any]]:
        """Equal for two runs whose numbers may be averaged."""
        watching = WATCHING - self._decisive()
        return frozenset(item for item in self.values.items() if item[0] not in watching)

    def difference(self, other: Settings, ignored: frozenset[str] = WATCHING) -> Difference:
        """The parameters in which these settings differ from others, with their values here."""
        decisive = self._decisive() | other._decisive()
        names = sorted((self.values.keys() | other.values.keys()) - (ignored - decisive))
        return tuple(
            (name, self.values.get(name, NOT_SET))
            for name in names
            if self.values.get(name, NOT_SET) != other.values.get(name, NOT_SET)
        )

    def _decisive(self) -> frozenset[str]:
        """Of what a run is watched by, what its numbers do depend on: evaluations that decide."""
        kept = self.values.get("Runner.keep_best") is not None
        decide = kept or self.component("Runner.schedule") == "plateau"
        return frozenset({"Runner.evaluate_every"} if decide else ())


def read(text: str, place: str) -> Settings:
    """Reads a complete config.

    Args:
        text: its content.
        place: names it in errors.

    Raises:
        ConfigError: it is no gin, or is cut short.
    """
    values = {name: _frozen(value) for name, value in bindings_of(text, place).items()}
    missing = [name for name in REQUIRED if name not in values]
    if missing:
        raise ConfigError(f"{place} does not set {missing[0]}: it is cut short, or no run's config")
    if Settings(values).own_loop:  # it has what it was given, and no Runner
        return Settings(values)
    defaults = _defaults(values)
    # What gin has no word for (a function as a default, say) is never written.
    assumed = [name for name, value in defaults.items() if _is_plain(value) and name not in values]
    return Settings(defaults | values, tuple(assumed))


def variants(found: Sequence[Settings]) -> list[str]:
    """A name for each of some settings, by what differs between them; equal for those alike.

    Those that are alone with their method on their task and backbone are called by it. Of others
    it is what they differ in: the names of components if these tell them apart, as `focal` and
    `poly` do; else the method and the numbers, as in `adalfl_lr=0.1`.
    """
    words: list[tuple[str, ...]] = [()] * len(found)
    for members in _alike(found, lambda s: (*_pair(s), s.method)).values():
        for i, own in zip(members, _distinguishing([found[i] for i in members]), strict=True):
            words[i] = own
    names = []
    for one, own in zip(found, words, strict=True):
        of_pair = [w for other, w in zip(found, words, strict=True) if _pair(other) == _pair(one)]
        speaks = own and not any("=" in word for word in own) and of_pair.count(own) == 1
        names.append("_".join(own if speaks else (one.method, *own)))
    return names


def _pair(one: Settings) -> tuple[str, str]:
    return one.component("Runner.task"), one.component("Runner.backbone")


def _alike(found: Sequence[Settings], key: Callable[[Settings], object]) -> dict[object, list[int]]:
    """The places of those with the same key."""
    places: dict[object, list[int]] = defaultdict(list)
    for i, one in enumerate(found):
        places[key(one)].append(i)
    return places


def _distinguishing(members: Sequence[Settings]) -> list[tuple[str, ...]]:
    """Words for what each has set otherwise than the rest; a component's name stands for its own.

    What all of them have set comes first, and what some have only where that is not enough.
    """
    every = sorted({name for one in members for name in one.values} - WATCHING - {METHOD})
    common = [name for name in every if all(name in one.values for one in members)]
    for names in (common, every):
        differing = [n for n in names if len({one.values.get(n, NOT_SET) for one in members}) > 1]
        shown = sorted(differing, key=lambda name: not _names_components(members, name))[:WORDS]
        found = [
            tuple(_word(name, one.values[name]) for name in shown if name in one.values)
            for one in members
        ]
        if len({*found}) == len({one.key for one in members}):
            break
    return found


def _names_components(members: Sequence[Settings], parameter: str) -> bool:
    return any(isinstance(one.values.get(parameter), Reference) for one in members)


def _word(name: str, value: Any) -> str:
    """A parameter and its value, as a part of a file's name."""
    if isinstance(value, Reference):
        return value.name.rpartition(".")[2]
    said = re.sub(r"[^\w.+-]+", ".", str(value)).strip(".")
    return f"{name.rpartition('.')[2]}={said}"


def told(difference: Difference) -> str:
    """A difference in one line, without what is not set here, unless that is all of it."""
    return describe(tuple(item for item in difference if item[1] is not NOT_SET) or difference)


def describe(difference: Difference) -> str:
    """A difference in one line, as gin files write it."""
    return ", ".join(
        f"{name} not set" if value is NOT_SET else f"{name} = {value!r}"
        for name, value in difference
    )


def brief(difference: Difference) -> str:
    """A difference for a legend or a title: the parameters by their last word."""
    return describe(tuple((name.rpartition(".")[2], value) for name, value in difference))


def component_of(parameter: str) -> str:
    """The component that a parameter belongs to, with its scope."""
    return parameter.rpartition(".")[0]


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Today's defaults of every component in use that is known here."""
    found = {"Runner": (Runner, ())} | {
        path: (component, registry.supplied)
        for name, value in values.items()
        for item in flatten(value)
        if isinstance(item, Reference)
        for path, registry, component in _known(item, name)
    }
    return {
        f"{path}.{name}": _frozen(parameter.default)
        for path, (component, supplied) in found.items()
        for name, parameter in parameters_of(component).items()
        if parameter.default is not parameter.empty and name not in supplied
    }


def _known(reference: Reference, parameter: str) -> list[tuple[str, Any, Any]]:
    """The registered component of a reference: its path, registry and class; none if unknown."""
    own_scope, _, selector = reference.name.rpartition("/")
    scope = own_scope or parameter.rpartition("/")[0]
    kind, _, name = selector.rpartition(".")
    registry = REGISTRIES.get(kind)
    if registry is None or name not in registry:
        return []
    return [(f"{scope}/{selector}".lstrip("/"), registry, registry[name])]


def _frozen(value: Any) -> Any:
    """A value that can be compared and hashed."""
    if isinstance(value, dict):
        return tuple((_frozen(key), _frozen(item)) for key, item in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _is_plain(value: Any) -> bool:
    return all(isinstance(item, (bool, int, float, str, type(None))) for item in flatten(value))
