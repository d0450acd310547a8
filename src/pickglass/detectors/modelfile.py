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

from pickglass.data.files import output_path, written_whole
from pickglass.detectors.model_header import FORMAT, check_model_file, parse_header
from pickglass.errors import ModelFileError

__all__ = ["assign", "read_model", "write_model"]


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


def read_model(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a model file; errors as :func:`~pickglass.detectors.model_header.read_model_header`."""
    with _opened(path) as file:
        header = parse_header(file.metadata() or {}, path)
        # a copy begins where memory is aligned; a product of tensors that do not may round differently
        return header, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    check_model_file(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelFileError(
            f"{path}: not a readable model file, or cut short ({error}): copy it again, or fit the model anew"
        ) from error


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
