"""Methods by their names: those of this package, registered ones, and those that installed packages offer."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from pickglass.detectors.detector import Detector
from pickglass.errors import InputError, UnknownName

__all__ = [
    "GROUP",
    "METHODS",
    "checked_method",
    "find_method",
    "import_plugin",
    "method_names",
    "plugin_names",
    "register_method",
]

GROUP = "pickglass.methods"
"""The entry point group. A package states ``[project.entry-points."pickglass.methods"]`` and a line
``my_method = "my_package.module:MyMethod"``."""

METHODS: dict[str, type[Detector]] = {}
"""The methods by their names: :mod:`pickglass.methods` fills in its own, :func:`register_method` adds others."""

AnyMethod = TypeVar("AnyMethod", bound=type[Detector])


def register_method(method: AnyMethod) -> AnyMethod:
    """Make a method of yours known by its name, to ``--method``, ``study``, :func:`load` and all else.

    Other processes, such as the workers of a study, only know methods that an installed package offers as an entry
    point ``pickglass.methods``.

    Args:
        method: a class derived from :class:`pickglass.Detector`, its name in the class attribute ``method``.

    Returns:
        The class itself, so that this is also a decorator.

    Raises:
        InputError: it is no such class, or another method has that name.

    Example:
        ``@pg.register_method`` above ``class MyMethod(pg.Detector)``
    """
    name = checked_method(method).method
    registered = METHODS.setdefault(name, method)
    if registered is not method:
        raise InputError(
            f"the name {name!r} is taken by {registered.__module__}.{registered.__qualname__}: "
            f"give {method.__module__}.{method.__qualname__} another name"
        )
    return method


def find_method(name: str) -> type[Detector]:
    """Return the class of a method by its name, e.g. ``"patchcore"``; another package's is imported now.

    Raises:
        UnknownName: no method has that name; the nearest are named.
        InputError: the package that offers the method cannot be imported, or the name is taken by another method.
    """
    plugin = import_plugin(name)
    if plugin is not None:
        return register_method(plugin)
    if name not in METHODS:
        raise UnknownName("method", name, method_names())
    return METHODS[name]


def method_names() -> list[str]:
    """Return the names of all methods: of this package, registered, or offered by installed packages."""
    return [*METHODS, *(name for name in plugin_names() if name not in METHODS)]


def plugin_names() -> list[str]:
    """The names of all methods that installed packages offer; none of them is imported."""
    return sorted(_offers())


@cache
def _offers() -> dict[str, list[EntryPoint]]:
    """The entry points of each name; of a package that is found in two places, those of the first."""
    offers: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        offers.setdefault(entry.name, {}).setdefault(_package(entry), entry)
    return {name: list(of_packages.values()) for name, of_packages in offers.items()}


def import_plugin(name: str) -> type[Detector] | None:
    """Import the method that an installed package offers under this name; None if no package does.

    Raises:
        InputError: several packages offer the name, the package cannot be imported, or what it names is no method.
    """
    offers = _offers().get(name, [])
    if not offers:
        return None
    if len(offers) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in offers))
        raise InputError(f"the packages {packages} both offer a method {name!r}: uninstall one of them")
    entry = offers[0]
    try:
        method = checked_method(entry.load())
    except Exception as error:  # a package of somebody else may fail in any way
        raise InputError(
            f"the method {name!r} of the package {_package(entry)} cannot be used "
            f"({type(error).__name__}: {error}): update or uninstall that package"
        ) from error
    if method.method != name:
        raise InputError(
            f"the package {_package(entry)} offers a method {name!r}, but its class {method.__name__} states "
            f"method = {method.method!r}: the two names must be the same; update or uninstall that package"
        )
    return method


def checked_method(method: object) -> type[Detector]:
    """The class, if it is a method that can be found by its name.

    Raises:
        InputError: it is no subclass of :class:`pickglass.Detector`, or states no name.
    """
    if not (isinstance(method, type) and issubclass(method, Detector)):
        raise InputError(f"{method!r} is no method: expected a class derived from pickglass.Detector")
    name = getattr(method, "method", None)
    if not (isinstance(name, str) and name.isidentifier()):
        raise InputError(
            f"{method.__name__}.method is {name!r}: expected the method's name in letters, digits and underscores, "
            'e.g. method = "my_method"'
        )
    return method


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
