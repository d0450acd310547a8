"""Backbones and their features."""

from pickglass.features.backbones.registry import backbone_names, find_backbone
from pickglass.features.extractor import FeatureExtractor, build_backbone, layer_names

__all__ = ["FeatureExtractor", "backbone_names", "build_backbone", "find_backbone", "layer_names"]
