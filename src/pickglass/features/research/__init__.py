"""Research: ways to change the features before a method sees them, which brought nothing on real defects.

``docs/fusion.md`` has the measurements, on the tiles of magnetic_tile (real defects) and on woven cloth (painted ones),
with PatchCore and PaDiM, one seed and one backbone:

- :mod:`~pickglass.features.research.fusion`, layers joined before the method: which layers are read matters more than
  how they are joined. ``pyramid`` is about as good as plain concatenation; standardising and whitening change little;
  ``bilinear`` is worse, and far worse once its levels are whitened; ``attention`` gains 0.02 of AUPRO@0.05 on cloth
  with PaDiM and loses 0.07 on tiles; two scales gain image AUROC on tiles with PaDiM and lose AUPRO on cloth.
- :mod:`~pickglass.features.research.adaptation`, stages of the backbone fine-tuned on good images with painted
  defects: no clear gain on real defects (AUPRO@0.3 +0.016 with PatchCore, -0.005 with PaDiM). The gain on cloth is on
  defects of the generator that it was trained with.

They stay for those who want to go on from here. No default uses them, and a fit imports this folder only if
``fused(...)`` or ``adapted(...)``, or a model file that was made with them, asks for it.
"""
