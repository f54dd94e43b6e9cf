"""Places: where a model holds its tensors, and all else that a forward pass may change.

A model is walked through as Python holds it together: modules and objects, lists and dicts,
closures, partial functions, and the globals and class attributes that its own code names. Nothing
of it depends on the names in a module tree, so a parameter that is read through a list has that
list's entry among its places.
"""

from __future__ import annotations

import functools
import random
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Entries beyond which a container is data, and is not walked through.
MOST_ENTRIES = 10_000

MISSING = object()  #: what a container holds under a key that it lacks


class Container:
    """Something whose entries can be set; here a dict, as the attributes of an object are."""

    def __init__(self, holder: Any) -> None:
        self.holder = holder

    def entries(self) -> dict[Any, Any]:
        """What it holds now, by key."""
        return dict(self.holder)

    def get(self, key: Any) -> Any:
        """An entry, or MISSING."""
        return self.holder.get(key, MISSING)

    def set(self, key: Any, value: Any) -> None:
        """Sets an entry; MISSING takes it away."""
        if value is MISSING:
            self.holder.pop(key, None)
        else:
            self.holder[key] = value

    def put(self, entries: dict[Any, Any]) -> None:
        """Makes it hold what `entries` once gave, and nothing else."""
        if self.holds(entries):
            return
        now = self.entries()
        for key in [*now.keys() - entries.keys(), *entries]:
            value = entries.get(key, MISSING)
            if now.get(key, MISSING) is not value:
                self.set(key, value)
        if type(self) is Container and [*self.holder] != [*entries]:
            for key in entries:  # a key that was taken away has come back as the last one
                self.holder[key] = self.holder.pop(key)

    def holds(self, entries: dict[Any, Any]) -> bool:
        """Whether it holds these very things, in their order; asked at every pass."""
        now = self.holder if type(self) is Container else self.entries()
        return (
            len(now) == len(entries)
            and all(map(is_, now.values(), entries.values()))
            and now.keys() == entries.keys()
        )

    def equals(self, entries: dict[Any, Any]) -> bool:
        """Whether it holds these things, or the same numbers and texts, in their order."""
        if self.holds(entries):
            return True
        now = self.entries()
        return [*now] == [*entries] and all(
            new is old or (type(new) is type(old) and type(new) in _VALUES and new == old)
            for new, old in zip(now.values(), entries.values(), strict=True)
        )


class Sequence(Container):
    """A list, or a deque."""

    def entries(self) -> dict[Any, Any]:
        return dict(enumerate(self.holder))

    def get(self, key: Any) -> Any:
        return self.holder[key] if key < len(self.holder) else MISSING

    def set(self, key: Any, value: Any) -> None:
        self.holder[key] = value

    def put(self, entries: dict[Any, Any]) -> None:
        if len(self.holder) != len(entries) or not all(map(is_, self.holder, entries.values())):
            self.holder.clear()
            self.holder.extend(entries.values())


class Members(Container):
    """A set."""

    def entries(self) -> dict[Any, Any]:
        return dict.fromkeys(self.holder)

    def put(self, entries: dict[Any, Any]) -> None:
        if self.holder != entries.keys():
            self.holder.clear()
            self.holder.update(entries)


class Attributes(Container):
    """Some attributes of an object that has no dict to write to: a closure's cell, a class."""

    def __init__(self, holder: Any, names: Iterable[str]) -> None:
        super().__init__(holder)
        self._names = [*names]

    def entries(self) -> dict[Any, Any]:
        found = {name: self.get(name) for name in self._names}
        return {name: value for name, value in found.items() if value is not MISSING}

    def get(self, key: Any) -> Any:
        try:
            return getattr(self.holder, key, MISSING)
        except ValueError:  # a cell that is not filled yet
            return MISSING

    def set(self, key: Any, value: Any) -> None:
        if value is MISSING:
            delattr(self.holder, key)
        else:
            setattr(self.holder, key, value)


class Globals(Container):
    """Some of a module's globals."""

    def __init__(self, holder: dict[str, Any], names: Iterable[str]) -> None:
        super().__init__(holder)
        self._names = [*names]

    def entries(self) -> dict[Any, Any]:
        return {name: self.holder[name] for name in self._names if name in self.holder}


Place = tuple[Container, Any]  #: a container, and the key of an entry in it

_VALUES = (bool, int, float, complex, str)  #: of which two that are equal are the same
#: Packages whose classes, functions and objects are not looked into; modules of theirs are.
_LIBRARIES = {
    "torch", "numpy", "builtins", "collections", "functools", "typing", "abc", "enum", "logging",
    "threading", "random", "torchvision", "timm", "transformers", "metaloss", "weakref", "types",
    "re", "pathlib", "inspect", "contextlib", "operator", "math", "itertools", "warnings",
}  # fmt: skip
#: What a global that a model's code names is, if it is data.
_DATA = (
    bool, int, float, list, dict, deque, set, Tensor, np.ndarray, torch.Generator,
    np.random.Generator, np.random.RandomState, random.Random,
)  # fmt: skip
_CACHED = functools._lru_cache_wrapper
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class Places:
    """What can be reached from a model.

    Args:
        things: where the walk begins, modules mostly.

    Attributes:
        own: the attributes and parameters of the modules that were found, a container each, but of
            torch's own layers, which change nothing but buffers.
        buffers: the buffers of all of them, likewise.
        others: all else that was found and can be written to.
        arrays: NumPy's.
        generators: of random numbers, but for torch's global ones.
        drawn: those of them that the model has, or whose module its code names.
        caches: of functools.lru_cache, which can be emptied.
    """

    def __init__(self, things: Iterable[Any]) -> None:
        self.own: list[Container] = []
        self.buffers: list[Container] = []
        self.others: list[Container] = []
        self.arrays: list[np.ndarray[Any, Any]] = []
        self.generators: list[Any] = [random, np.random]
        self.drawn: list[Any] = []
        self.caches: list[Any] = []
        self._tensors: dict[int, tuple[Tensor, list[Place]]] = {}
        self._seen: dict[int, Any] = {}  # kept: no other object can have its id meanwhile
        left = deque(things)
        while left:
            left.extend(self._inside(left.popleft()))
        self._seen.clear()
        self.drawn += self.generators[2:]

    def of(self, tensor: Tensor) -> list[Place]:
        """Every place that holds this very tensor, and can be written to."""
        return self._tensors[id(tensor)][1] if id(tensor) in self._tensors else []

    def tensors(self) -> list[Tensor]:
        """All that were found."""
        return [tensor for tensor, _ in self._tensors.values()]

    def _inside(self, thing: Any) -> Iterator[Any]:
        """Notes what a thing is -> what it holds."""
        if id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        if isinstance(thing, _GENERATORS):
            if not isinstance(thing, random.SystemRandom):  # it has no state
                self.generators.append(thing)
        elif isinstance(thing, np.ndarray):
            self.arrays.append(thing)
        elif isinstance(thing, (dict, list, deque, tuple, set, frozenset)):
            if len(thing) <= MOST_ENTRIES:
                yield from self._collection(thing)
        elif isinstance(thing, _CACHED):
            self.caches.append(thing)
            yield thing.__wrapped__
        elif isinstance(thing, functools.partial):
            yield from (thing.func, thing.args, thing.keywords)
        elif isinstance(thing, types.MethodType):
            yield from (thing.__self__, thing.__func__)
        elif isinstance(thing, types.FunctionType):
            yield from self._function(thing)
        elif isinstance(thing, type):
            yield from self._class(thing)
        elif isinstance(thing, nn.Module):
            if not isinstance(thing, torch.jit.ScriptModule):
                yield type(thing)
                yield from self._module(thing)
        elif _is_own(type(thing)):
            yield type(thing)
            yield getattr(thing, "__dict__", None)
            yield from self._container(Attributes(thing, _slots(type(thing))), self.others).values()
        elif isinstance(thing, types.SimpleNamespace):
            yield vars(thing)

    def _module(self, module: nn.Module) -> Iterator[Any]:
        parameters, buffers = Container(module._parameters), Container(module._buffers)
        own = self.others if _is_steady(module) else self.own
        of_buffers = own if own is self.others and not module._buffers else self.buffers
        for container, listed in ((parameters, own), (buffers, of_buffers)):
            self._seen[id(container.holder)] = container.holder
            self._container(container, listed)
        yield from self._container(Container(vars(module)), own).values()

    def _collection(self, thing: Any) -> Iterable[Any]:
        if isinstance(thing, (tuple, frozenset)):
            return thing
        kinds = {dict: Container, set: Members}
        kind = next((made for base, made in kinds.items() if isinstance(thing, base)), Sequence)
        return self._container(kind(thing), self.others).values()

    def _container(self, container: Container, listed: list[Container]) -> dict[Any, Any]:
        """Lists a container -> its entries, of which the tensors have their place there."""
        listed.append(container)
        entries = container.entries()
        for key, value in entries.items():
            if isinstance(value, Tensor):
                self._tensors.setdefault(id(value), (value, []))[1].append((container, key))
        return entries

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        """A function's closure, its defaults, its attributes, and the globals it names."""
        if not _is_own(function):
            return
        for cell in function.__closure__ or ():
            yield from self._container(Attributes(cell, ["cell_contents"]), self.others).values()
        yield from (function.__defaults__, function.__kwdefaults__)
        yield vars(function)
        yield from self._named_in(function.__globals__, function.__code__.co_names)

    def _named_in(self, known: dict[str, Any], words: tuple[str, ...]) -> Iterator[Any]:
        """What a function's words name among a file's globals, and in files it names."""
        names = [word for word in words if _is_looked_into(known.get(word))]
        if names:
            yield from self._container(Globals(known, names), self.others).values()
        for word in words:
            file = known.get(word)
            of = {"random": random, "numpy": np.random}.get(_home(file))
            if of is not None and of not in self.drawn:
                self.drawn.append(of)
            if isinstance(file, types.ModuleType) and _is_own(file):
                yield from self._named_in(vars(file), tuple(w for w in words if w != word))

    def _class(self, cls: type) -> Iterator[Any]:
        """The data of a class of one's own, and its code."""
        if not _is_own(cls):
            return
        data = {n: v for n, v in vars(cls).items() if isinstance(v, _DATA) and n[:2] != "__"}
        yield from self._container(Attributes(cls, data), self.others).values()
        code = (types.FunctionType, _CACHED)
        yield from (v for v in vars(cls).values() if isinstance(v, code))
        yield from cls.__bases__


def _slots(cls: type) -> list[str]:
    """The names of what a class keeps in slots, and not behind a property of that name."""
    found = {name for base in cls.__mro__ if "__slots__" in vars(base) for name in vars(base)}
    # Those of two underscores are the interpreter's, as where a compiled function has its address.
    own = [name for name in found if name[:2] != "__"]
    return [n for n in own if isinstance(getattr(cls, n, None), types.MemberDescriptorType)]


def _is_own(thing: Any) -> bool:
    """Whether a class, a function or a file is of no library."""
    if isinstance(thing, types.ModuleType):
        name = thing.__name__.partition(".")[0]
        return name not in _LIBRARIES and name not in sys.stdlib_module_names
    return (thing.__module__ or "builtins").partition(".")[0] not in _LIBRARIES


def _home(thing: Any) -> str:
    """The library that a module, or what is called, is of."""
    name = thing.__name__ if isinstance(thing, types.ModuleType) else _module_of(thing)
    return name.partition(".")[0]


def _module_of(thing: Any) -> str:
    found = getattr(thing, "__module__", None) if callable(thing) else None
    return found if isinstance(found, str) else ""


def _is_steady(module: nn.Module) -> bool:
    """Whether it is a layer of torch's, without anybody's hooks."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module).__module__.startswith("torch.nn.modules.") and not hooked


def _is_looked_into(thing: Any) -> bool:
    """Whether a global that a model's code names is data, or of one's own."""
    if isinstance(thing, _DATA):
        return True
    if isinstance(thing, (types.FunctionType, type, _CACHED)):
        return _is_own(thing)
    return not isinstance(thing, types.ModuleType) and _is_own(type(thing))
