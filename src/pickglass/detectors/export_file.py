"""An exported file is ONNX; what else is known of the model stands in its metadata, as JSON under ``pickglass``.

The header has ``format`` (version of this layout), ``pickglass``, ``method``, ``configuration``, ``preprocess``,
``canvas``, ``calibration``, ``provenance``, ``drift_reference``, ``opset``, ``batch``, ``input``, ``map``, ``keep`` and
``certificate``. It is read without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pickglass.data.files import written_whole
from pickglass.detectors.model_header import check_model_file
from pickglass.errors import InputError, MissingExtra, ModelFileError

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["EXPORT_FORMAT", "read_export_header", "write_export"]

EXPORT_FORMAT = 1
"""Version of the header's layout; files of another version are refused."""

_KEY = "pickglass"
_KEYS = {"format", "method", "configuration", "preprocess", "calibration", "provenance", "certificate"}
_MOST_BYTES = 2**31 - 1  # protobuf, and so a file of ONNX, holds no more


def write_export(target: Path, model: ModelProto, header: Mapping[str, Any]) -> None:
    """Write a graph with its header, whole or not at all.

    Raises:
        InputError: the place cannot be written, or the file would be too large for ONNX.
    """
    from onnx import helper

    helper.set_model_props(model, {_KEY: json.dumps({"format": EXPORT_FORMAT, **header})})
    if model.ByteSize() > _MOST_BYTES:
        raise InputError(
            f"the file would have {model.ByteSize() / 1e9:.1f} GB, and ONNX holds 2 GB: fit a smaller model"
        )
    with written_whole(target) as temporary:
        temporary.write_bytes(model.SerializeToString())


def read_export_header(path: str | Path) -> dict[str, Any]:
    """Read the header of an exported file.

    Raises:
        ModelFileError: missing, damaged, no export of pickglass, or one of another format version.
        MissingExtra: onnx is not installed.
    """
    check_model_file(path)
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra.needed(f"reading {path}", error) from error
    try:
        model = onnx.load(str(path), load_external_data=False)
        found = {entry.key: entry.value for entry in model.metadata_props}
    except Exception as error:  # protobuf's own errors are of a package that is onnx's, not ours
        raise ModelFileError(
            f"{path}: not a readable ONNX file, or cut short ({str(error)[:100]}): copy it again, or export it anew"
        ) from error
    if _KEY not in found:
        raise ModelFileError(f"{path}: an ONNX file, but 'pickglass export' did not write it (it has no header of it)")
    try:
        header = json.loads(found[_KEY])
    except json.JSONDecodeError as error:
        raise ModelFileError(f"{path}: its header is damaged ({error}): export the model anew") from error
    version = header.get("format") if isinstance(header, dict) else None
    if version != EXPORT_FORMAT:
        remedy = (
            "upgrade pickglass" if isinstance(version, int) and version > EXPORT_FORMAT else "export the model anew"
        )
        raise ModelFileError(
            f"{path}: exported in format {version!r}, this pickglass reads format {EXPORT_FORMAT}: {remedy}"
        )
    if not set(header) >= _KEYS:
        raise ModelFileError(f"{path}: its header lacks {sorted(_KEYS - set(header))}: export the model anew")
    return dict(header)
