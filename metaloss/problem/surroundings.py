"""Surroundings: what a forward pass reads and may change beside the trained parameters θ.

Buffers, frozen parameters, Python attributes, caches, generators of random numbers. The base pass
changes them as plain training does. Every other pass is made in a copy of them, as they were before
the base pass or as they are now, and leaves them as it found them.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from metaloss.problem.places import Container, Members, Place, Places
from metaloss.problem.refusals import refuse_cached, refuse_changed
from metaloss.problem.shards import is_sharded

#: Numbers beyond which an array, or a tensor of no module, is data, and is not watched.
MOST_NUMBERS = 10_000_000


#: Arrays of so many numbers are kept whatever a pass did so far, and so many of these.
SMALL, MANY = 10_000, 100
#: Base passes after each of which is looked for what it has made, as a teacher in the first one.
FIRST = 2
#: Base steps before each of which a pass is made to see what it changes: what the first one makes,
#: as a cache, only the second one can change.
WATCHED = 2


@dataclass
class Kept:
    """A copy of surroundings, or of a part of them."""

    contents: list[tuple[Container, dict[Any, Any]]] = field(default_factory=list)
    tensors: list[tuple[list[Place], Tensor, Tensor]] = field(default_factory=list)
    arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = field(default_factory=list)
    generators: list[tuple[Any, Any]] = field(default_factory=list)
    caches: list[tuple[Any, int]] = field(default_factory=list)  #: and how much is in them

    def put_back(self) -> None:
        """Makes everything as it was, in place."""
        for container, entries in self.contents:
            container.put(entries)
        for _, tensor, values in self.tensors:
            if tensor.shape != values.shape:
                tensor.data = values.clone()
            elif not _same(tensor, values):
                tensor.data.copy_(values)
        for array, numbers in self.arrays:
            array[...] = numbers
        for generator, state in self.generators:
            _set_state(generator, state)
        for cache, size in self.caches:
            if not size and cache.cache_info().currsize:
                cache.cache_clear()  # what was computed may have drawn random numbers

    def beside(self, other: Kept) -> Kept:
        """This part, and what of another one is not in it."""
        return Kept(
            _both(self.contents, other.contents, lambda kept: kept[0].holder),
            _both(self.tensors, other.tensors, lambda kept: kept[1]),
            _both(self.arrays, other.arrays, lambda kept: kept[0]),
            _both(self.generators, other.generators, lambda kept: kept[0]),
            _both(self.caches, other.caches, lambda kept: kept[0]),
        )

    def changed(self) -> Kept:
        """The part that is otherwise now."""
        return Kept(
            [(c, entries) for c, entries in self.contents if _differ(c.entries(), entries)],
            [kept for kept in self.tensors if not _same(kept[1], kept[2])],
            [(a, numbers) for a, numbers in self.arrays if a.tobytes() != numbers.tobytes()],
            [(g, state) for g, state in self.generators if not _equal(_state(g), state)],
        )


#: Functions of torch that give an alias, in which a tensor can be written unseen.
ALIASES = {
    Tensor.data.__get__, Tensor.data.__set__, Tensor.detach, Tensor.numpy,  # type: ignore[attr-defined]
    Tensor.untyped_storage, Tensor.set_, Tensor.__array__, torch.detach,
}  # fmt: skip


class BeforeWriting(TorchFunctionMode):
    """Within it, tensors are copied before a function of torch writes into them.

    Args:
        tensors: these.
        read: ids of those of which an alias changed nothing; it is copied no more if it is large.

    Attributes:
        copies: the tensor and its copy, by the tensor's id.
    """

    def __init__(self, tensors: Sequence[Tensor], read: set[int]) -> None:
        super().__init__()
        self._ids, self._read = set(map(id, tensors)), read
        self.copies: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_compiling():  # as torch.cond does; it writes into nothing of a model
            return func(*args, **(kwargs or {}))
        alias = func in ALIASES
        if alias or _writes(func) or (kwargs and "out" in kwargs):
            for thing in (*args, *(kwargs or {}).values()):
                for tensor in thing if isinstance(thing, (list, tuple)) else (thing,):
                    self._copy(tensor, alias)
        return func(*args, **(kwargs or {}))

    def _copy(self, tensor: Any, alias: bool) -> None:
        if isinstance(tensor, Tensor) and tensor._base is not None:
            tensor = tensor._base
        if id(tensor) not in self._ids or id(tensor) in self.copies:
            return
        if not alias or tensor.numel() <= SMALL or id(tensor) not in self._read:
            self.copies[id(tensor)] = tensor, tensor.detach().clone()


def _writes(func: Any) -> bool:
    """Whether a function of torch writes into what it is given."""
    if isinstance(func, torch._ops.OpOverloadPacket):
        return any(getattr(func, name)._schema.is_mutable for name in func.overloads())
    if isinstance(func, torch._ops.OpOverload):
        return func._schema.is_mutable
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name[2] == "i" and name not in ("__invert__", "__index__"))
    return name.endswith("_")


class Surroundings:
    """Those of a model and its loss.

    Args:
        model, loss: they; a loss may hold the model.
        theta: the trained parameters by their names in the model.
        functions: what else is called in a base step, and may keep something.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | None,
        theta: Mapping[str, Tensor],
        functions: Sequence[Any] = (),
    ) -> None:
        self._model, self._loss, self._theta, self._functions = model, loss, theta, functions
        self._watched = 0  # passes whose changes were looked at
        self._passes = 0  # base passes made
        self._moving = Kept()  # what was seen to change in a pass, beyond modules' own attributes
        self._own_move = False  # whether those were
        self._made: list[tuple[list[Place], Tensor]] = []  # tensors that they have made
        self._cached: list[tuple[Any, Any]] = []  # caches of what has a graph, and their numbers
        self._read: set[int] = set()  # tensors of which a pass took an alias, and wrote nothing
        self.lost = False  #: see `noting`
        self._changes = 0  # see `changes`
        self._there: Kept | None = None  # what was there when they were counted last
        self._void: list[Any] = []  # and was empty
        self._look()

    def __reduce__(self) -> Any:
        """Copied and pickled, those of the copied model, of which nothing is known yet."""
        return Surroundings, (self._model, self._loss, self._theta, self._functions)

    def _look(self) -> None:
        """Finds what there is by now: a pass may have made a cache that the next one changes."""
        model, loss = self._model, self._loss
        modules = [*model.modules(), *(() if loss is None else loss.modules())]
        self._places = Places([*modules, *self._functions])
        self._named = dict(self._by_name(model))
        self._small = [
            # What shares its memory with a tensor is put back there.
            a
            for a in self._places.arrays
            if a.size <= SMALL and a.flags.owndata
        ][:MANY]
        self._tree = {id(t) for m in modules for t in (*m.parameters(False), *m.buffers(False))}
        self._sort_out()

    def _sort_out(self) -> None:
        """Finds what no pass was seen to change, and `keep` leaves out."""
        phi = () if self._loss is None else self._loss.parameters()
        known = {id(tensor) for _, tensor in self._changeable()}
        known |= {id(tensor) for tensor in (*self._theta.values(), *phi)}
        # fully_shard keeps whole parameters of its own, whose memory it gives back between passes:
        # to read them then is a fault of segmentation.
        sharded = any(map(is_sharded, self._theta.values()))
        self._still = [
            tensor
            for tensor in (() if sharded else self._places.tensors())
            if id(tensor) not in known and tensor.layout is torch.strided
            if not tensor.is_inference() and not tensor.is_meta and not is_sharded(tensor)
        ]
        moving = {id(container.holder) for container, _ in self._moving.contents}
        quiet = [c for c in self._places.others if id(c.holder) not in moving]
        # Nine in ten are empty, as modules' dicts and sets: these are asked together.
        self._empty = [c for c in quiet if type(c) in (Container, Members) and not c.holder]
        self._empty_holders = [c.holder for c in self._empty]
        empty = set(map(id, self._empty))
        self._full = [c for c in quiet if id(c) not in empty]

    @contextmanager
    def noting(self) -> Iterator[Kept]:
        """Within it, a pass is made; afterwards what it was the first one to change is followed.

        Gives what afterwards holds that, as it was before. `lost` says whether of a tensor that is
        gone, since something else than torch's functions wrote into it.
        """
        news = Kept()
        contents = [(container, container.entries()) for container in self._full]
        marks = [(tensor, tensor._version, tensor.data_ptr()) for tensor in self._still]
        writing = BeforeWriting(self._still, self._read) if marks else None
        try:
            with writing or nullcontext():
                yield news
        finally:
            news.contents = [(c, entries) for c, entries in contents if not c.holds(entries)]
            if any(self._empty_holders):
                news.contents += [(c, {}) for c in self._empty if c.holder]
            copies = {} if writing is None else writing.copies
            for tensor, values in copies.values():
                if not _same(tensor, values):
                    news.tensors.append((self._places.of(tensor), tensor, values))
                else:
                    self._read.add(id(tensor))
            lost = [
                tensor
                for tensor, version, address in marks
                if tensor._version != version or tensor.data_ptr() != address
                if id(tensor) not in copies
            ]
            if news.contents or news.tensors or lost:
                self.lost |= bool(lost)
                also = [(self._places.of(tensor), tensor, tensor) for tensor in lost]
                self._moving = Kept(news.contents, news.tensors + also).beside(self._moving)
                self._sort_out()

    @property
    def unwatched(self) -> bool:
        """Whether a pass is to be looked at before the next base step."""
        return self._watched < WATCHED and self._watched <= self._passes

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Within it, passes are made of which nothing remains: the next ones are first ones too."""
        counted = self._watched, self._passes
        try:
            yield
        finally:
            self._watched, self._passes = counted

    def watch_again(self) -> None:
        """Passes are to be looked at as if none had been."""
        self._watched = 0

    def watch(self) -> Kept:
        """A copy of all that is found now, to see what a pass changes."""
        if self._watched:
            self._look()
        self._watched += 1
        self._cached = [(cache, cache.cache_info()) for cache, _ in self._cached]
        return self.whole()

    def whole(self) -> Kept:
        """A copy of all that was found."""
        places = self._places
        return Kept(
            [(c, c.entries()) for c in (*places.own, *places.buffers, *places.others)],
            [
                (places.of(tensor), tensor, tensor.detach().clone())
                for tensor in places.tensors()
                if id(tensor) in self._tree or tensor.numel() <= MOST_NUMBERS
                if tensor.layout is torch.strided and not tensor.is_meta
                if not is_sharded(tensor)  # a pass has a copy of it
            ],
            [(a, a.copy()) for a in places.arrays if a.size <= MOST_NUMBERS],
            [(generator, _state(generator)) for generator in places.generators],
            _sizes(places.caches),
        )

    def learn(self, before: Kept, theta: Sequence[Tensor]) -> Kept:
        """Notes what a pass has changed, and undoes it.

        Args:
            before: what `watch` gave before the pass.
            theta: what the pass had in the places of the trained parameters.

        Returns:
            The surroundings as the pass has left them.

        Raises:
            UnsupportedModelError: it changed a trained parameter, or has used what a function has
                cached of one in a pass before.
        """
        now = [(was, cache.cache_info()) for cache, was in self._cached]
        cached = any(n.hits > was.hits and n.misses == was.misses for was, n in now)
        self._cached += [(c, c.cache_info()) for c in self._places.caches if _has_graph(c)]
        changed = before.changed()
        moved = {id(tensor) for _, tensor, _ in changed.tensors}
        own = {id(container) for container in self._places.own}
        self._own_move |= any(id(container) in own for container, _ in changed.contents)
        always = own.union(map(id, self._places.buffers))
        changed.contents = [(c, entries) for c, entries in changed.contents if id(c) not in always]
        self._moving = changed.beside(self._moving)
        after = self._left_by_a_pass(theta)
        before.put_back()
        self._look()
        for name, parameter in self._theta.items():
            if id(parameter) in moved:
                refuse_changed(name)
        refuse_cached(cached)
        return after

    def passed(self) -> None:
        """A base pass was made: in the first ones, what it has made may change from here on."""
        self._passes += 1
        if self._passes <= FIRST:
            self._made += self._newly_found()
            self._sort_out()

    def _newly_found(self) -> list[tuple[list[Place], Tensor]]:
        """Looks again -> the tensors that were not there the last time."""
        known = {id(tensor) for tensor in self._places.tensors()}
        self._look()
        places = self._places
        return [
            (places.of(tensor), tensor)
            for tensor in places.tensors()
            if id(tensor) not in known and tensor.is_leaf and tensor.layout is torch.strided
        ]

    def _left_by_a_pass(self, theta: Sequence[Tensor]) -> Kept:
        """What a pass may change, and what it has made."""
        given = set(map(id, theta))
        made = [(held, tensor) for held, tensor in self._newly_found() if id(tensor) not in given]
        after = self.keep()
        new = [(held, tensor, tensor.detach().clone()) for held, tensor in made]
        return Kept(tensors=new).beside(after)

    def found_moving(self) -> set[int]:
        """What was seen to change in a pass, to be compared with the same of another look."""
        moving = self._moving
        things = [
            *(container.holder for container, _ in moving.contents),
            *(tensor for _, tensor, _ in moving.tensors),
            *(array for array, _ in moving.arrays),
            *(generator for generator, _ in moving.generators),
        ]
        return {id(thing) for thing in things}

    def changes(self) -> int:
        """How often what a pass reads as Python has it was found to be otherwise than before.

        Attributes, such as a number that a loop lets fall or a tensor that it puts there anew;
        parts of the model; lists, closures and globals; arrays. What was recorded of a pass has
        them as they were then.
        """
        there = self._there
        if (
            there is None
            or any(self._void)
            or not all(holder.equals(was) for holder, was in there.contents)
            or any(array.tobytes() != numbers.tobytes() for array, numbers in there.arrays)
        ):
            self._look()
            contents = [(c, c.entries()) for c in (*self._places.own, *self._places.others)]
            # Nine in ten are empty, as modules' dicts of hooks: these are asked together.
            self._void = [
                c.holder for c, was in contents if not was and type(c) in (Container, Members)
            ]
            void = set(map(id, self._void))
            contents = [(c, was) for c, was in contents if id(c.holder) not in void]
            arrays = [(array, array.copy()) for array in self._small]
            self._there = Kept(contents, arrays=arrays)
            self._changes += there is not None
        return self._changes

    @property
    def beyond_tensors(self) -> bool:
        """Whether a pass was seen to change what no recording of kernels would."""
        moving = self._moving
        return self._own_move or bool(moving.contents or moving.arrays or moving.generators)

    def keep(self) -> Kept:
        """A copy of what a pass may change.

        The attributes and buffers of modules, whatever a pass did so far; of torch's own layers,
        and of what lies deeper, what was seen to change.
        """
        places, moving = self._places, self._moving
        own = (*places.own, *places.buffers, *(container for container, _ in moving.contents))
        return Kept(
            [(container, container.entries()) for container in own],
            [(held, tensor, tensor.detach().clone()) for held, tensor in self._changeable()],
            [(array, array.copy()) for array in _each(self._small, moving.arrays)],
            [
                (generator, _state(generator))
                for generator in _each(places.drawn, moving.generators)
            ],
            _sizes(places.caches),
        )

    def _changeable(self) -> Iterator[tuple[list[Place], Tensor]]:
        """All buffers there are now, and the tensors that were seen to change; each once."""
        found: dict[int, tuple[list[Place], Tensor]] = {}
        for container in self._places.buffers:
            for key, buffer in container.holder.items():
                if buffer is not None:
                    places = found.setdefault(id(buffer), ([*self._places.of(buffer)], buffer))[0]
                    places.append((container, key))
        # What the model has let go of meanwhile is not held here.
        self._made = [m for m in self._made if any(c.get(key) is m[1] for c, key in m[0])]
        for places, tensor in self._made:
            found.setdefault(id(tensor), (places, tensor))
        for places, tensor, _ in self._moving.tensors:
            found.setdefault(id(tensor), (places, tensor))
        yield from found.values()

    @contextmanager
    def exchanged(self, named: Mapping[str, Tensor], kept: Kept | None) -> Iterator[None]:
        """Within it the model has other parameters and buffers by name, in the surroundings `kept`.

        Afterwards it is as it was found. With None, what the passes change stays, but for what was
        exchanged. `kept` can be used again.
        """
        if kept is not None:
            try:
                with self.noting() as news, self._exchanged(named, kept, self._found(kept)):
                    yield
            finally:
                news.put_back()
            return
        with self._exchanged(named, None, None):
            yield

    @contextmanager
    def _exchanged(
        self, named: Mapping[str, Tensor], kept: Kept | None, found: Kept | None
    ) -> Iterator[None]:
        undo: list[tuple[Container, Any, Any]] = []
        try:
            copies = set() if kept is None else self._enter(kept, undo)
            for name, tensor in named.items():
                places = self._named[name]
                container, key = places[0]
                old = container.get(key)
                # Where the model has put another one in its place, it is not what is trained; and
                # a frozen parameter that is a copy already is a constant.
                if old is self._theta.get(name, old) and id(old) not in copies:
                    _exchange(places, old, tensor, undo)
            yield
        finally:
            for container, key, value in reversed(undo):
                container.set(key, value)
            if found is not None:
                found.put_back()

    def _found(self, kept: Kept) -> Kept:
        """What is there now, of what `kept` will be put in place of; tensors are exchanged."""
        return Kept(
            [(container, container.entries()) for container, _ in kept.contents],
            [],
            [(array, array.copy()) for array, _ in kept.arrays],
            [(generator, _state(generator)) for generator, _ in kept.generators],
            _sizes([cache for cache, _ in kept.caches]),
        )

    def _enter(self, kept: Kept, undo: list[tuple[Container, Any, Any]]) -> set[int]:
        """Puts `kept` in place, its tensors as copies -> their ids."""
        Kept(kept.contents, [], kept.arrays, kept.generators, kept.caches).put_back()
        copies = set()
        for places, tensor, values in kept.tensors:
            made = values.clone()
            if tensor.requires_grad and tensor.is_leaf:
                made.requires_grad_()  # the model may take gradients in it
            copies.add(id(made))
            _exchange(places, tensor, made, undo)
        return copies

    def _by_name(self, model: nn.Module) -> Iterator[tuple[str, list[Place]]]:
        """The places of each parameter and buffer, that in its module first."""
        places = self._places
        holders = {id(c.holder): c for c in (*places.own, *places.buffers, *places.others)}
        for path, module in model.named_modules(remove_duplicate=False):
            for held in (module._parameters, module._buffers):
                for key, tensor in held.items():
                    name = f"{path}.{key}" if path else key
                    if tensor is not None and id(held) in holders:
                        own = (holders[id(held)], key)
                        yield name, [own, *self._places.of(tensor)]


def _exchange(
    places: Sequence[Place], old: Any, new: Tensor, undo: list[tuple[Container, Any, Any]]
) -> None:
    """Puts a tensor wherever another one is."""
    for container, key in places:
        if container.get(key) is old:
            undo.append((container, key, old))
            container.set(key, new)
    if isinstance(old, nn.Parameter):
        if type(new) is Tensor and type(old) is not nn.Parameter:
            new.__class__ = type(old)  # somebody's own, with methods
        new._is_param = True  # type: ignore[attr-defined]  # to isinstance, as get_parameter asks
    vars(new).update(vars(old))  # attributes that somebody gave it


def _each(these: Sequence[Any], those: Sequence[tuple[Any, Any]]) -> list[Any]:
    known = set(map(id, these))
    return [*these, *(thing for thing, _ in those if id(thing) not in known)]


def _both(these: list[Any], those: list[Any], thing: Callable[[Any], Any]) -> list[Any]:
    known = {id(thing(kept)) for kept in these}
    return [*these, *(kept for kept in those if id(thing(kept)) not in known)]


def _has_graph(cache: Any) -> bool:
    """Whether a functools.lru_cache holds a tensor with a graph."""
    # Of a limited size it refers to what it holds itself, else to a dict of that.
    entries = tree_leaves(gc.get_referents(cache))
    return any(isinstance(entry, Tensor) and entry.grad_fn is not None for entry in entries)


def _sizes(caches: Sequence[Any]) -> list[tuple[Any, int]]:
    return [(cache, cache.cache_info().currsize) for cache in caches]


def _differ(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return one.keys() != other.keys() or not all(map(is_, one.values(), other.values()))


def _same(tensor: Tensor, values: Tensor) -> bool:
    """Whether a tensor has these very bits, but for signs of zero and kinds of NaN."""
    if tensor.shape != values.shape or tensor.dtype != values.dtype:
        return False
    tensor = tensor.detach()
    if torch.equal(tensor, values):
        return True
    return bool(((tensor == values) | (tensor.isnan() & values.isnan())).all())


def _equal(one: Any, other: Any) -> bool:
    """Whether two states of a generator are the same."""
    if isinstance(one, dict):
        return all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    return torch.equal(one, other) if torch.is_tensor(one) else bool(one == other)


def _state(generator: Any) -> Any:
    """Of torch's, NumPy's or Python's generator; a copy."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    if _is_numpys(generator):
        return generator.get_state(legacy=False)
    return generator.getstate()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = copy.deepcopy(state)
        return
    numpys_or_torchs = isinstance(generator, torch.Generator) or _is_numpys(generator)
    set_state: Callable[[Any], None] = (
        generator.set_state if numpys_or_torchs else generator.setstate
    )
    set_state(state)


def _is_numpys(generator: Any) -> bool:
    return generator is np.random or isinstance(generator, np.random.RandomState)
