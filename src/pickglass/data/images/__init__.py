"""Single images, and what numpy and Pillow do with them; nothing here knows of tables.

``formats`` turns the bytes of a file into exact pixels, and ``pil`` an image that the user has opened with Pillow.
``decoder`` is the one way to read an image, and reads many of them in threads; ``masks`` is the one way to read which
pixels a mask marks. ``geometry`` brings pixels to a network's input and maps back to the image, and ``tiles`` divides
a canvas.
"""
