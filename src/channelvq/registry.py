"""Kinds by name, open to others: quantizers, networks, data sources, tasks and metrics are each listed once.

A kind of settings is a frozen dataclass whose method `build` (or several) makes the thing that it stands for. Ours
stand as "module:attribute" and are imported when they are asked for, so that a training of one kind does not load all
others. One of yours is one file and one call of `register`; a package that names the module of that call as an entry
point of the group "channelvq.plugins" is known to `cvq` too. Settings can name a kind, never a module: what a file from
a stranger says is not imported.
"""

import warnings
from collections.abc import Collection, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from channelvq.errors import InputError, reason

T = TypeVar("T")
PLUGINS = "channelvq.plugins"
_loaded: list[str] = []  # entry points that have been imported


def load_plugins() -> None:
    """Import the modules that installed packages name as plugins, each once; warn of one that cannot be."""
    for point in entry_points(group=PLUGINS):
        if point.value in _loaded:
            continue
        _loaded.append(point.value)
        try:
            point.load()
        except (Exception, SystemExit) as error:  # a stranger's fault must not stop what does not need the plugin
            warnings.warn(f"plugin {point.name} ({point.value}) is left out: {reason(error)}", stacklevel=2)


class Registry(Generic[T]):
    """Kinds of one sort. what: the sort in errors, such as "quantizer". ours: places of our own kinds by name.

    taken: names that stand for something else where kinds are named.
    """

    def __init__(self, what: str, ours: Mapping[str, str], taken: Collection[str] = ()) -> None:
        self.what = what
        self._places, self._taken = dict(ours), frozenset(taken)
        self._known: dict[str, T] = {}

    def register(self, name: str, kind: T) -> T:
        """Make `kind` known by a name; gives it back.

        Raises InputError where the name is no text or has another meaning already, and for settings that call
        themselves by another name.
        """
        if not isinstance(name, str) or not name:
            raise InputError(f"{self.what}: expected a name, got {name!r}")
        if name in self._places or name in self._taken or self._known.get(name, kind) is not kind:
            raise InputError(f"{self.what} {name!r} is there already; give yours another name")
        if (own := getattr(kind, "kind", name)) != name:
            raise InputError(f"{self.what} {name!r}: expected the default of the settings' `kind`, {own!r}")
        self._known[name] = kind
        return kind

    def names(self) -> list[str]:
        """All that are known, ours first."""
        load_plugins()
        return [*self._places, *(name for name in self._known if name not in self._places)]

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return name in self._known or name in self._places or name in self.names()

    def __getitem__(self, name: str) -> T:
        """The kind of a name; raises InputError that lists the names for one that is not known."""
        if name not in self._known and name in self._places:
            self._known[name] = imported(self._places[name])
        if name not in self:
            raise InputError(f"{self.what} {name!r} is unknown; known: {', '.join(self.names())}")
        return self._known[name]


def imported(place: str) -> Any:
    """What stands at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
