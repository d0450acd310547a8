"""Backbones and their features."""

from pickglass.features.backbones.registry import backbone_names, find_backbone
from pickglass.features.extractor import FeatureExtractor, layer_names

__all__ = ["FeatureExtractor", "backbone_names", "find_backbone", "layer_names"]
