"""Finds plugins by name and makes them: entry points of installed packages, and a directory of files.

Nothing is imported before a configuration names it. In a source tree that is not installed, the entry points
are read from its pyproject.toml, so that one list serves both. A file of the plugin directory runs with the
agent's privileges: it is loaded only if nobody but root and this user could have written it, and from the
very bytes that were checked.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import stat
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.abc import SourceLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Final, Generic, TypeVar

from mapek.config.options import Table, guess, open_at_once, plain
from mapek.config.settings import PluginConfig
from mapek.contracts import Analyzer, Policy, Touchpoint
from mapek.errors import MapekError, PluginError

T = TypeVar("T")

_PREFIX: Final = "_mapek_plugin_"
_SIZE_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of plugin: its table in the configuration, its entry point group, its base class."""

    table: str
    base: type[T]

    @property
    def group(self) -> str:
        """The entry point group."""
        return f"mapek.{self.table}"

    @property
    def noun(self) -> str:
        """What one of them is called."""
        return {"policies": "policy"}.get(self.table, self.table.removesuffix("s"))


SENSORS: Final = Kind("sensors", Touchpoint)
ANALYZERS: Final = Kind("analyzers", Analyzer)
POLICIES: Final = Kind("policies", Policy)
ACTIONS: Final = Kind("actions", Touchpoint)


def create(kind: Kind[T], chosen: PluginConfig, directory: Path | None = None) -> T:
    """The plugin that `chosen` names, constructed with its options.

    A class without `__init__` of its own is constructed without arguments.

    Raises:
        PluginError: not found, not importable, of the wrong kind, or its constructor failed.
        ConfigError: its options are wrong, or hold a key that it did not ask for.
    """
    found = find(kind, chosen.plugin, directory)
    options: Table = chosen.options
    try:
        # A plugin that needs no options needs no constructor either.
        made = found() if found.__init__ is object.__init__ else found(options)  # type: ignore[call-arg]
    except MapekError:
        raise
    except Exception as cause:
        raise PluginError(
            f"construct {kind.noun}",
            chosen.name,
            _said(cause),
            f"mend {found.__module__}.{found.__qualname__}",
        ) from cause
    options.leftover()
    return made


def create_all(
    kind: Kind[T], chosen: Mapping[str, PluginConfig], directory: Path | None = None
) -> dict[str, T]:
    """All plugins of one table, by instance name, in order. Raises as `create` does."""
    return {name: create(kind, one, directory) for name, one in chosen.items()}


def find(kind: Kind[T], name: str, directory: Path | None = None) -> type[T]:
    """The class of the plugin called `name`; imports it and nothing else. Raises PluginError."""
    targets = _targets(kind, name)
    file = directory / f"{name}.py" if directory is not None else None
    if directory is not None:
        _check_directory(directory)
    in_directory = file is not None and os.path.lexists(file)
    if len(targets) + in_directory > 1:
        places = [*targets, *([str(file)] if in_directory else [])]
        raise PluginError(
            f"find {kind.noun}",
            name,
            f"it is there more than once: {', '.join(sorted(places))}",
            "remove all but one",
        )
    if file is not None and in_directory:
        return _from_file(kind, name, file)
    if targets:
        return _from_target(kind, name, next(iter(targets)))
    do = guess(name, available(kind, directory), "install the package that has it")
    raise PluginError(f"find {kind.noun}", name, f"no entry point of {kind.group} has this name", do)


def available(kind: Kind[T], directory: Path | None = None) -> tuple[str, ...]:
    """The names of all plugins of a kind. Imports none of them, so a file counts for every kind."""
    names = {point.name for point in entry_points(group=kind.group)} | set(_of_source_tree(kind.group))
    if directory is not None and directory.is_dir():
        names |= {file.stem for file in directory.glob("*.py") if not file.stem.startswith("_")}
    return tuple(sorted(names))


def _targets(kind: Kind[T], name: str) -> dict[str, None]:
    # An editable install leaves the same entry twice on some paths, hence by value.
    found = {point.value: None for point in entry_points(group=kind.group, name=name)}
    if not found and (target := _of_source_tree(kind.group).get(name)):
        found[target] = None
    return found


def _of_source_tree(group: str) -> Mapping[str, str]:
    file = Path(__file__).parent.parent / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text("utf-8")).get("project", {})
    except (OSError, ValueError):
        return {}
    if project.get("name") != "mapek":  # installed into somebody else's folder
        return {}
    entries: Mapping[str, str] = project.get("entry-points", {}).get(group, {})
    return entries


def _from_target(kind: Kind[T], name: str, target: str) -> type[T]:
    module_name, _, attribute = target.partition(":")
    try:
        found: object = importlib.import_module(module_name.strip())
        for part in attribute.strip().split("."):
            found = getattr(found, part)
    except MapekError:
        raise
    except Exception as cause:
        raise PluginError(
            f"import {kind.noun}", name, f"{target}: {_said(cause)}", _import_cure(cause, "mend it")
        ) from cause
    return _checked(kind, name, found, target)


def _checked(kind: Kind[T], name: str, found: object, where: str) -> type[T]:
    if not (isinstance(found, type) and issubclass(found, kind.base)):
        raise PluginError(
            f"use {kind.noun}", name, f"{where} is no subclass of mapek.{kind.base.__name__}",
            f"derive it from mapek.{kind.base.__name__}",
        )  # fmt: skip
    return found


def _from_file(kind: Kind[T], name: str, file: Path) -> type[T]:
    module = _module(kind, name, file)
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, kind.base) and value.__module__ == module.__name__
    ]
    named = [value for value in own if getattr(value, "name", None) == name] or own
    if len(named) != 1:
        why = f"{file} has {len(named) or 'no'} subclass{'es' if named else ''} of mapek.{kind.base.__name__}"
        raise PluginError(f"use {kind.noun}", name, why, f'write one, with name = "{name}"')
    return _checked(kind, name, named[0], str(file))


class _FromBytes(SourceLoader):
    """Runs the bytes that were checked, and neither reads nor writes a bytecode file beside them."""

    def __init__(self, path: str, source: bytes) -> None:
        self._path, self._source = path, source

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str | bytes) -> bytes:
        if path != self._path:
            raise OSError(f"only {self._path} was checked")
        return self._source


def _module(kind: Kind[T], name: str, file: Path) -> ModuleType:
    module_name = f"{_PREFIX}{name}"
    source = _read(kind, name, file)
    loaded = sys.modules.get(module_name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file):
        return loaded
    spec = importlib.util.spec_from_loader(module_name, _FromBytes(str(file), source), origin=str(file))
    if spec is None or spec.loader is None:
        raise PluginError(f"import {kind.noun}", name, f"{file} makes no module", "rename the file")
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except BaseException as cause:
        del sys.modules[module_name]
        if not isinstance(cause, Exception) or isinstance(cause, MapekError):
            raise
        raise PluginError(
            f"import {kind.noun}", name, f"{file}: {_said(cause)}", _import_cure(cause, "mend the file")
        ) from cause
    return module


def _read(kind: Kind[T], name: str, file: Path) -> bytes:
    try:
        with open(file, "rb", opener=open_at_once) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PluginError(f"import {kind.noun}", name, f"{file} is not a plain file", "put one there")
            _check_owner(file, status)
            source = opened.read(_SIZE_LIMIT + 1)
    except OSError as cause:
        raise PluginError(
            f"import {kind.noun}", name, f"{file}: {cause.strerror}", "let this user read it"
        ) from cause
    if len(source) > _SIZE_LIMIT:
        raise PluginError(
            f"import {kind.noun}", name, f"{file} is larger than 1 MiB", "a plugin is one small file"
        )
    return source


def _check_directory(directory: Path) -> None:
    try:
        resolved = directory.resolve(strict=True)
        if not resolved.is_dir():
            raise PluginError("use plugin directory", directory, "it is not a directory", "name one")
        _check_owner(resolved, resolved.stat())
        for parent in resolved.parents:
            status = parent.stat()
            # In a sticky folder nobody can swap what is not his own.
            if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
                raise _unsafe(
                    parent, f"others may write it (mode {status.st_mode & 0o7777:04o})", "chmod go-w it"
                )
    except OSError as cause:
        raise PluginError(
            "use plugin directory",
            directory,
            cause.strerror or str(cause),
            "make it, or remove [plugins] directory",
        ) from cause


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise _unsafe(path, f"it belongs to uid {status.st_uid}", f"chown it to root or uid {os.geteuid()}")
    if status.st_mode & 0o022:
        raise _unsafe(path, f"others may write it (mode {status.st_mode & 0o7777:04o})", "chmod go-w it")


def _unsafe(path: Path, why: str, do: str) -> PluginError:
    return PluginError("load plugins from", path, f"{why}, and its code would run as this user", do)


def _said(cause: BaseException) -> str:
    return plain(f"{type(cause).__name__}: {cause}", 160)


def _import_cure(cause: Exception, otherwise: str) -> str:
    missing = isinstance(cause, ModuleNotFoundError) and cause.name
    return f"install {cause.name}" if missing and isinstance(cause, ModuleNotFoundError) else otherwise
