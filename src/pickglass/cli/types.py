"""What users write on the command line, turned into what the use cases take: layers, sizes, settings, boxes.

Layers have one grammar in all commands. ``+`` joins layers that one detector reads together, finest first, as in
``stage3+stage5``. ``,`` separates what is tried or shown one by one, as in ``stage3,stage5,stage3+stage5``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

from pickglass.errors import InputError

__all__ = [
    "box",
    "each_layer",
    "input_size",
    "joined_layers",
    "layer_sets",
    "names",
    "pixel_size",
    "setting",
    "settings_by_method",
    "sides",
]


def names(text: str | None) -> list[str] | None:
    """Split names at commas; None stays None.

    >>> names("resnet18,efficientnet_lite0")
    ['resnet18', 'efficientnet_lite0']
    """
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def layer_sets(text: str | None) -> list[str] | None:
    """Split the layers of several detectors at commas; None stays None.

    >>> layer_sets("layer2,layer2+layer3")
    ['layer2', 'layer2+layer3']
    """
    return names(text)


def joined_layers(text: str, option: str = "--layers") -> tuple[str, ...]:
    """Split the layers of one detector at the plus signs.

    A comma does the same for one more release, with a warning.

    >>> joined_layers("stage3+stage5")
    ('stage3', 'stage5')
    """
    if "," in text:
        warnings.warn(
            f"{option} {text}: write {text.replace(',', '+')}; '+' joins layers that one detector reads, and a comma "
            "separates detectors, as in 'pickglass study'. The comma will be refused in the next release",
            UserWarning,
            stacklevel=2,
        )
    return tuple(name.strip() for name in text.replace(",", "+").split("+") if name.strip())


def each_layer(text: str | None) -> list[str]:
    """List every layer that a text names, once and in its order, however they are joined; None: no layer.

    >>> each_layer("layer2,layer2+layer3")
    ['layer2', 'layer3']
    """
    return list(dict.fromkeys(name for group in layer_sets(text) or [] for name in joined_layers(group)))


def input_size(text: str) -> int | str:
    """Read the size of a network's input: a number of pixels, or a word such as ``letterbox:256`` as it is.

    >>> input_size("256"), input_size("letterbox:256")
    (256, 'letterbox:256')
    """
    return int(text) if text.isdecimal() else text


def sides(option: str, text: str) -> int | tuple[int, int]:
    """Read the side of a square, or height and width, in pixels.

    Raises:
        InputError: not of the form 256 or 256x512.

    >>> sides("--tile", "256"), sides("--tile", "256x512")
    (256, (256, 512))
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"{option} {text!r}: expected pixels such as 256, or height x width such as 256x512")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def pixel_size(option: str, text: str | None) -> tuple[int, int] | None:
    """Read height and width in pixels, equal where one number is given; None stays None.

    >>> pixel_size("--size", "256")
    (256, 256)
    """
    if text is None:
        return None
    size = sides(option, text)
    return (size, size) if isinstance(size, int) else size


def setting(text: str, example: str = "ratio=0.1") -> tuple[str, Any]:
    """Read ``key=value``; the value is JSON where it can be read as such, otherwise text.

    Raises:
        InputError: no key or no equals sign.

    >>> setting("ratio=0.1"), setting("layers=stage3+stage5"), setting("sizes=[1,2]")
    (('ratio', 0.1), ('layers', 'stage3+stage5'), ('sizes', (1, 2)))
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text!r}: expected key=value, e.g. --set {example}")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    return key.replace("-", "_"), tuple(parsed) if isinstance(parsed, list) else parsed


def settings_by_method(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read ``method.key=value`` into the settings of each method.

    Raises:
        InputError: no method, no key or no equals sign.

    >>> settings_by_method(["fastflow.epochs=20", "padim.dims=50"])
    {'fastflow': {'epochs': 20}, 'padim': {'dims': 50}}
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        key, value = setting(text, "fastflow.epochs=20")
        method, dot, name = key.partition(".")
        if not dot or not name:
            raise InputError(f"--set {text!r}: expected method.key=value, e.g. --set fastflow.epochs=20")
        found.setdefault(method, {})[name] = value
    return found


def box(text: str | None) -> list[int] | None:
    """Read ``x,y,width,height`` in pixels of the image; None stays None.

    Raises:
        InputError: not four numbers.

    >>> box("120,64,12,8")
    [120, 64, 12, 8]
    """
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"--box {text!r}: expected x,y,width,height in pixels, e.g. 120,64,12,8")
    return [int(part) for part in parts]
