"""Model files: bit-equal after loading, whole or not at all, and every wrong file refused with a reason."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import pickglass as pg
from least_training import LEAST, few_methods
from pickglass.detectors.modelfile import read_model, restore, write_model
from pickglass.errors import InputError, ModelFileError, UnknownName
from pickglass.methods import METHODS
from pickglass.runtime.model_header import FORMAT, read_model_header
from pickglass.testing import textures


@pytest.fixture(scope="module")
def detector() -> pg.Detector:
    return pg.PatchCore(size=64, ratio=0.05).fit(textures(12, 64))


@pytest.fixture(scope="module")
def model(detector: pg.Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector.save(tmp_path_factory.mktemp("model") / "m.safetensors")


def rewritten(model: Path, target: Path, **changes: object) -> Path:
    with safe_open(str(model), "pt") as file:
        header = {**json.loads(file.metadata()["pickglass"]), "sha256": ..., **changes}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, target, metadata={"pickglass": json.dumps({k: v for k, v in header.items() if v is not ...})})
    return target


@pytest.mark.slow
@pytest.mark.fresh
def test_everything_comes_back(detector: pg.Detector, model: Path) -> None:
    loaded = pg.load(model)
    images = textures(4, 80, seed=3)
    first, second = detector.predict(images), loaded.predict(images)
    assert np.array_equal(first.scores, second.scores)
    assert all(np.array_equal(a, b) for a, b in zip(first.maps, second.maps, strict=True))
    assert loaded.calibration == detector.calibration
    assert loaded.provenance == detector.provenance
    assert torch.equal(loaded.state_dict()["bank"], detector.state_dict()["bank"])


@pytest.mark.slow
@pytest.mark.fresh
def test_it_works_without_the_weights_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pickglass.features.extractor.weights_for", lambda *_: pytest.fail("weights were looked for"))
    pg.load(model).predict(textures(1, 64))


def test_the_header_says_what_it_is(model: Path) -> None:
    header = read_model_header(model)
    assert header["format"] == FORMAT
    assert header["method"] == "patchcore"
    assert header["configuration"]["ratio"] == 0.05
    assert header["preprocess"] == {
        "size": [64, 64],
        "interpolation": "bicubic",
        "geometry": "squeeze",
        "side": None,
    }
    assert header["provenance"]["backbone_weights"]["name"] == "efficientnet-lite0-57934424.pth"
    assert header["provenance"]["n_fit"] + header["provenance"]["n_calibrate"] == 12
    assert len(header["provenance"]["data_sha256"]) == 64


def test_it_carries_the_backbone_only_up_to_the_deepest_layer(model: Path) -> None:
    assert model.stat().st_size < 4_000_000
    with safe_open(str(model), "pt") as file:
        names = list(file.keys())
    assert any(name.startswith("backbone.body.blocks.4") for name in names)
    assert not any("blocks.5" in name for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": FORMAT + 1}, f"model format {FORMAT + 1}, this pickglass reads format {FORMAT}: upgrade"),
        ({"format": "old"}, "fit the model anew"),
        ({"calibration": ...}, r"lacks \['calibration'\]"),
    ],
)
def test_other_versions_are_refused(model: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        pg.load(rewritten(model, tmp_path / "other.safetensors", **changes))


def test_an_unknown_method_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown method 'patchcoar'"):
        pg.load(rewritten(model, tmp_path / "other.safetensors", method="patchcoar"))


def test_wrong_files_are_refused(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "wrong.safetensors"
    with pytest.raises(ModelFileError, match="no such file"):
        pg.load(target)
    content = model.read_bytes()
    for cut in (len(content) - 1, len(content) // 2, 100, 0):
        target.write_bytes(content[:cut])
        with pytest.raises(ModelFileError, match="cut short"):
            pg.load(target)
    target.write_text("not a model at all")
    with pytest.raises(ModelFileError, match="not a readable model file"):
        pg.load(target)
    save_file({"x": torch.zeros(2)}, target)
    with pytest.raises(ModelFileError, match="not a pickglass model"):
        pg.load(target)
    save_file({"x": torch.zeros(2)}, target, metadata={"pickglass": "{broken"})
    with pytest.raises(ModelFileError, match="header is damaged"):
        pg.load(target)


@pytest.mark.fresh
def test_foreign_tensors_are_refused(model: Path, tmp_path: Path) -> None:
    with safe_open(str(model), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["pickglass"])
    del about["sha256"]  # as in files of older versions
    metadata = {"pickglass": json.dumps(about)}
    save_file({**tensors, "backbone.body.nonsense": torch.zeros(1)}, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(ModelFileError, match=r"'backbone.body.nonsense' has no place"):
        pg.load(tmp_path / "m.safetensors")
    save_file({**tensors, "head.nonsense": torch.zeros(1)}, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(ModelFileError, match=r"'head.nonsense' has no place"):
        pg.load(tmp_path / "m.safetensors")
    short = {name: tensor for name, tensor in tensors.items() if name != "backbone.body.conv_stem.weight"}
    save_file(short, tmp_path / "m.safetensors", metadata=metadata)
    with pytest.raises(ModelFileError, match="lacks"):
        pg.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("share", [0.03, 0.2, 0.6, 0.95])
def test_a_flipped_bit_is_noticed(model: Path, tmp_path: Path, share: float) -> None:
    content = bytearray(model.read_bytes())
    content[int(share * len(content))] ^= 1
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"not what pickglass wrote|header is damaged|not a readable"):
        pg.load(tmp_path / "m.safetensors")


def test_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.safetensors"
    target.write_text("the old one")

    def full_disk(_: object, path: Path, **__: object) -> None:
        Path(path).write_text("half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("pickglass.nn.tensor_file.save_file", full_disk)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\): free some of the disk"):
        write_model(target, {}, {})
    assert target.read_text() == "the old one"
    assert list(tmp_path.iterdir()) == [target]


def test_bad_targets(detector: pg.Detector, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        detector.save(tmp_path / "model.pt")
    with pytest.raises(InputError, match="existing folder"):
        detector.save(tmp_path / "absent" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", few_methods("patchcore", "padim", "subspace"))
def test_a_tensor_of_another_shape_is_refused(method: str, tmp_path: Path) -> None:
    chosen = METHODS[method]
    settings = {"size": 64, **chosen.quick_settings(6, 256)}
    settings |= {name: value for name, value in LEAST.items() if name in inspect.signature(chosen).parameters}
    fitted = chosen.configured(settings).fit(textures(6, 64, seed=0), calibrate=0, seed=0, engine="torch")
    header, tensors = read_model(fitted.save(tmp_path / "m.safetensors"))
    learned = [name for name in tensors if name.startswith("head.")]
    assert learned
    refused = 0
    for name in [*learned[:8], *learned[-4:]]:
        tensor = tensors[name]
        others = [tensor[None], tensor[..., None], torch.cat([tensor, tensor]) if tensor.dim() else tensor[None]]
        others += [tensor.double() if tensor.is_floating_point() else tensor.float()]
        others += [tensor.reshape(tensor.shape[::-1])] if tensor.shape != tensor.shape[::-1] else []
        for other in others:
            with pytest.raises(
                ModelFileError, match=r"m\.safetensors: tensor '.*' (has the shape|is) .*: fit the model anew"
            ):
                restore(chosen, header, {**tensors, name: other}, "m.safetensors")
            refused += 1
    assert refused > 3


def test_indices_beyond_their_range_are_refused(tmp_path: Path) -> None:
    tiled = pg.PaDiM(layers=["stage1"], dims=4, size=64).tiled(tile=32)
    header, tensors = read_model(
        tiled.fit(textures(6, 64), calibrate=0, engine="torch").save(tmp_path / "m.safetensors")
    )
    for name, message in (
        ("head.channels", "channels are not all between"),
        ("head.tiles.head_of", "tiles name heads"),
    ):
        for value in (-1, 1000):
            with pytest.raises(ModelFileError, match=message):
                restore(pg.PaDiM, header, {**tensors, name: torch.full_like(tensors[name], value)}, "m.safetensors")


def test_a_smoothing_beyond_the_image_is_refused(model: Path) -> None:
    for value in (-1.0, 2.0**63):
        with pytest.raises(InputError, match=r"smoothing=.*: expected a standard deviation in pixels"):
            pg.PatchCore(size=64, smoothing=value).fit(textures(4, 64), engine="torch")
        header, tensors = read_model(model)
        header["configuration"]["smoothing"] = value
        with pytest.raises(ModelFileError, match="smoothing="):
            restore(pg.PatchCore, header, tensors, "m.safetensors")
