"""Backbones that were built once are copied the next time: building one takes three quarters of a small fit.

A copy has the weights, the layers and the graph of what was built first, from the same arguments. Modules of the
user's, files of weights that a test names, and tests that are marked ``fresh`` get a network that is built for them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from pickglass.features.backbones.registry import OwnBackbone
from pickglass.features.extractor import FeatureExtractor

__all__ = ["fresh_or_remembered", "remember_networks"]

_MOST = 8  # networks, of at most this many numbers each
_LARGEST = 12_000_000
_kept: OrderedDict[str, FeatureExtractor] = OrderedDict()
_fresh = False


def fresh_or_remembered(item: pytest.Item) -> bool:
    """Set which of the two a test is to get, before its fixtures are made; return True for a fresh one."""
    global _fresh
    _fresh = item.get_closest_marker("fresh") is not None
    return _fresh


def remember_networks() -> None:
    """Let extractors of this process be copies of those that were built with the same arguments."""
    build = FeatureExtractor.__init__

    def built_or_copied(self: FeatureExtractor, backbone: str, *given: Any, **named: Any) -> None:
        weights = named.get("weights", given[1] if len(given) > 1 else "default")
        of_a_file = weights is not None and ("/" in weights or Path(weights.rpartition(":")[2]).exists())
        key = repr((backbone, given, sorted(named.items())))
        if _fresh or of_a_file or isinstance(backbone, OwnBackbone):
            return build(self, backbone, *given, **named)
        if key not in _kept:
            build(self, backbone, *given, **named)
            if sum(tensor.numel() for tensor in self.parameters()) <= _LARGEST:
                _kept[key] = copy.deepcopy(self)
                while len(_kept) > _MOST:
                    _kept.popitem(last=False)
            return None
        _kept.move_to_end(key)
        self.__dict__.update(copy.deepcopy(_kept[key]).__dict__)
        self._set_constants_apart()
        return None

    FeatureExtractor.__init__ = built_or_copied  # type: ignore[method-assign]
