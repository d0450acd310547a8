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
from pickglass.data.inspect import check_images, describe, find_problems
from pickglass.data.layouts import LAYOUTS, Layout, load_dataset, load_datasets
from pickglass.data.regions import Region, read_regions
from pickglass.data.sources import as_table
from pickglass.data.tables import (
    Dataset,
    Role,
    Row,
    Saturation,
    Table,
    fingerprint,
    group_by,
    image_digest,
    split_roles,
)

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
    "Region",
    "Role",
    "Row",
    "Saturation",
    "Table",
    "as_table",
    "check_images",
    "decode",
    "describe",
    "find_problems",
    "fingerprint",
    "group_by",
    "image_digest",
    "image_size",
    "load_dataset",
    "load_datasets",
    "paint",
    "read_header",
    "read_image",
    "read_mask",
    "read_regions",
    "resize_map",
    "split_roles",
]
