"""Arithmetic and networks on tensors; nothing here knows an image file, a backbone or a method."""
