"""Images that are made instead of taken, and what is done to images on purpose.

``defects`` paints a defect with an exact mask: its kinds lie in ``surface_defects``, ``thread_defects`` and
``part_defects`` and draw with ``shapes``. ``cloth`` weaves, ``trays`` lays out parts, ``natural`` makes pictures with
the statistics of photographs, ``disturbances`` changes light, focus, noise and place as a line does, and ``softness``
tells how soft the edges of images are.
"""
