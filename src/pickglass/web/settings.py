"""What ``pickglass serve`` is told: models, data, address, limits."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from pickglass.data.tables.sources import DataSource
from pickglass.errors import InputError
from pickglass.runtime.compute import ComputeOptions

__all__ = ["MAX_PIXELS", "ServeSettings", "is_loopback", "usual_folder"]

MAX_PIXELS = 100_000_000  # of an image that is sent: a few bytes may claim as many, and decoding takes memory

_SHORTEST_TOKEN = 16  # characters


@dataclass(frozen=True)
class ServeSettings:
    """The inspection page shows these models and data at this address, within these limits.

    Attributes:
        models: model files, exported or of the lab; the first is the one that a request without a name gets.
        data: data set for the review page; None: none.
        host: address to listen at; anything but a loopback address needs a token.
        port: port to listen at; 0: any free one.
        token: what requests have to carry, at least 16 characters; None: no token, on loopback only.
        folder: where marks, thumbnails and candidates of updates are kept. Nothing is written elsewhere, save the model
            files themselves when somebody sets thresholds or takes an update.
        watch: folder whose new images are judged and shown; None: none.
        pages: pages that ``study``, ``advise``, ``test``, ``look`` or ``layers`` wrote, to be opened from the page See.
        max_bytes: longest body of a request.
        max_requests: images that may wait for a model; beyond that the answer is 503 with Retry-After.
        compute: where to compute, how many images at once, and the largest image, by default of 100 megapixels.
    """

    models: tuple[Path, ...]
    data: DataSource | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    folder: Path | None = None
    watch: Path | None = None
    pages: tuple[Path, ...] = ()
    max_bytes: int = 64 * 2**20
    max_requests: int = 64
    compute: ComputeOptions = field(default_factory=lambda: ComputeOptions(max_pixels=MAX_PIXELS))

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("no model: name at least one file, e.g. pickglass serve bottle.onnx")
        if self.token is not None and (len(self.token) < _SHORTEST_TOKEN or not self.token.isascii()):
            raise InputError(
                f"a token of {len(self.token)} characters: expected at least {_SHORTEST_TOKEN} of ASCII, "
                "e.g. of: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        if self.token is None and not is_loopback(self.host):
            raise InputError(
                f"host {self.host!r} lets other machines in: give a token as well, --token or PICKGLASS_TOKEN, or stay "
                "at 127.0.0.1"
            )

        for page in self.pages:
            if page.suffix != ".html" or not page.is_file():
                raise InputError(f"page {str(page)!r}: expected a page that pickglass wrote, an existing .html file")

    @property
    def state_folder(self) -> Path:
        """Marks, thumbnails and candidates are kept here."""
        return self.folder or usual_folder()


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def usual_folder() -> Path:
    """Return the folder of the page for this user: ``$XDG_DATA_HOME/pickglass/serve``."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "pickglass" / "serve"
