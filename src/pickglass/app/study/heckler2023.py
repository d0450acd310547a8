"""The study of Heckler, König and Bergmann: its combinations, and the receptive fields of its layers.

"Exploring the Importance of Pretrained Feature Extractors for Unsupervised Anomaly Detection and Localization", CVPR
workshops 2023: four backbones, each of table 2's layers on its own, six initialisations of a ResNet-50 (table 1).

What the supplementary material leaves open, and what is done here: the input of figures 2, 4 and 5 has 256 pixels a
side, that of figure 3 also 128 and 512. Supervised weights are torchvision's IMAGENET1K_V1, in figures 4 and 5 the
IMAGENET1K_V2 that table 1 names.
"""

from __future__ import annotations

from pickglass.app.pages.heckler2023 import AST, BACKBONES, CORE, FLOW, SIZES, WEIGHTS
from pickglass.app.see.layers import layers as measure_layers
from pickglass.app.see.request import BackboneRequest
from pickglass.app.study.cells import Grid
from pickglass.app.study.store import StudyStore
from pickglass.features.backbones.registry import find_backbone

__all__ = ["HECKLER2023", "layers_by_field"]

HECKLER2023 = (
    Grid((AST, FLOW), BACKBONES),  # figure 2
    Grid((FLOW,), ("wide_resnet50_2",), sizes=SIZES),  # figure 3
    Grid((CORE,), ("densenet201",), sizes=SIZES),
    Grid((AST, CORE), ("resnet50",), weights=WEIGHTS),  # figures 4 and 5
)


def layers_by_field(store: StudyStore, backbone: str) -> dict[str, int]:
    """Return the named layers of a backbone and their receptive fields by gradient in pixels, the smallest first.

    They are measured once and kept in the file; without the published weights on random ones.
    """
    names = [level.name for level in find_backbone(backbone).levels]
    known = store.fields(backbone)
    if not set(names) <= set(known):
        found = measure_layers(BackboneRequest(backbone, names))
        known = {node["name"]: node["rf_gradient"] for node in found["nodes"]}
        store.keep_fields(backbone, found["weights"], known)
    return {name: known[name] for name in sorted(names, key=lambda name: (known[name], names.index(name)))}
