"""Images, tables of images, and the folders they come from."""

from pickglass.data.defects import KINDS, Painted, paint
from pickglass.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    Decoded,
    Header,
    Preprocess,
    decode,
    image_size,
    read_header,
    read_image,
    read_mask,
    resize_map,
)
from pickglass.data.layouts import LAYOUTS, Layout, as_table, check_images, describe, load_dataset
from pickglass.data.tables import Dataset, Role, Row, Table, fingerprint, split_roles

__all__ = [
    "IMAGE_SUFFIXES",
    "KINDS",
    "LAYOUTS",
    "MAX_PIXELS",
    "Dataset",
    "Decoded",
    "Header",
    "Layout",
    "Painted",
    "Preprocess",
    "Role",
    "Row",
    "Table",
    "as_table",
    "check_images",
    "decode",
    "describe",
    "fingerprint",
    "image_size",
    "load_dataset",
    "paint",
    "read_header",
    "read_image",
    "read_mask",
    "resize_map",
    "split_roles",
]
