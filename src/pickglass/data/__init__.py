"""Images, the tables that list them, the folders they come from, and painted images come from here."""

from pickglass.data.images.decoder import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    Decoded,
    Header,
    decode,
    decode_all,
    read_header,
    read_image,
)
from pickglass.data.images.geometry import Prepared, Preprocess, parse_size, resize_map
from pickglass.data.images.masks import read_marks, read_mask
from pickglass.data.painting.defects import KINDS, Painted, paint
from pickglass.data.tables.account import Account
from pickglass.data.tables.defects import as_defects, check_defects, defects_at
from pickglass.data.tables.ground_truth import Region, read_regions
from pickglass.data.tables.inspection import describe, find_problems, image_sizes, usual_size
from pickglass.data.tables.layouts import LAYOUTS, Datasets, Layout, load_dataset, load_datasets
from pickglass.data.tables.memory import Channels
from pickglass.data.tables.roi import with_pixel_mm, with_roi
from pickglass.data.tables.rows import (
    MARGINS,
    Dataset,
    Role,
    Row,
    Saturation,
    Table,
    fingerprint,
    group_by,
    image_digest,
    known_names,
    short_names,
    split_roles,
)
from pickglass.data.tables.sources import DataSource, as_rows, as_table, tables_at

__all__ = [
    "IMAGE_SUFFIXES",
    "KINDS",
    "LAYOUTS",
    "MARGINS",
    "MAX_PIXELS",
    "Account",
    "Channels",
    "DataSource",
    "Dataset",
    "Datasets",
    "Decoded",
    "Header",
    "Layout",
    "Painted",
    "Prepared",
    "Preprocess",
    "Region",
    "Role",
    "Row",
    "Saturation",
    "Table",
    "as_defects",
    "as_rows",
    "as_table",
    "check_defects",
    "decode",
    "decode_all",
    "defects_at",
    "describe",
    "find_problems",
    "fingerprint",
    "group_by",
    "image_digest",
    "image_sizes",
    "known_names",
    "load_dataset",
    "load_datasets",
    "paint",
    "parse_size",
    "read_header",
    "read_image",
    "read_marks",
    "read_mask",
    "read_regions",
    "resize_map",
    "short_names",
    "split_roles",
    "tables_at",
    "usual_size",
    "with_pixel_mm",
    "with_roi",
]
