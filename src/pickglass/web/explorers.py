"""Images that somebody looks at through the layers of a model: the last few stay, and little is computed at once."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fastapi import HTTPException

if TYPE_CHECKING:
    from pickglass.app.see.explorer import LayerExplorer

__all__ = ["Explorers"]

_KEPT = 4  # images, with the features of their layers
_WAITING = 8  # requests that may wait for their turn; each holds an image
_AGAIN = 5  # seconds after which a request that was turned away may come again


class Explorers:
    """The images that are looked at have a name, by which further questions about them are asked."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, LayerExplorer] = OrderedDict()
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._asking = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn to compute: gradients and searches take all cores, and judging must go on beside them.

        Raises:
            HTTPException: 503 with Retry-After, too many wait already.
        """
        with self._lock:
            if self._asking > _WAITING:
                raise HTTPException(503, "too many explanations are asked for at once", {"Retry-After": str(_AGAIN)})
            self._asking += 1
        try:
            with self._turn:
                yield
        finally:
            with self._lock:
                self._asking -= 1

    def keep(self, explorer: LayerExplorer) -> str:
        """Keep an image, and put away the one that was not asked about for longest; return its name."""
        name = secrets.token_urlsafe(12)
        with self._lock:
            self._kept[name] = explorer
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> LayerExplorer:
        """Return the image of a name.

        Raises:
            HTTPException: 404, it was put away.
        """
        with self._lock:
            if name not in self._kept:
                raise HTTPException(404, "this image was put away for others: open it again")
            self._kept.move_to_end(name)
            return self._kept[name]
