"""Images, tables of images, and the folders they come from."""

from pickglass.data.defects import KINDS, Painted, paint
from pickglass.data.geometry import Preprocess, parse_size, resize_map
from pickglass.data.images import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    Decoded,
    Header,
    decode,
    image_size,
    read_header,
    read_image,
    read_mask,
)
from pickglass.data.inspect import check_images, describe, find_problems
from pickglass.data.layouts import LAYOUTS, Layout, load_dataset, load_datasets
from pickglass.data.regions import Region, read_regions
from pickglass.data.roi import MARGINS, read_roi, with_pixel_mm, with_roi
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
    "MARGINS",
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
    "parse_size",
    "read_header",
    "read_image",
    "read_mask",
    "read_regions",
    "read_roi",
    "resize_map",
    "split_roles",
    "with_pixel_mm",
    "with_roi",
]
