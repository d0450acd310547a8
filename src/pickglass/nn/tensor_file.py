"""Tensors go into a safetensors file, whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pickglass.data.files import written_whole

__all__ = ["write_tensors"]


def write_tensors(target: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write tensors and a header of texts; until that is done the file before stays.

    Args:
        target: file to write.
        tensors: in the memory of the CPU, each contiguous, no two sharing any.
        header: the file's metadata.

    Raises:
        InputError: the place cannot be written, or the disk is full.
    """
    with written_whole(target) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=dict(header))
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
