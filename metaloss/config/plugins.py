"""Plugins: components from elsewhere, loaded before a gin file is read.

Three sources, in this order: installed packages with an entry point in the group
`metaloss.plugins` (its value is a module to import), the Python files of a `plugins` folder, and
what `--plugin` names, now or when a run began, which remembers it. A plugin that does not load
warns; its reason shows in the next unknown-name error. One that `--plugin` asks for by name is an
error at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from metaloss.config.registry import FAILED_PLUGINS
from metaloss.errors import ConfigError, first_line

GROUP = "metaloss.plugins"

#: The folder of a checkout; beside an installed package, "plugins" would be a stranger's.
_ROOT = Path(__file__).parents[2]
FOLDER = _ROOT / "plugins" if (_ROOT / "setup.py").is_file() else None

_tried = False  # whether `load_all` was called


def load_all(
    asked: Sequence[str] = (), folder: Path | None = FOLDER, remembered: Iterable[str] = ()
) -> None:
    """Loads the plugins of every source; once loaded, their components are known by name.

    Args:
        asked: modules ("my_package.losses") or files ("my_loss.py"), as given to `--plugin`.
        folder: each `*.py` in it is a plugin.
        remembered: what runs were asked for; one in `asked` of the same name is taken instead.

    Raises:
        ConfigError: a plugin in `asked` does not load.
    """
    global _tried
    _tried = True
    FAILED_PLUGINS.clear()
    for entry_point in entry_points(group=GROUP):
        try:
            entry_point.load()
        except (Exception, SystemExit) as error:  # a stranger's code: anything may come
            _remember_failure(f"{entry_point.name} ({entry_point.value})", error)
    for file in sorted(folder.glob("*.py")) if folder else ():
        try:
            load_file(file)
        except (Exception, SystemExit) as error:
            _remember_failure(str(file), error)
    for name in asked:
        try:
            _load(name)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"--plugin {name!r} did not load: {_reason(error)}") from error
    _load_remembered(besides(asked, remembered))


def load_of_run(remembered: Iterable[str]) -> None:
    """What is installed, and what a run was asked for, where Python did not try it yet."""
    tried = {*FAILED_PLUGINS, *sys.modules}
    new = [name for name in remembered if not {_of_run(name), _module(name)} & tried]
    if _tried:
        _load_remembered(new)
    else:
        load_all(remembered=new)


def lasting(name: str) -> str:
    """What `--plugin` was given, in words that mean the same in any folder."""
    return str(Path(name).expanduser().resolve()) if name.endswith(".py") else name


def besides(asked: Sequence[str], remembered: Iterable[str]) -> list[str]:
    """The remembered plugins that no asked one takes the place of; each once."""
    taken = {Path(name).name for name in asked}
    return [name for name in dict.fromkeys(remembered) if Path(name).name not in taken]


def _load_remembered(names: Iterable[str]) -> None:
    for name in names:
        try:
            _load(name)
        except (Exception, SystemExit) as error:
            _remember_failure(_of_run(name), error)


def _of_run(name: str) -> str:
    return f"{name} (of the run)"


def _module(name: str) -> str:
    """The module that a file, or a module, is loaded as."""
    return f"metaloss_plugins.{Path(name).stem}" if name.endswith(".py") else name


def _load(name: str) -> None:
    """A file, or a module."""
    if name.endswith(".py"):
        load_file(Path(name).expanduser())
    else:
        importlib.import_module(name)


def load_file(path: Path) -> ModuleType:
    """Imports a file as a module of the synthetic package `metaloss_plugins`; once per path.

    Instances of its classes can then be pickled within the process, and no top-level package called
    "plugins" is needed.
    """
    path = path.resolve()
    name = _module(path.name)
    package = sys.modules.setdefault("metaloss_plugins", ModuleType("metaloss_plugins"))
    loaded = sys.modules.get(name)
    if loaded is not None:
        if loaded.__file__ != str(path):
            raise ImportError(f"a plugin of the same name was loaded from {loaded.__file__}")
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"no plugin file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    setattr(package, path.stem, module)
    return module


def _remember_failure(plugin: str, error: BaseException) -> None:
    FAILED_PLUGINS[plugin] = _reason(error)
    print(f"warning: plugin {plugin} did not load: {_reason(error)}", file=sys.stderr)


def _reason(error: BaseException) -> str:
    """The error in one line."""
    return f"{type(error).__name__}: {first_line(error)}"
