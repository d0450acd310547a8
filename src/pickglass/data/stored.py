"""What a file kept as JSON becomes a dataclass again, and each value is checked against the type of its field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pickglass.errors import InputError, shortened

__all__ = ["fits", "from_stored"]

T = TypeVar("T")


def from_stored(kind: type[T], stored: object) -> T:
    """Make a dataclass of what JSON kept of it; lists become tuples where the field is one.

    A threshold that is a text would otherwise come to light where an image is judged, and one that is no number never.

    Args:
        kind: a dataclass of numbers, texts, truth values, None, and tuples and dicts of them.
        stored: name of the field -> value.

    Raises:
        InputError: a field is missing, is not known, or has a value of another type; also NaN and infinity.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Limit:
    ...     value: float
    ...     groups: tuple[str, ...] = ()
    >>> from_stored(Limit, {"value": 1, "groups": ["a"]})
    Limit(value=1, groups=('a',))
    >>> from_stored(Limit, {"value": "high"})
    Traceback (most recent call last):
    pickglass.errors.InputError: value of Limit is 'high': expected float
    """
    name = kind.__name__
    if not isinstance(stored, Mapping):
        raise InputError(f"{shortened(stored)} in the place of a {name}: expected its fields by name")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(map(str, stored)) - set(known)):
        raise InputError(f"{name} has no field {shortened(unknown[0])}: expected {', '.join(known)}")
    for field in known.values():
        if field.name not in stored and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{name} lacks its field {field.name!r}")
    values = {}
    for key, value in stored.items():
        try:
            values[key] = _fitting(value, hints[key])
        except TypeError:
            expected = getattr(hints[key], "__name__", None) if isinstance(hints[key], type) else None
            raise InputError(
                f"{key} of {name} is {shortened(value)}: expected {expected or str(hints[key]).replace('typing.', '')}"
            ) from None
    return kind(**values)


def fits(value: object, hint: object) -> bool:
    """Say whether a value that JSON kept is of a type; a list fits a tuple or a sequence.

    >>> fits([1, 2], tuple[int, int]), fits("area:512", int | str), fits([0, 0], float)
    (True, True, False)
    """
    try:
        _fitting(value, hint)
    except TypeError:
        return False
    return True


def _fitting(value: Any, hint: Any) -> Any:
    """Return a value as its field has it.

    Raises:
        TypeError: it is of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return _first_fitting(value, arguments)
    if origin is Literal:
        return _sound(value, any(value == each and type(value) is type(each) for each in arguments))
    if origin is tuple:
        _sound(value, isinstance(value, (list, tuple)))
        if arguments[-1] is not Ellipsis:
            _sound(value, len(value) == len(arguments))
            return tuple(_fitting(each, of) for each, of in zip(value, arguments, strict=True))
        return tuple(_fitting(each, arguments[0]) for each in value)
    if origin is Sequence and isinstance(value, str):
        return _sound(value, arguments[0] is str)  # "layer1+layer2"
    if origin is Sequence or origin is list:
        return [_fitting(each, arguments[0]) for each in _sound(value, isinstance(value, (list, tuple)))]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _sound(value, isinstance(value, Mapping))
        return {_fitting(key, arguments[0]): _fitting(each, arguments[1]) for key, each in value.items()}
    if hint is float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return _sound(value, is_number and abs(value) < 2.0**1000 and math.isfinite(value))
    if hint is int:
        return _sound(value, isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)
    kind = NoneType if hint is None else hint
    return _sound(value, not isinstance(kind, type) or isinstance(value, kind))  # of other hints nothing is known


def _first_fitting(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return _fitting(value, hint)
        except TypeError:
            continue
    raise TypeError


def _sound(value: Any, condition: bool) -> Any:
    if not condition:
        raise TypeError
    return value
