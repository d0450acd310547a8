"""Features: a frozen backbone reads images, and everything that is measured of it or kept of it.

- backbones/: which networks there are, their layers and weights; extractor: a network cut at the layers that are read.
- engine: runs a network in OpenVINO or torch; batch: what a method reads; cache, shared: features kept for later.
- anatomy/: what a layer sees (receptive field), shows (visibility) and tells (probe).
- foreground: where the part is; distillation, teacher_file: a small network learns a large one's features.
- research/: fusion and adaptation, which were measured to bring nothing on real defects.
"""

from pickglass.features.backbones.registry import OwnBackbone, backbone_names, find_backbone
from pickglass.features.extractor import FeatureExtractor, layer_names

__all__ = ["FeatureExtractor", "OwnBackbone", "backbone_names", "find_backbone", "layer_names"]
