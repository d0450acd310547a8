"""The model file: safetensors with a JSON header, no pickle. Written to a temporary name and renamed.

Tensors are ``head.*`` (what the method learned), ``backbone.*`` (the network up to the deepest layer used) and, where
the model names defects, ``naming.*``. The header, under the metadata key ``pickglass``, has ``format`` (version of this
layout), ``method``, ``configuration``, ``preprocess``, ``calibration``, ``provenance`` and, if so, ``naming``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pickglass.data.files import missing, output_path, written_whole
from pickglass.errors import ModelFileError

__all__ = ["FORMAT", "assign", "read_header", "read_model", "write_model"]

FORMAT = 2
_KEYS = {"format", "method", "configuration", "preprocess", "calibration", "provenance"}


def write_model(path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a model file whole or not at all.

    Raises:
        InputError: the name does not end in .safetensors, or the place cannot be written.
    """
    target = output_path(path, ".safetensors")
    text = json.dumps({"format": FORMAT, **header})
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(target) as temporary:
        save_file(plain, temporary, metadata={"pickglass": text})
    return target


def read_header(path: str | Path) -> dict[str, Any]:
    """The header of a model file, without reading its tensors.

    Raises:
        ModelFileError: missing, not a pickglass model, of another format version, or damaged.
    """
    with _opened(path) as file:
        return _header(file, path)


def read_model(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a model file; errors as :func:`read_header`."""
    with _opened(path) as file:
        header = _header(file, path)
        # a copy begins where memory is aligned; a product of tensors that do not may round differently
        return header, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    if not Path(path).exists():
        raise ModelFileError(f"{path}: {missing(path)}. Expected a model that 'pickglass fit' wrote")
    if not Path(path).is_file():
        raise ModelFileError(f"{path} is a folder; expected a model file that 'pickglass fit' wrote")
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelFileError(
            f"{path}: not a readable model file, or cut short ({error}): copy it again, or fit the model anew"
        ) from error


def _header(file: Any, path: str | Path) -> dict[str, Any]:
    text = (file.metadata() or {}).get("pickglass")
    if text is None:
        raise ModelFileError(f"{path}: a safetensors file, but not a pickglass model (it has no pickglass header)")
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelFileError(f"{path}: its pickglass header is damaged ({error}): fit the model anew") from error
    version = header.get("format") if isinstance(header, dict) else None
    if version != FORMAT:
        remedy = "upgrade pickglass" if isinstance(version, int) and version > FORMAT else "fit the model anew"
        raise ModelFileError(f"{path}: model format {version!r}, this pickglass reads format {FORMAT}: {remedy}")
    if not set(header) >= _KEYS:
        raise ModelFileError(f"{path}: its header lacks {sorted(_KEYS - set(header))}: fit the model anew")
    return dict(header)


def assign(module: nn.Module, name: str, tensor: Tensor) -> bool:
    """Put a tensor where a buffer or parameter of that name is, of whatever shape; False where there is none."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return False
    if leaf in owner._buffers:
        owner._buffers[leaf] = tensor
    elif leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        return False
    return True
