"""Settings that got a better name: for one release the old name is accepted too, with a DeprecationWarning.

The constructor states which: ``@renamed_settings(position="position_weight")`` above ``def __init__``. The old name
then works as an argument of the constructor, in ``--set``, and in model files that were written before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

from pickglass.errors import InputError

__all__ = ["renamed_settings", "with_new_names"]

P = ParamSpec("P")


def renamed_settings(**new_names: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorate a constructor so that it also accepts old names of its arguments: ``old="new"``."""

    def decorated(constructor: Callable[P, None]) -> Callable[P, None]:
        @wraps(constructor)
        def accepting(*args: P.args, **settings: P.kwargs) -> None:
            constructor(*args, **_translated(new_names, settings, stacklevel=3))

        accepting.new_names = new_names  # type: ignore[attr-defined]
        return accepting

    return decorated


def with_new_names(constructor: Callable[..., None], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings under the names that they have now, by what the constructor was decorated with.

    Raises:
        InputError: a setting is given under both its names.
    """
    return _translated(getattr(constructor, "new_names", {}), settings, stacklevel=4)


def _translated(new_names: Mapping[str, str], settings: Mapping[str, Any], stacklevel: int) -> dict[str, Any]:
    translated = dict(settings)
    for old, new in new_names.items():
        if old not in translated:
            continue
        if new in translated:
            raise InputError(f"the setting {new!r} is also given under its old name {old!r}: leave {old!r} out")
        message = f"the setting {old!r} is now called {new!r}; the old name will not be accepted after the next release"
        warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
        translated[new] = translated.pop(old)
    return translated
