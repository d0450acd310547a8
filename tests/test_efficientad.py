"""EfficientAD against its formulas done literally, its networks, its teachers' files, and the conformance suite."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import itertools
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from pickglass.app.pages.report import ReportImage, draw_panels
from pickglass.data.painting.natural import PHOTOGRAPHS, natural_images, natural_photos, photograph
from pickglass.detectors.method import FitContext
from pickglass.errors import DataError, InputError, WeightsMissing
from pickglass.features import engine as engine_module
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.backbones.weights import find_weights
from pickglass.features.batch import Batch
from pickglass.features.engine import BackboneEngine, PerPositionEngine
from pickglass.features.extractor import FeatureExtractor
from pickglass.methods import load
from pickglass.methods.efficientad import EfficientAD, jitter
from pickglass.methods.patchcore import PatchCore
from pickglass.nn.maps import ChannelMoments, resampled_to
from pickglass.nn.networks.pdn import CHANNELS, FRAME, PDN, Autoencoder, Student
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.training.plan import Draws
from pickglass.runtime.compute import EngineName
from pickglass.testing import textures

SMALL = {"backbone": "pdn_tiny", "weights": "random", "size": 64, "steps": 2}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- the networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "small", "medium"])
def test_a_cell_sees_33_by_33_pixels_and_the_stride_is_4(model: str) -> None:
    pdn = PDN(model)  # type: ignore[arg-type]
    image = torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = pdn(image)
    assert out.shape == (1, CHANNELS, 8, 10)  # (64 - 32) / 4, (72 - 32) / 4
    for y, x in ((0, 0), (5, 7)):
        (gradient,) = torch.autograd.grad(out[0, :, y, x].square().sum(), image, retain_graph=True)
        rows, columns = gradient[0].abs().sum(0).nonzero().T
        assert (int(rows.min()), int(rows.max())) == (4 * y, 4 * y + 32)
        assert (int(columns.min()), int(columns.max())) == (4 * x, 4 * x + 32)


def test_parameter_counts() -> None:
    """By hand: kernel x kernel x channels in x channels out, and a bias each."""

    def count(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    small = 16 * 3 * 128 + 128 + 16 * 128 * 256 + 256 + 9 * 256 * 256 + 256 + 16 * 256 * 384 + 384
    assert count(PDN("small")) == small == 2_694_144
    assert count(Student("small")) - small == 16 * 256 * 384 + 384
    medium = 16 * 3 * 256 + 256 + 16 * 256 * 512 + 512 + 512 * 512 + 512 + 9 * 512 * 512 + 512
    medium += 16 * 512 * 384 + 384 + 384 * 384 + 384
    assert count(PDN("medium")) == medium
    encoder = 16 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 64) + 32 + 32 + 64 + 64 + 64 + 64 * 64 * 64 + 64
    decoder = 6 * (16 * 64 * 64 + 64) + 9 * 64 * 64 + 64 + 9 * 64 * 384 + 384
    assert count(Autoencoder((8, 8))) == encoder + decoder
    # the paper's 8 million of S, in all
    assert round((small + count(Student("small")) + encoder + decoder) / 1e6) == 8


def test_the_reflected_frame_adds_four_cells_on_each_side() -> None:
    images = drawn(0, 2, 3, 70, 81)
    padded, plain = PDN("tiny", frame=FRAME), PDN("tiny")
    plain.load_state_dict(padded.state_dict())
    torch.testing.assert_close(padded(images)[:, :, 4:-4, 4:-4], plain(images))


def test_a_part_of_the_student_is_that_part_of_the_whole() -> None:
    student, images = Student("tiny"), drawn(1, 1, 3, 48, 48)
    whole = student(images)
    assert whole.shape[1] == 2 * CHANNELS
    torch.testing.assert_close(student(images, slice(CHANNELS, None)), whole[:, CHANNELS:])


def test_the_autoencoder_knows_the_image_at_large_and_drops_out_in_training_only() -> None:
    net = Autoencoder((5, 7))
    images = drawn(2, 1, 3, 256, 256)
    assert net.encoder(images).shape == (1, 64, 1, 1)
    assert net(images).shape == (1, CHANNELS, 5, 7)
    draws = Draws()
    assert not torch.equal(net(images, draws), net(images, draws))
    net.eval()
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize("side", [64, 256, 300, 512])
def test_the_autoencoders_resize_is_the_antialiased_one(side: int) -> None:
    images = torch.rand(1, 2, 3, side, 2 * side - 30, generator=torch.Generator().manual_seed(0))
    wanted = nn.functional.interpolate(images[0], size=(256, 256), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(resampled_to(images, (256, 256))[0], wanted, rtol=1e-4, atol=1e-4)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_mean_and_deviation_are_those_of_two_passes() -> None:
    """On numbers where the mean of squares minus the square of the mean has lost every digit in float32."""
    levels = [10_000 + drawn(seed, n, 2, 3, 4, 5) for seed, n in ((5, 3), (6, 1), (7, 2))]
    moments = ChannelMoments()
    for level in levels:
        moments.add(level)
    mean, std = moments.mean_and_std()
    for p in range(2):
        for c in range(3):
            values = [float(v) for level in levels for v in level[:, p, c].flatten()]
            first = sum(values) / len(values)
            second = sum((v - first) ** 2 for v in values) / len(values)
            assert float(mean[p, c]) == pytest.approx(first, rel=1e-12)
            assert float(std[p, c]) == pytest.approx(math.sqrt(second), rel=1e-9)


def test_moments_leave_out_what_does_not_count() -> None:
    level = drawn(8, 2, 1, 3, 4, 4)
    keep = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    keep[0, 0, 1] = True
    moments = ChannelMoments()
    moments.add(level, keep)
    mean, std = moments.mean_and_std()
    cells = level[0, 0, :, 1].double()
    torch.testing.assert_close(mean[0], cells.mean(1))
    torch.testing.assert_close(std[0], cells.std(1, correction=0))


def test_jitter_changes_one_property_of_each_image() -> None:
    images = 0.3 + 0.4 * torch.rand(60, 1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = jitter(images, Draws(0))
    grey = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    kinds = set()
    for before, after in zip(images[:, 0], found[:, 0], strict=True):
        luma = (before * grey).sum(0)
        for kind, towards in enumerate((torch.zeros(()), luma.mean(), luma)):
            factor = ((after - towards) / (before - towards)).flatten()
            if float(factor.std()) < 1e-3:
                assert 0.8 <= float(factor.mean()) <= 1.2
                kinds.add(kind)
                break
        else:
            pytest.fail("no property was multiplied")
    assert kinds == {0, 1, 2}


# -- the head ----------------------------------------------------------------------------------------------------------


def ready(positions: int = 2, images: int = 3, **settings: object) -> tuple[EfficientAD, Batch]:
    """A detector with its networks in eval mode and a reading of random images, the teacher random too."""
    return copy.deepcopy(_ready(positions, images, tuple(settings.items())))


@functools.cache
def _ready(positions: int, images: int, settings: tuple[tuple[str, object], ...]) -> tuple[EfficientAD, Batch]:
    detector = EfficientAD(**{**SMALL, "natural": "none", **dict(settings)})  # type: ignore[arg-type]
    detector.extractor = FeatureExtractor("pdn_tiny", ["teacher"], "random", 5)
    pixels = torch.rand(images, positions, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    level = detector.extractor(pixels.flatten(0, 1))[0].unflatten(0, (images, positions))
    detector.build([(CHANNELS, 16, 16)], positions, 0)
    detector.begin_fit(FitContext(images, [(CHANNELS, 16, 16)], positions, 0, 1.0, lambda *_: None, n_validate=1))
    detector.observe(Batch((level,), pixels))
    return detector.eval(), Batch((level,), pixels)


@torch.no_grad()
@pytest.mark.slow
def test_the_loss_is_the_sum_of_the_papers_four_done_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = ready()
    assert detector.student is not None
    assert detector.autoencoder is not None
    assert batch.images is not None
    other = 0.9 * batch.images
    seen: list[Tensor] = []
    monkeypatch.setattr("pickglass.methods.efficientad.jitter", lambda images, draws: (seen.append(images), other)[1])
    detector._pictures = (255 * batch.images[:1, 0]).round().to(torch.uint8)  # one picture, so it is drawn
    found = detector.loss(batch)
    assert len(seen) == 1  # the same jittered images for teacher, autoencoder and student
    extractor = detector.network
    penalty_images = (
        (detector._pictures.float() / 255)[:, None].expand(3, 2, -1, -1, -1) - extractor.mean
    ) / extractor.std
    students = detector.student((batch.images - extractor.mean) / extractor.std)
    jittered = (other - extractor.mean) / extractor.std
    students_jittered = detector.student(jittered)
    compressed = detector.autoencoder(resampled_to(jittered, (256, 256)))
    teacher_jittered = extractor(other.flatten(0, 1))[0].unflatten(0, (3, 2))
    penalty = detector.student(penalty_images)
    for p in range(2):
        own = batch.levels[0][:, p]
        mean, std = own.mean((0, 2, 3), keepdim=True), own.std((0, 2, 3), correction=0, keepdim=True)
        parts = []
        for b in range(3):
            d = ((own[b] - mean[0]) / std[0] - students[b, p, :CHANNELS]).square().flatten()
            hard = d[d >= torch.quantile(d, 0.999)].mean()
            t = (teacher_jittered[b, p] - mean[0]) / std[0]
            ae = (t - compressed[b, p]).square().mean()
            stae = (compressed[b, p] - students_jittered[b, p, CHANNELS:]).square().mean()
            parts.append(float(hard + ae + stae + penalty[b, p, :CHANNELS].square().mean()))
        assert float(found[p]) == pytest.approx(np.mean(parts), rel=1e-3)


@pytest.mark.slow
def test_gradients_reach_student_and_autoencoder_and_not_the_teacher() -> None:
    detector, batch = ready()
    detector.loss(batch).sum().backward()
    assert detector.student is not None
    assert detector.autoencoder is not None
    for net in (detector.student, detector.autoencoder):
        assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in net.parameters())
    assert all(p.grad is None for p in detector.network.parameters())


@pytest.mark.slow
def test_the_quantiles_of_held_back_images_become_0_and_a_tenth() -> None:
    detector, batch = ready()
    with torch.no_grad():
        local, whole = detector._branches(batch)
        for i in range(3):  # in batches of one
            one = Batch((batch.levels[0][i : i + 1],), batch.images[i : i + 1])  # type: ignore[index]
            detector.observe_validation(one)
        detector.end_fit()
        parts = detector.component_maps(batch)
        scores, maps = detector.score(batch)
    for p in range(2):
        for name, plain in (("local", local), ("global", whole)):
            low, high = np.quantile(plain[:, p].numpy(), [0.9, 0.995])
            wanted = 0.1 * (plain[:, p].numpy() - low) / (high - low)
            np.testing.assert_allclose(parts[name][:, p].numpy(), wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(maps, (parts["local"] + parts["global"]) / 2)
    torch.testing.assert_close(scores, maps.flatten(2).max(2).values)


@pytest.mark.slow
def test_a_ring_that_sees_mirrored_pixels_has_quantiles_of_its_own() -> None:
    detector, batch = ready()
    keep = torch.ones(3, 2, 64, 64, dtype=torch.bool)
    keep[:, 1, :4] = False  # one row of the outermost ring
    with torch.no_grad():
        for _ in range(4):  # 12 images, of which the fourth ring has 432 cells
            detector.observe_validation(batch._replace(keep=keep))
        detector.end_fit()
        parts = detector.component_maps(batch)
    rings = torch.tensor([min(y, x, 15 - y, 15 - x, 4) for y in range(16) for x in range(16)])
    kept = keep[0, :, ::4, ::4].flatten(1)
    for name, p, ring in itertools.product(("local", "global"), range(2), range(5)):
        values = parts[name][:, p].flatten(1)[:, (rings == ring) & kept[p]].repeat(4, 1)
        np.testing.assert_allclose(np.quantile(values.numpy(), [0.9, 0.995]), [0, 0.1], atol=1e-4)


@pytest.mark.slow
def test_a_ring_of_too_few_cells_is_scaled_as_all() -> None:
    detector, batch = ready()
    with torch.no_grad():
        detector.observe_validation(batch)
        detector.end_fit()
        assert len({tuple(ring) for ring in detector.quantiles[0, 0].tolist()}) == 1
        expected = detector.component_maps(batch)
        detector.quantiles = detector.quantiles[:, :, 0]  # as files hold them from before there were rings
        for name, maps in detector.component_maps(batch).items():
            torch.testing.assert_close(maps, expected[name])


def test_maps_that_never_vary_cannot_be_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = ready()
    flat = torch.full((3, 2, 16, 16), 0.5)
    monkeypatch.setattr(detector, "_branches", lambda _: (flat, flat))
    detector.observe_validation(batch)
    with pytest.raises(DataError, match=r"cannot scale its maps: .*0\.5.* are not all apart.*give images that show"):
        detector.end_fit()


@pytest.mark.slow
def test_the_zero_frame_judges_no_pixel_within_16_of_the_border() -> None:
    detector, batch = ready(frame="zero")
    with torch.no_grad():
        detector.observe_validation(batch)
        detector.end_fit()
        _, maps = detector.score(batch)
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[4:12, 4:12] = True
    assert maps.shape == (3, 2, 16, 16)
    assert not bool(maps[:, :, ~inside].any())
    assert bool((maps[:, :, inside] != 0).all())


@pytest.mark.slow
def test_two_positions_are_two_detectors() -> None:
    both, batch = ready(positions=2)
    with torch.no_grad():
        whole = both._branches(batch)
        for p in range(2):
            own = Batch((batch.levels[0][:, p : p + 1],), batch.images[:, p : p + 1])  # type: ignore[index]
            alone, _ = ready(positions=1)
            alone.build([(CHANNELS, 16, 16)], 1, p)
            alone.mean, alone.std = both.mean[p : p + 1], both.std[p : p + 1]
            for a, b in zip(alone.eval()._branches(own), whole, strict=True):
                torch.testing.assert_close(a, b[:, p : p + 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet18", "layers": ("layer2",)}, "patch description network"),
        ({"frame": "mirror"}, "'reflect' or 'zero'"),
        ({"hard": 1.0}, "quantile"),
        ({"size": 48}, "at least 64"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EfficientAD(**{**SMALL, **settings}).fit(textures(10, 64))  # type: ignore[arg-type]


def test_held_back_images_are_needed() -> None:
    with pytest.raises(InputError, match="give validate"):
        EfficientAD(**SMALL).fit(textures(6, 64), validate=0)  # type: ignore[arg-type]


def test_medium_is_not_shipped_and_the_message_says_how_to_make_one() -> None:
    with pytest.raises(WeightsMissing, match="pickglass distill"):
        FeatureExtractor("pdn_medium", ["teacher"])


# -- the engine --------------------------------------------------------------------------------------------------------


def in_engine(batch: Batch, extractor: FeatureExtractor, name: EngineName = "openvino") -> Batch:
    return batch._replace(engine=BackboneEngine(extractor, "cpu", name))


def close(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], share: float = 1e-4) -> None:
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=0, atol=share * float(w.abs().max()))


@pytest.mark.parametrize("frame", ["reflect", pytest.param("zero", marks=pytest.mark.long)])
@pytest.mark.slow
def test_the_engine_judges_as_torch_does_at_any_batch(frame: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = ready(positions=2, images=3, frame=frame)
    with torch.no_grad():
        wanted = detector.score(batch)
    compiled = in_engine(batch, detector.network)
    detector.score(compiled)
    monkeypatch.setattr(Stacked, "forward", lambda *_: pytest.fail("torch was asked after the first batch"))
    close(detector.score(compiled), wanted)
    assert batch.images is not None
    for b in range(3):
        one = compiled._replace(levels=(batch.levels[0][b : b + 1],), images=batch.images[b : b + 1])
        close(detector.score(one), (wanted[0][b : b + 1], wanted[1][b : b + 1]))


@pytest.mark.slow
@pytest.mark.parametrize("tiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_all_that_a_user_calls_judges_in_the_engine(tiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = EfficientAD(**SMALL)  # type: ignore[arg-type]
    if tiled:
        detector = detector.tiled(size=(64, 96), tile=64, stride=32, normalise="position")
    seen: list[int] = []  # images of each call
    real = PerPositionEngine.__call__

    def told(
        self: PerPositionEngine, engine: BackboneEngine, network: nn.Module, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        seen.append(len(inputs[0]))
        return real(self, engine, network, *inputs)

    monkeypatch.setattr(PerPositionEngine, "__call__", told)
    detector.fit(textures(10, 64), engine="openvino")
    assert seen == ([1, 1, 1] if tiled else [1, 1])  # the quantiles, the scales of the tiles, the thresholds
    images = textures(5, 64, seed=1)
    wanted = detector.predict(images, engine="torch")
    del seen[:]
    for batch in (5, 1):
        found = detector.predict(images, engine="openvino", batch=batch)
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=0, atol=1e-4 * abs(wanted.scores).max())
        np.testing.assert_allclose(np.stack(found.maps), np.stack(wanted.maps), rtol=0, atol=1e-4)
    assert seen == [5, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("load_state_dict", marks=pytest.mark.long),
        "in place",
        pytest.param("build", marks=pytest.mark.long),
        "statistics",
    ],
)
@pytest.mark.slow
def test_what_was_compiled_does_not_outlive_its_weights(how: str) -> None:
    detector, batch = ready(positions=1, images=1)
    compiled = in_engine(batch, detector.network)
    before = detector._branches(compiled)
    with torch.no_grad():
        if how == "load_state_dict":
            other, _ = ready(positions=1, images=1)
            other.build([(CHANNELS, 16, 16)], 1, 7)
            detector.load_state_dict(other.state_dict())
        elif how == "in place":
            assert detector.student is not None
            next(detector.student.parameters()).mul_(3)
        elif how == "build":
            detector.build([(CHANNELS, 16, 16)], 1, 7)
            detector.eval()
        else:
            detector.mean = detector.mean + 1
        wanted = detector._branches(batch)
    assert float((before[0] - wanted[0]).abs().max()) > 1e-3 * float(wanted[0].abs().max())
    close(detector._branches(compiled), wanted)


@pytest.mark.slow
def test_unchanged_networks_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = ready(positions=2, images=1)
    compiled = in_engine(batch, detector.network)
    calls: list[object] = []
    real = engine_module._compile
    monkeypatch.setattr(engine_module, "_compile", lambda *given: (calls.append(given), real(*given))[1])
    for _ in range(2):
        detector._branches(compiled)
    assert len(calls) == 2  # one for each position


@pytest.mark.slow
def test_a_head_that_the_engine_gets_wrong_runs_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = ready(positions=1, images=1)
    real = engine_module._Graph.run
    monkeypatch.setattr(engine_module._Graph, "run", lambda *given: [1.01 * output for output in real(*given)])
    with torch.no_grad():
        wanted = detector._branches(batch)
    for name in ("auto", "openvino"):  # by name too: this comes after a training
        with pytest.warns(RuntimeWarning, match="answers differently from torch .* student and autoencoder"):
            close(detector._branches(in_engine(batch, detector.network, name)), wanted, 1e-6)


@pytest.mark.skipif(not engine_module.has_bfloat16(), reason="this CPU has no bfloat16")
def test_bfloat16_reaches_student_and_autoencoder() -> None:
    detector, batch = ready(positions=1, images=1)
    with torch.no_grad():
        wanted = detector._branches(batch)
    found = detector._branches(in_engine(batch, detector.network, "bfloat16"))
    for f, w in zip(found, wanted, strict=True):
        assert 1e-5 < float((f - w).abs().max() / w.abs().max()) < 2e-2


@pytest.mark.slow
def test_training_and_the_exported_graph_stay_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = ready(positions=1, images=1)
    compiled = in_engine(batch, detector.network)
    detector._branches(compiled)
    monkeypatch.setattr(PerPositionEngine, "__call__", lambda *_: pytest.fail("the engine was asked"))
    with torch.no_grad():
        detector(torch.zeros(1, 3, 64, 64))
    detector.train()
    detector.loss(compiled).sum().backward()
    for net in detector._networks():
        assert net.training
        assert all(p.grad is not None for p in net.parameters())


# -- teachers from files -----------------------------------------------------------------------------------------------


def published(model: str, kind: str) -> tuple[PDN, dict[str, Tensor]]:
    """A teacher and its state as others name it: numbered, ReLUs and poolings included, or conv1, conv2, ..."""
    teacher = PDN(model, frame=FRAME)  # type: ignore[arg-type]
    state = teacher.state_dict()
    if kind == "numbered":
        places = {"small": (0, 3, 6, 8), "medium": (0, 3, 6, 8, 10, 12)}[model]
        return teacher, {
            f"{place}.{part}": state[f"conv{i}.{part}"]
            for i, place in enumerate(places, 1)
            for part in ("weight", "bias")
        }
    return teacher, dict(state)


@pytest.mark.parametrize(("model", "kind"), [("small", "numbered"), ("medium", "numbered"), ("small", "named")])
def test_published_checkpoints_load(model: str, kind: str, tmp_path: Path) -> None:
    teacher, state = published(model, kind)
    file = tmp_path / f"teacher_{model}.pth"
    torch.save(state, file)
    extractor = FeatureExtractor(f"pdn_{model}", ["teacher"], str(file))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    normalised = (images - extractor.mean) / extractor.std
    with torch.no_grad():
        torch.testing.assert_close(extractor(images)[0], teacher(normalised))
    assert extractor.weights is not None
    assert (extractor.weights.name, len(extractor.weights.sha256 or "")) == (file.name, 64)


def test_a_whole_pickled_network_is_not_executed(tmp_path: Path) -> None:
    file = tmp_path / "teacher.pth"
    torch.save(PDN("small"), file)
    with pytest.raises(InputError, match="cannot be read"):
        FeatureExtractor("pdn_small", ["teacher"], str(file))


def test_a_teacher_of_another_size_does_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "teacher.pth"
    torch.save(PDN("medium").state_dict(), file)
    with pytest.raises(InputError, match="do not fit"):
        FeatureExtractor("pdn_small", ["teacher"], str(file))


SHIPPED = ["tiny", "small"]


@pytest.mark.parametrize("model", SHIPPED)
def test_shipped_teachers_are_small_and_say_where_they_come_from(model: str) -> None:
    file = find_weights(find_backbone(f"pdn_{model}"))
    assert sum(f.stat().st_size for f in file.parent.glob("*.safetensors")) < 8e6
    with safe_open(str(file), framework="pt") as opened:
        card = json.loads(opened.metadata()["pickglass_teacher"])
    assert card["model"] == model
    assert card["step"] == card["steps"]
    assert "research" in card["photos_licence"]
    assert len(card["backbone_weights"]["sha256"]) == len(card["photos_sha256"]) == 64
    assert card["explained_variance"]["mean"] > 0.1
    extractor = FeatureExtractor(f"pdn_{model}", ["teacher"])
    assert extractor.weights is not None
    assert extractor.weights.strategy == "distilled"


# -- natural images ----------------------------------------------------------------------------------------------------


def test_generated_pictures_are_the_same_each_time_and_all_different() -> None:
    first = natural_images(5, (48, 64), seed=3)
    assert first.shape == (5, 48, 64, 3)
    assert first.dtype == np.uint8
    assert (natural_images(2, (48, 64), seed=3) == first[:2]).all()
    assert all((a != b).any() for i, a in enumerate(first) for b in first[:i])
    assert (natural_images(1, (48, 64), seed=4) != first[0]).any()
    assert first.std((1, 2, 3)).min() > 5
    with pytest.raises(InputError, match="16 pixels"):
        natural_images(1, (8, 64))


def test_the_photographs_that_come_with_pickglass_never_change() -> None:
    """The penalty is cut from them: a changed pixel changes the scores of every EfficientAD."""
    pixels = b"".join(photograph(name).tobytes() for name in PHOTOGRAPHS)
    assert hashlib.sha256(pixels).hexdigest() == "7c8c425673679488b0fcd852128c46586c4943436d338651ac8fc42f6a12a7b8"
    with pytest.raises(InputError, match=r"unknown photograph 'brik'\. The nearest are: brick"):
        photograph("brik")


def test_photographs_are_cut_from_the_middle_of_twice_the_size(tmp_path: Path) -> None:
    for i in range(12):
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[10:30, 15:45] = (200, 20 * i, 0)  # the middle half
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    found = natural_photos(tmp_path, (20, 30), limit=10)
    assert found.shape == (10, 20, 30, 3)
    colourful = (found[..., 0] != found[..., 1]).any((1, 2))
    assert 0 < colourful.sum() < 10  # three in ten are grey
    assert (found[colourful][:, 2:-2, 2:-2, 0] == 200).all()
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        natural_photos(tmp_path, (20, 30), limit=13)


@pytest.mark.parametrize("kind", ["generated", pytest.param("none", marks=pytest.mark.long), "folder"])
@pytest.mark.slow
def test_the_penalty_sees_what_it_is_told(kind: str, tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(textures(1, 80, seed=i)[0]).save(tmp_path / f"{i}.png")
    natural = str(tmp_path) if kind == "folder" else kind
    detector = EfficientAD(**{**SMALL, "natural": natural, "steps": 2}).fit(
        textures(4, 64), calibrate=0, engine="torch"
    )  # type: ignore[arg-type]
    details = detector.provenance.details
    assert (details["natural"], details["natural_images"]) == (natural, {"generated": 2, "none": 0, "folder": 3}[kind])


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_the_paper_preset_is_the_papers() -> None:
    paper = EfficientAD.from_preset("paper")
    assert (paper.backbone, paper.frame, paper.steps, paper.batch) == ("pdn_small", "zero", 70_000, 1)
    assert (paper.lr, paper.weight_decay, paper.hard, paper.smoothing) == (1e-4, 1e-5, 0.999, 0.0)
    paper.extractor = FeatureExtractor("pdn_small", ["teacher"], "random")
    paper.build([(CHANNELS, 64, 64)], 1, 0)
    plan = paper.phases()[0].plan
    assert [plan.rate(step, 70_000) for step in (0, 66_499, 66_500)] == [1e-4, 1e-4, pytest.approx(1e-5)]
    assert EfficientAD.validate_share == 0.1


@pytest.mark.fresh
@pytest.mark.slow
def test_a_saved_model_carries_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "teacher.pth"
    torch.save(PDN("tiny").state_dict(), file)
    detector = EfficientAD(**{**SMALL, "weights": str(file)}).fit(textures(10, 64), engine="torch")  # type: ignore[arg-type]
    path = detector.save(tmp_path / "model.safetensors")
    file.unlink()
    monkeypatch.setattr(
        "pickglass.features.backbones.weights.read_state", lambda path: pytest.fail("weights were read")
    )
    loaded = load(path)
    images = textures(2, 64, seed=1)
    scores = [one.predict(images, engine="torch").scores for one in (loaded, detector)]
    np.testing.assert_array_equal(*scores)
    assert loaded.provenance.backbone_weights["name"] == "teacher.pth"


@pytest.mark.parametrize("tiled", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.slow
def test_both_branches_are_shown_beside_the_map(tiled: bool) -> None:
    detector = EfficientAD(**SMALL)  # type: ignore[arg-type]
    if tiled:
        detector = detector.tiled(size=(64, 96), tile=64, stride=32)
    detector.fit(textures(4, 64), calibrate=0, engine="torch")
    (found,) = detector.predict(textures(1, 80, seed=1), engine="torch")
    parts = detector.parts_of(found)
    assert list(parts) == ["local", "global"]
    assert {part.shape for part in parts.values()} == {(80, 80)}
    np.testing.assert_allclose((parts["local"] + parts["global"]) / 2, found.full_map(), rtol=1e-3, atol=1e-3)
    grey = np.full((80, 80), 128, np.uint8)
    item = ReportImage("a.png", None, 0, 0.2, None, grey, found.full_map(), None, None, [], parts)
    captions = [panel.caption for panel in draw_panels(item, (0.0, 1.0))]
    assert captions[:4] == ["original", "heat map", "local map", "global map"]
    with pytest.raises(InputError, match="local of shape"):
        replace(item, parts={"local": np.zeros((3, 3), np.float32)}).check()


def test_other_methods_have_no_parts() -> None:
    detector = PatchCore(size=64, weights="random").fit(textures(4, 64), calibrate=0, engine="torch")
    assert detector.parts_of(next(iter(detector.predict(textures(1, 64), engine="torch")))) == {}


@pytest.mark.parametrize("size", [64, pytest.param(96, marks=pytest.mark.long)])
@pytest.mark.slow
def test_forward_is_exported_and_answers_alike_elsewhere(size: int) -> None:
    openvino = pytest.importorskip("openvino")
    detector = EfficientAD(**{**SMALL, "size": size}).fit(textures(4, 64), calibrate=0, engine="torch").cpu()  # type: ignore[arg-type]
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(detector, (images,), buffer, dynamo=False)  # type: ignore[arg-type]
    model = openvino.Core().read_model(buffer.getvalue())
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        score, map_ = detector(images)
    got = list(compiled(images.numpy()).values())
    np.testing.assert_allclose(got[0], score.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got[1], map_.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.golden
@pytest.mark.slow
def test_golden_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed number is a changed method: change it here only with a reason in the changelog."""
    monkeypatch.setattr("pickglass.nn.training.loop.has_fast_bfloat16", lambda: False)  # the same arithmetic everywhere
    detector = EfficientAD(**{**SMALL, "steps": 4, "lr": 1e-3}).fit(textures(10, 64), calibrate=0, engine="torch")  # type: ignore[arg-type]
    found = detector.predict(textures(3, 64, seed=1), engine="torch")
    np.testing.assert_allclose(found.scores, GOLDEN, rtol=5e-3, atol=5e-4)


GOLDEN = [0.102488, -0.013099, -0.021919]
