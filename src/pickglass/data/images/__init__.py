"""Single images, and what numpy and Pillow do with them; nothing here knows of tables.

``formats`` turns the bytes of a file into exact pixels. ``decoder`` is the one way to read an image or a mask, and
reads many of them in threads. ``geometry`` brings pixels to a network's input and maps back to the image, and
``tiles`` divides a canvas.
"""
