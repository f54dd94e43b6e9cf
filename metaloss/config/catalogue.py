"""The catalogue of components: what can be named in a gin file, and what each one takes."""

from __future__ import annotations

import inspect
from fnmatch import fnmatch

from metaloss.config.arguments import parameters_of
from metaloss.config.registry import REGISTRIES
from metaloss.errors import InputError, did_you_mean


def catalogue(patterns: list[str]) -> str:
    """Each component's gin name, the first line of its docstring, its parameters and defaults.

    Args:
        patterns: kinds ("representations") or patterns of full names ("backbones.l*"); all, if
            there are none.

    Raises:
        InputError: a pattern matches nothing.
    """
    names = [f"{kind}.{name}" for kind, registry in sorted(REGISTRIES.items()) for name in registry]
    chosen = set()
    for pattern in patterns or ["*"]:
        matching = {
            name for name in names if fnmatch(name, pattern) or name.startswith(f"{pattern}.")
        }
        if not matching:
            near = did_you_mean(pattern, [*REGISTRIES, *names])
            raise InputError(
                f"no component matches '{pattern}'{near} · kinds: {', '.join(sorted(REGISTRIES))}"
            )
        chosen |= matching
    return "\n".join(_entry(name) for name in names if name in chosen)


def _entry(name: str) -> str:
    kind, _, word = name.rpartition(".")
    registry = REGISTRIES[kind]
    component = registry[word]
    lines = [f"@{name}" + ("" if registry.supplied else "()")]
    lines.append(f"    {(inspect.getdoc(component) or 'No description.').splitlines()[0]}")
    for parameter, p in parameters_of(component).items():
        if parameter not in registry.supplied:
            default = "(required)" if p.default is p.empty else f"= {p.default!r}"
            lines.append(f"    {name}.{parameter} {default}")
    return "\n".join(lines) + "\n"
