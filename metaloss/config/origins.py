"""Origins: where a component's code is from, for who reads a file that names it elsewhere."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, version
from typing import Any

from metaloss.config.plugins import GROUP


@functools.cache
def origin_of(module: str) -> dict[str, str | None]:
    """The module of a component, and the distribution that brought it; plain data."""
    package = module.partition(".")[0]
    if package == "metaloss":
        return {"module": module, "distribution": package, "version": _own_version()}
    if package == "metaloss_plugins":  # a file, loaded by metaloss.config.plugins
        return {"module": f"{module.partition('.')[2]}.py", "distribution": None, "version": None}
    brought = [
        point.dist.name
        for point in entry_points(group=GROUP)
        if point.dist is not None and point.module.partition(".")[0] == package
    ]
    brought += packages_distributions().get(package, []) if not brought else []
    found = brought[0] if brought else None
    return {"module": module, "distribution": found, "version": version(found) if found else None}


def _own_version() -> str | None:
    try:
        return version("metaloss")
    except PackageNotFoundError:  # it is run from its sources
        return None


def how_to_get(origin: Any) -> str:
    """A clause for the error of an unknown name: how to get its plugin, as far as a file says."""
    if not isinstance(origin, dict) or not isinstance(origin.get("module"), str):
        return ""
    module, distribution = origin["module"], origin.get("distribution")
    if distribution == "metaloss":
        return f" · it was saved by metaloss {origin.get('version')}, which has it"
    load = f"load it by --plugin={module}, or by metaloss.load_plugins([{module!r}])"
    if distribution is None:
        return f" · it was saved from the plugin {module}: {load}"
    return f" · it was saved from {module} of {distribution} {origin.get('version')}: {load}"
