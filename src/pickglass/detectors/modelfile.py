"""A model file holds a fitted detector: safetensors with a JSON header, no pickle, written whole or not at all.

Its tensors are ``head.*`` (what the method learned, the tiles and the fusion), ``backbone.*`` (the network up to the
deepest layer used), ``reference.*`` (the images that ``drift`` compares new ones with) and ``naming.*`` (what names
defects). The header, under the metadata key ``pickglass``, has ``format`` (version of this layout), ``method``,
``configuration``, ``preprocess``, ``calibration``, ``provenance`` and, where the model names defects, ``naming``. Files
that this version wrote also have ``id`` (digest of what decides the scores), ``version``, ``history`` (a
:class:`~pickglass.calibration.Change` for the fit and for each later one) and ``sha256`` of all else in the file, so
that a bit that flipped on a disk or a network drive is noticed, and nothing is judged with it.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pickglass.calibration import Calibration, Change
from pickglass.calibration.drift import Sample
from pickglass.data import Preprocess
from pickglass.data.files import output_path
from pickglass.data.stored import fits
from pickglass.detectors.method import Form, Method, assign
from pickglass.detectors.naming import Namer
from pickglass.detectors.settings import settings_digest
from pickglass.detectors.tiling import Tiles
from pickglass.errors import InputError, ModelFileError, shortened
from pickglass.features.backbones.registry import OWN, as_backbone
from pickglass.features.backbones.weights import WeightsInfo
from pickglass.features.extractor import FeatureExtractor
from pickglass.nn.tensor_file import write_tensors
from pickglass.runtime.model_header import FORMAT, check_model_file, history_of, parse_header, reading
from pickglass.runtime.provenance import Provenance

__all__ = ["model_id", "read_model", "restore", "save", "write_model"]

Detector = TypeVar("Detector", bound=Method)

_CHECKSUM = "sha256"

# What models did before there was a setting for it: what a file that does not state the setting was fitted with.
_BEFORE = {"top_share": 0.0, "length_weights": False, "stride_powers": False}

# What surrounds each method, and each part of a combination: what is usual at each place and each level of the map.
_SURROUNDING = {"place_gain": Form((None, None)), "place_shift": Form((None, None)), "level_line": Form((4,))}

# -- detectors ---------------------------------------------------------------------------------------------------------


def save(detector: Method, path: str | Path) -> Path:
    """Write a fitted detector, backbone included, as one .safetensors file.

    Raises:
        NotFitted: there is nothing to save yet.
        InputError: the name does not end in .safetensors, or the place cannot be written.
    """
    header: dict[str, Any] = {
        "method": detector.method,
        "configuration": detector.configuration(),
        "preprocess": detector.preprocess.to_json(),
        "calibration": detector.calibration.to_json() if detector.calibration else None,
        "provenance": detector.provenance.to_json(),
        "id": model_id(detector),
        **history_of(detector.history),
    }
    tensors = _learned(detector)
    if detector.reference is not None:
        for name, values in detector.reference.tensors().items():
            tensors[f"reference.{name}"] = torch.from_numpy(np.array(values))
    if detector.namer is not None:
        header["naming"] = detector.namer.to_json()
        for name, tensor in detector.namer.tensors.items():
            tensors[f"naming.{name}"] = tensor
    return write_model(path, header, tensors)


def model_id(detector: Method) -> str:
    """Return a short digest of what decides a detector's scores and maps: network, settings and what was learned.

    Raises:
        NotFitted: nothing was learned yet.
    """
    known = detector._file_id
    if known is not None and known[1] == detector.settings_digest():
        return known[0]  # also where a newer pickglass knows more settings than the one that wrote the file
    digest = hashlib.sha256(json.dumps([detector.method, detector.preprocess.to_json()]).encode())
    digest.update(settings_digest(detector.configuration()).encode())
    for name, tensor in sorted(_learned(detector).items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def _learned(detector: Method) -> dict[str, Tensor]:
    """Return the tensors of the network and of what the method learned, by their names in the file."""
    tensors: dict[str, Tensor] = detector.network.state_dict(prefix="backbone.")
    for name, tensor in detector.state_dict().items():
        if not name.startswith("extractor."):
            tensors[f"head.{name}"] = tensor
    return tensors


def restore(
    method: type[Detector],
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    source: str,
    backbone: nn.Module | str | None = None,
) -> Detector:
    """Make the detector that the content of a model file describes.

    Args:
        method: the class of the detector.
        header, tensors: as :func:`read_model` returns them.
        source: the name of the file, for messages.
        backbone: the module that it was fitted on, where that was one of the user's.

    Raises:
        InputError: the model needs its backbone handed over, another one, or none.
        ModelFileError: tensors are missing or have no place in this method, or the header is damaged.
    """
    configuration = dict(header["configuration"])
    stated = str(configuration.get("backbone"))
    if backbone is not None or stated.startswith(OWN):
        configuration["backbone"] = _own_backbone(stated, backbone, source)
    with reading(source, "fit the model anew"):
        return _restored(method, {**header, "configuration": configuration}, tensors, source)


def _restored(
    method: type[Detector], header: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str
) -> Detector:
    known = inspect.signature(method.__init__).parameters
    before = {name: value for name, value in _BEFORE.items() if name in known}
    configuration = {**before, **header["configuration"]}
    hints = get_type_hints(method.__init__)
    for name, value in configuration.items():
        if name in hints and not fits(value, hints[name]):
            raise InputError(f"its setting {name} is {shortened(value)}")
    detector = method.configured(configuration)
    detector.provenance = Provenance.from_json(header["provenance"])
    detector.extractor = FeatureExtractor(detector.backbone, detector.read_layers, None, scales=detector.scales)
    if detector.provenance.backbone_weights:
        detector.extractor.expect(WeightsInfo.from_json(detector.provenance.backbone_weights))
    detector._preprocess = Preprocess.from_json(header["preprocess"])
    if detector.tiling is not None:
        detector.tiles = Tiles(detector.tiling, detector.input_size)
    if detector.fusing is not None:
        from pickglass.features.research.fusion import Fusion

        detector.fusion = Fusion(detector.fusing, detector.backbone_shapes())
    shapes, positions = detector.level_shapes(), detector.tiles.heads if detector.tiles else 1
    detector.build(shapes, positions, seed=0)
    own = detector.extractor.state_dict(prefix="backbone.")
    forms = {name: Form(tuple(tensor.shape), tensor.dtype) for name, tensor in detector.state_dict().items()}
    forms |= detector.learned_forms(shapes, positions)
    missing = [name for name in own if name not in tensors]
    if missing:
        raise ModelFileError(f"{source}: lacks {len(missing)} tensors, e.g. {missing[0]!r}: fit the model anew")
    apart: dict[str, dict[str, Tensor]] = {"reference": {}, "naming": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in apart:
            apart[part][rest] = tensor
            continue
        place = f"extractor.{rest}" if part == "backbone" else rest
        if part == "head":
            front = (positions,) if detector.learns(place) else tensor.shape[:1]
            surrounding = _SURROUNDING.get(place.rpartition(".")[2], Form((*front, *tensor.shape[1:]), tensor.dtype))
            unlike = _unlike(tensor, forms.get(place, surrounding))
            if unlike:
                raise ModelFileError(f"{source}: tensor {name!r} {unlike} in {method.__name__}: fit the model anew")
        if name in own and (own[name].shape, own[name].dtype) != (tensor.shape, tensor.dtype):
            raise ModelFileError(
                f"{source}: tensor {name!r} is {tensor.dtype} of shape {tuple(tensor.shape)}, and this backbone has "
                f"{own[name].dtype} of {tuple(own[name].shape)}: fit the model anew"
            )
        if not assign(detector, place, tensor):
            raise ModelFileError(f"{source}: tensor {name!r} has no place in {method.__name__}: fit the model anew")
    detector.check_smoothing()
    for component in detector.components.values():
        component.check_smoothing()
    detector.check_learned(shapes)
    if detector.tiles is not None and not set(detector.tiles.head_of.tolist()) <= set(range(positions)):
        raise ModelFileError(f"{source}: its tiles name heads that it does not have: fit the model anew")
    if apart["reference"]:
        arrays = {name: tensor.numpy() for name, tensor in apart["reference"].items()}
        detector.reference = Sample.from_tensors(arrays, source)
    if header.get("naming") is not None:
        detector.namer = Namer.from_file(header["naming"], apart["naming"])
    if header["calibration"] is not None:
        detector.calibration = Calibration.from_json(header["calibration"])
    # settings may have new names, or be more, since the file was written: what was not stale then is not stale now
    then, now = settings_digest(header["configuration"]), detector.settings_digest()
    if detector.calibration is not None and detector.calibration.settings == then:
        detector.calibration = replace(detector.calibration, settings=now)
    if detector.reference is not None and detector.reference.settings == then:
        detector.reference = replace(detector.reference, settings=now)
    detector.history = tuple(Change.from_json(change) for change in header.get("history", ()))
    if "id" in header:
        detector._file_id = (header["id"], now)
    return detector.eval()


def _unlike(tensor: Tensor, form: Form) -> str:
    """Say what a tensor has and what is expected, where these differ; else nothing."""
    shape = tuple(tensor.shape)
    sizes = " x ".join("any" if size is None else str(size) for size in form.shape) or "no axes"
    if len(shape) != len(form.shape) or any(b not in (None, a) for a, b in zip(shape, form.shape, strict=True)):
        return f"has the shape {shape}, and {sizes} is expected"
    return "" if tensor.dtype == form.dtype else f"is {tensor.dtype}, and {form.dtype} is expected"


def _own_backbone(stated: str, given: nn.Module | str | None, source: str) -> str:
    """Return the module of the user's that a model file says it was fitted on, once it was handed over."""
    if not stated.startswith(OWN):
        raise InputError(f"{source}: fitted on {stated}, which the file has inside: load it without backbone")
    kind = stated.removeprefix(OWN)
    if given is None:
        raise InputError(
            f"{source}: fitted on a module of the user's, {kind}, whose weights are in the file and whose code is not: "
            "hand it over, in Python as pg.load(MODEL, backbone=module)"
        )
    backbone = as_backbone(given)
    if backbone != stated:
        raise InputError(f"{source}: fitted on a module of the class {kind}, but backbone={str(backbone)!r} was given")
    return backbone


# -- files -------------------------------------------------------------------------------------------------------------


def write_model(path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a model file whole or not at all.

    Raises:
        InputError: the name does not end in .safetensors, or the place cannot be written.
    """
    target = output_path(path, ".safetensors")
    known = {"format": FORMAT, **{name: value for name, value in header.items() if name != _CHECKSUM}}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**known, _CHECKSUM: _checksum(known, plain)})
    write_tensors(target, plain, {"pickglass": text})
    return target


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of a header without its checksum, and of all tensors."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_model(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the header and the tensors of a model file.

    Raises:
        ModelFileError: missing, not a pickglass model, of another format version, or damaged.
    """
    check_model_file(path)
    if Path(path).suffix == ".onnx":
        raise ModelFileError(
            f"{path}: an exported model, which judges and does not learn: name the model file (.safetensors) that it "
            "was exported from"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            header = parse_header(file.metadata() or {}, path)
            # a copy begins where memory is aligned; a product of tensors that do not may round differently
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except ModelFileError:
        raise
    except (SafetensorError, RuntimeError, ValueError) as error:  # also a kind of number that torch does not have
        raise ModelFileError(
            f"{path}: not a readable model file, or cut short ({error}): copy it again, or fit the model anew"
        ) from error
    written = header.pop(_CHECKSUM, None)
    if written is not None and written != _checksum(header, tensors):
        raise ModelFileError(
            f"{path}: its content is not what pickglass wrote (the checksum differs): copy it again, or fit the model "
            "anew"
        )
    return header, tensors
