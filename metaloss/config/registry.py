"""Registry: the named components of one kind, known to Python and to gin by the same words."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import nullcontext
from typing import Any, TypeVar, get_type_hints

import gin

import metaloss
from metaloss.config.arguments import Component, checked, parameters_of, require_parameters
from metaloss.errors import ConfigError, did_you_mean

Root = TypeVar("Root", bound=type)
Entry = TypeVar("Entry")


class Entries(MutableMapping[str, Entry]):
    """What modules enter as they are imported; whoever reads it finds the whole package's."""

    def __init__(self) -> None:
        self._entered: dict[str, Entry] = {}

    def _all(self) -> dict[str, Entry]:
        for name in metaloss.__all__:
            getattr(metaloss, name)  # imports what nobody has asked for yet
        return self._entered

    def __getitem__(self, name: str) -> Entry:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._entered[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entered[name]


#: Every registry, by kind. A kind is a folder of the package: "representations", "tasks", ...
REGISTRIES: Entries[Registry] = Entries()

#: What a gin file can be about, by name: a run, or a sweep over many.
ROOTS: Entries[type] = Entries()

#: Plugins that did not load, and why, for the errors of unknown names; `plugins` fills it.
FAILED_PLUGINS: dict[str, str] = {}


class UnknownComponentError(ConfigError, KeyError):
    """A name that no component of the kind carries."""


class Registry(Mapping[str, Callable[..., Any]]):
    """A read-only mapping from name to component, filled by one decorator.

    `@REPRESENTATIONS.register("nn")` makes a class known under the same words everywhere:
    `REPRESENTATIONS["nn"]` in Python, `@representations.nn()` in gin files. Whoever calls it, its
    arguments are held against its annotations, see `arguments.checked`.

    Args:
        kind: plural noun; the folder of the package and gin's first word.
        interface: base class of the kind's components; None where they are functions.
        supplied: parameters that a run gives, which makes the kind's components recipes: gin files
            name them without (), and the run calls them once it knows these.
    """

    def __init__(
        self, kind: str, interface: type | None = None, supplied: tuple[str, ...] = ()
    ) -> None:
        self.kind = kind
        self.interface = interface
        self.supplied = supplied
        self._components: dict[str, Callable[..., Any]] = {}
        REGISTRIES[kind] = self

    def register(self, name: str) -> Callable[[Component], Component]:
        """A decorator that enters a component under `name` (lower_snake_case, the file's stem).

        Raises:
            TypeError: the component is not a subclass of the kind's interface, nor a function that
                is annotated to return one of it; or a recipe does not take what the run gives.
            ConfigError: the name is taken by another component; both are named.
        """

        def enter(component: Component) -> Component:
            if self.interface is not None and not _gives(component, self.interface):
                raise TypeError(
                    f"{self.kind}.{name} must be a subclass of {_origin(self.interface)}; "
                    f"got {component!r}"
                )
            missing = [p for p in self.supplied if p not in parameters_of(component)]
            if missing:
                raise TypeError(
                    f"{self.kind}.{name} must take the parameters {', '.join(self.supplied)}; "
                    f"{_origin(component)} lacks {missing[0]}"
                )
            taken = self._components.get(name)
            if taken is not None and _origin(taken) != _origin(component):
                raise ConfigError(
                    f"{self.kind}.{name} is taken by {_origin(taken)}; "
                    f"{_origin(component)} needs another name"
                )
            component = checked(f"{self.kind}.{name}")(component)
            with gin.config.interactive_mode() if taken is not None else nullcontext():
                gin.register(name, module=self.kind)(component)  # again: a module was reloaded
            self._components[name] = component
            return component

        return enter

    def build(self, name: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """A component by its name, called with arguments by theirs.

        Raises:
            UnknownComponentError: no component has this name.
            ConfigError: it has no such parameter, or an argument does not fit.
        """
        component, arguments = self[name], arguments or {}
        require_parameters(arguments, component, f"{self.kind}.{name}")
        return component(**arguments)

    def name_of(self, component: Any) -> str:
        """The name of a registered class or function, of an instance, or of gin's copy of one."""
        component = inspect.unwrap(component) if callable(component) else component
        classes = inspect.getmro(component if inspect.isclass(component) else type(component))
        for candidate in (component, *classes):  # a subclass before what it is derived from
            for name, known in self._components.items():
                if candidate is inspect.unwrap(known):
                    return name
        return getattr(component, "__name__", type(component).__name__)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        try:
            return self._components[name]
        except KeyError:
            raise UnknownComponentError(self.describe_unknown(name)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._components))

    def __len__(self) -> int:
        return len(self._components)

    def describe_unknown(self, name: str) -> str:
        """One line for a name that is not here: nearest and known names, plugins that failed."""
        failed = "".join(
            f" · plugin '{plugin}' did not load: {why}" for plugin, why in FAILED_PLUGINS.items()
        )
        near = did_you_mean(name, self)
        return f"no '{name}' in {self.kind}{near} · known: {', '.join(self) or 'none'}{failed}"


def root(component: Root) -> Root:
    """A class decorator: gin files can be about it, as `Runner` or `Sweep`."""
    component = ROOTS[component.__name__] = checked(component.__name__)(component)
    gin.register(component.__name__, module="metaloss")(component)
    return component


def import_components(package: str, path: list[str]) -> None:
    """Imports every module of a kind's folder, so that its components register themselves."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


def _gives(component: Any, interface: type) -> bool:
    """Whether calling the component makes an object of the interface, by its class or signature."""
    made = component if inspect.isclass(component) else get_type_hints(component).get("return")
    return inspect.isclass(made) and issubclass(made, interface)


def _origin(component: Any) -> str:
    return f"{component.__module__}.{component.__qualname__}"
