"""Fusion: each kind against a slow literal one, what it may learn from, every method on fused levels, model files."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pickglass as pg
from pickglass.app.fit import build
from pickglass.cli.main import app
from pickglass.data import Row, Table
from pickglass.errors import InputError, UnknownName
from pickglass.features.batch import Batch
from pickglass.features.extractor import FeatureExtractor
from pickglass.features.research.fusion import Fusion, FusionSettings
from pickglass.features.shared import SharedFeatures
from pickglass.methods import METHODS
from pickglass.nn.gaussian.moments import GridSums
from pickglass.nn.maps import resampled_to
from pickglass.testing import check_detector, textures

SHAPES = [(6, 8, 8), (10, 4, 4), (7, 2, 3)]
RESNET = {"backbone": "resnet18", "layers": "layer1+layer2", "weights": "random", "size": 64}


def levels(n: int = 20, seed: int = 0) -> list[torch.Tensor]:
    """Correlated channels of unlike scales, far from 0."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.Generator().manual_seed(100)
    return [
        torch.einsum(
            "ce,nehw->nchw",
            torch.randn(c, c, generator=mixing) * torch.logspace(-2, 1, c)[:, None],
            torch.randn(n, c, h, w, generator=g),
        )
        + 5
        for c, h, w in SHAPES
    ]


def batch(features: list[torch.Tensor], keep: torch.Tensor | None = None) -> Batch:
    return Batch(tuple(level[:, None] for level in features), None, keep)


def settled(kind: str, seed: int = 0, **settings: object) -> Fusion:
    fusion = Fusion(FusionSettings(kind, **settings), SHAPES, seed)  # type: ignore[arg-type]
    features = levels()
    for part in (slice(0, 3), slice(3, 20)):
        fusion.observe(batch([level[part] for level in features]))
    fusion.settle()
    return fusion


def vectors(level: torch.Tensor) -> np.ndarray:
    """Flatten a level (N, C, h, w) to vectors (N h w, C) of doubles."""
    return level.double().permute(0, 2, 3, 1).flatten(0, 2).numpy()


# -- statistics --------------------------------------------------------------------------------------------------------


def test_moments_are_numpys() -> None:
    level = levels(9)[1] + 1000
    sums = GridSums(SHAPES[1])
    sums.add(level[:4], None)
    sums.add(level[4:], None)
    moments = sums.moments()
    np.testing.assert_allclose(moments.mean, vectors(level).mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(vectors(level).T), rtol=1e-6)
    np.testing.assert_allclose(moments.spread, level.double().var(0), rtol=1e-6)
    # at a cell over the images: the mean of the cells' own covariances, all of as many images
    cells = level.double().flatten(2).numpy()  # (N, C, h w)
    np.testing.assert_allclose(moments.within, np.mean([np.cov(cells[..., j].T) for j in range(16)], axis=0), rtol=1e-6)


def test_cells_that_do_not_count_enter_no_statistic() -> None:
    level = levels(9)[1]
    keep = torch.rand(9, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    keep[:, 0, 0] = False
    poisoned = torch.where(keep[:, None], level, torch.nan)
    sums = GridSums(SHAPES[1])
    sums.add(poisoned[:2], torch.zeros(2, 4, 4, dtype=torch.bool))
    sums.add(poisoned, keep)
    moments = sums.moments()
    own = level.permute(0, 2, 3, 1)[keep].double().numpy()
    np.testing.assert_allclose(moments.mean, own.mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(own.T), rtol=1e-6)
    assert torch.isnan(moments.spread[:, 0, 0]).all()
    np.testing.assert_allclose(moments.spread[:, 1, 2], level[keep[:, 1, 2], :, 1, 2].double().var(0), rtol=1e-6)


def test_nothing_to_learn_from_is_said() -> None:
    fusion = Fusion(FusionSettings("concat", normalise="whiten"), SHAPES)
    with pytest.raises(InputError, match="region of interest"):
        fusion.settle()
    fusion = Fusion(FusionSettings("concat", normalise="whiten"), SHAPES)
    fusion.observe(batch([level * torch.nan for level in levels(2)]))
    with pytest.raises(InputError, match="not finite"):
        fusion.settle()


# -- the kinds ---------------------------------------------------------------------------------------------------------


def test_concat_brings_all_to_the_finest_grid_wherever_that_comes() -> None:
    features = levels(2)[::-1]
    fusion = Fusion(FusionSettings("concat"), SHAPES[::-1])
    (fused,) = fusion(features)
    assert fusion.shapes == [(23, 8, 8)]
    assert torch.equal(fused[:, 17:], features[2])
    # half-pixel centres: cell 1 of 8 lies at 0.25 of the cells 0 and 1 of 4
    torch.testing.assert_close(fused[:, 7:17, 0, 1], 0.75 * features[1][:, :, 0, 0] + 0.25 * features[1][:, :, 0, 1])


def test_normalised_levels_have_the_moments_asked_for() -> None:
    features = levels()
    for name in ("standardise", "whiten"):
        (fused,) = settled("concat", normalise=name, shrinkage=1e-11)(features)
        covariance = np.cov(vectors(fused[:, :6]).T)  # of the level that is on the grid already
        np.testing.assert_allclose(covariance.diagonal(), 1, rtol=1e-3)
        assert np.abs(vectors(fused[:, :6]).mean(0)).max() < 1e-4
        assert (np.abs(covariance - np.eye(6)).max() < 1e-3) == (name == "whiten")


def test_shrinkage_is_the_formula() -> None:
    features = levels()
    covariance = np.cov(vectors(features[0]).T)
    values, axes = np.linalg.eigh(0.7 * covariance + 0.3 * np.trace(covariance) / 6 * np.eye(6))
    white = (vectors(features[0]) - vectors(features[0]).mean(0)) @ axes @ np.diag(values**-0.5) @ axes.T
    (fused,) = settled("concat", normalise="whiten", shrinkage=0.3)(features)
    np.testing.assert_allclose(vectors(fused[:, :6]), white, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["concat", "pyramid", "attention"])
@pytest.mark.parametrize("normalise", ["standardise", "whiten"])
def test_silent_channels_and_levels_stay_finite(kind: str, normalise: str) -> None:
    features = levels()
    features[0][:, 2] = 3.0
    features[1][:] = 0.0
    fusion = Fusion(FusionSettings(kind, normalise=normalise, dims=4), SHAPES)  # type: ignore[arg-type]
    fusion.observe(batch(features))
    fusion.settle()
    (fused,) = fusion(features)
    assert torch.isfinite(fused).all()
    features[0][:, 2] += 1.0
    assert fusion(features)[0].abs().max() < 1e3  # a silent channel that speaks is not blown up without bound


def test_pyramid_is_pca_turned_and_summed_from_the_top() -> None:
    features = levels()
    steps = settled("pyramid", dims=5, levels="all")(features)
    fusion = settled("pyramid", dims=5, levels="all")
    assert [tuple(s.shape[1:]) for s in steps] == fusion.shapes == [(5, 8, 8), (5, 4, 4), (5, 2, 3)]
    assert torch.equal(settled("pyramid", dims=5)(features)[0], steps[0])
    top = vectors(steps[2])
    centred = vectors(features[2]) - vectors(features[2]).mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    # the turn changes no distance: inner products are those of the five leading components
    components = vectors(features[2]) @ axes[:5].T
    np.testing.assert_allclose(top @ top.T, components @ components.T, rtol=1e-3, atol=1e-3)
    lateral = fusion.mix.lateral1
    enlarged = torch.nn.functional.interpolate(steps[2], (4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(steps[1], torch.einsum("dc,nchw->ndhw", lateral, features[1]) + enlarged)


def test_lateral_projections_keep_distances_where_there_is_room() -> None:
    fusion = settled("pyramid", dims=12)
    for i, (c, _, _) in enumerate(SHAPES):
        lateral = getattr(fusion.mix, f"lateral{i}")
        torch.testing.assert_close(lateral.T @ lateral, torch.eye(c), atol=1e-5, rtol=0)


def test_the_sketch_is_two_count_sketches_convolved() -> None:
    fusion = Fusion(FusionSettings("bilinear", dims=9), SHAPES, seed=3)
    x = torch.randn(2, 23, 2, 2)
    # what the sketches do to single channels, read back out of their spectra
    spectra = torch.complex(fusion.mix.spectra[:, 0], fusion.mix.spectra[:, 1])  # (2, K, D)
    hashes = torch.fft.irfft(spectra, 9, dim=1).round().numpy()  # (2, d, D)
    assert (np.abs(hashes).sum(1) == 1).all()
    assert (hashes[0] != hashes[1]).any()
    expected = np.zeros((2, 9, 2, 2))
    for c in range(23):
        for e in range(23):
            at, sign = int(np.abs(hashes[0, :, c]).argmax()), hashes[0, :, c].sum()
            other, other_sign = int(np.abs(hashes[1, :, e]).argmax()), hashes[1, :, e].sum()
            expected[:, (at + other) % 9] += sign * other_sign * (x[:, c] * x[:, e]).numpy()
    np.testing.assert_allclose(fusion.mix.sketch(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_sketch_estimates_the_bilinear_product_without_bias() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 23, generator=g)  # all of one sign: what collides adds up unless the sketch has signs
    both = torch.stack([x, y])[..., None, None]
    products = []
    for seed in range(400):
        a, b = Fusion(FusionSettings("bilinear", dims=64), SHAPES, seed).mix.sketch(both)[..., 0, 0]
        products.append(float(a @ b))
    exact = float(x @ y) ** 2  # <x x^T, y y^T>
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - exact) < 4 * error
    assert error < 0.03 * exact


def test_bilinear_features_are_pooled_rooted_and_of_unit_length() -> None:
    features = levels(2)
    fusion = Fusion(FusionSettings("bilinear", dims=16, patch=3), SHAPES)
    (fused,) = fusion(features)
    sketched = fusion.mix.sketch(Fusion(FusionSettings("concat"), SHAPES)(features)[0])
    mean = sketched[:, :, 2:5, 4:7].mean((2, 3))
    rooted = mean.sign() * mean.abs().sqrt()
    torch.testing.assert_close(fused[:, :, 3, 5], rooted / rooted.norm(dim=1, keepdim=True), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fused.norm(dim=1), torch.ones(2, 8, 8))
    silent = torch.zeros(1, 6, 8, 8, requires_grad=True)
    fusion([silent, features[1][:1] * 0, features[2][:1] * 0])[0].sum().backward()
    assert silent.grad is not None
    assert torch.isfinite(silent.grad).all()


def aligned(n: int = 40) -> list[torch.Tensor]:
    """Channel 0 says the same of a place in every image; the rest is noise, four times as much in the left half."""
    g = torch.Generator().manual_seed(1)
    features = []
    for c, h, w in SHAPES:
        place = torch.randn(h, w, generator=g)
        noise = torch.randn(n, c, h, w, generator=g)
        noise[..., : w // 2] *= 4
        noise[:, 0] = place + 0.5 * noise[:, 0]
        features.append(noise)
    return features


@pytest.mark.parametrize("normalise", ["none", "standardise", "whiten"])
def test_attention_goes_to_what_repeats_itself(normalise: str) -> None:
    fusion = Fusion(FusionSettings("attention", normalise=normalise, levels="all"), SHAPES)  # type: ignore[arg-type]
    features = aligned()
    fusion.observe(batch(features))
    fusion.settle()
    channels, cells = fusion.mix.channels0[:, 0, 0], fusion.mix.cells0[0]
    assert channels[0] > 1.1
    torch.testing.assert_close(channels[1:], torch.ones(5), atol=0.05, rtol=0)
    assert (cells[:, :4] < 0.9).all()
    assert (cells[:, 4:] > 1.5).all()
    assert [tuple(x.shape[1:]) for x in fusion(features)] == fusion.shapes == SHAPES


def test_attention_is_the_formula() -> None:
    features = aligned()
    fusion = Fusion(FusionSettings("attention", shrinkage=0.0), SHAPES)
    fusion.observe(batch(features))
    fusion.settle()
    x = features[1].double()
    e_cij = x.var(0)
    e_c, v_c = e_cij.mean((1, 2)), x.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(fusion.mix.channels1[:, 0, 0].double(), (v_c / e_c).sqrt().clamp(0.25, 4))
    torch.testing.assert_close(
        fusion.mix.cells1[0].double(), (e_cij / e_c[:, None, None]).mean(0).rsqrt().clamp(0.25, 4)
    )
    fused = fusion(features)[0]
    weighted = features[0] * fusion.mix.channels0 * fusion.mix.cells0
    assert torch.equal(fused[:, :6], weighted)


def test_attention_says_nothing_after_one_image() -> None:
    fusion = Fusion(FusionSettings("attention"), SHAPES)
    fusion.observe(batch(levels(1)))
    fusion.settle()
    assert torch.equal(fusion(levels(1))[0], Fusion(FusionSettings("concat"), SHAPES)(levels(1))[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "glue"}, "concat, pyramid, bilinear, attention"),
        ({"kind": "concat", "normalise": "zca"}, "whiten"),
        ({"kind": "concat", "normalise": "whiten", "shrinkage": 0.0}, "above 0 to whiten"),
        ({"kind": "bilinear", "patch": 2}, "odd"),
        ({"kind": "pyramid", "dims": 1}, "at least 2"),
        ({"kind": "bilinear", "levels": "all"}, "no meaning"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pg.PatchCore().fused(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["concat", "pyramid", "bilinear", "attention"])
def test_a_fusion_exports(kind: str, tmp_path: Path) -> None:
    import openvino

    fusion = settled(kind, dims=8, normalise="whiten").eval()
    features = levels(2, seed=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter of the engine is the older one
        torch.onnx.export(
            _Spread(fusion), tuple(level[:1] for level in features), str(tmp_path / "fusion.onnx"), dynamo=False
        )
    run = openvino.Core().compile_model(tmp_path / "fusion.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    exported = run([level[:1].numpy() for level in features])[0]
    np.testing.assert_allclose(exported, fusion([level[:1] for level in features])[0], rtol=1e-3, atol=1e-3)


class _Spread(torch.nn.Module):
    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, *levels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.fusion(levels)  # type: ignore[no-any-return]


# -- in a detector -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("tiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_conformance(tiled: bool) -> None:
    detector = pg.PatchCore(**RESNET, ratio=0.05)  # type: ignore[arg-type]
    if tiled:
        detector = detector.fused("pyramid", dims=16, levels="all").tiled(tile=48, stride=16, heads=2)
    else:
        detector = pg.PatchCore(**{**RESNET, "size": 96}, ratio=0.05).fused("bilinear", dims=32)  # type: ignore[arg-type]
    assert check_detector(detector, modes=["plain"], n_images=10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["concat", "attention"])
def test_groups_and_files_keep_the_fusion(kind: str, tmp_path: Path) -> None:
    good, test = textures(8, 64), textures(2, 64, seed=1)
    plain = pg.PatchCore(**RESNET, ratio=0.05).fused(kind, normalise="whiten").tiled(tile=48, stride=16)  # type: ignore[arg-type]
    whole = plain.fit(good, engine="torch").predict(test, engine="torch")
    grouped = pg.PatchCore.configured({**plain.configuration(), "tiling": {**plain.tiling.to_json(), "at_once": 3}})  # type: ignore[union-attr]
    fitted = grouped.fit(good, engine="torch")
    np.testing.assert_allclose(fitted.predict(test, engine="torch").scores, whole.scores, rtol=1e-4)
    loaded = pg.load(fitted.save(tmp_path / "model.safetensors"))
    assert (loaded.predict(test, engine="torch").scores == fitted.predict(test, engine="torch").scores).all()
    assert loaded.configuration()["fusion"] == plain.configuration()["fusion"]


def test_concat_is_patchcores_own_patches_at_one_cell() -> None:
    good, test = textures(10, 64), textures(3, 64, seed=1)
    plain = pg.PatchCore(**RESNET, patch=1).fit(good, calibrate=0.1, engine="torch")  # type: ignore[arg-type]
    fused = plain.fused("concat").fit(good, calibrate=0.1, engine="torch")
    assert torch.equal(plain.bank, fused.bank)  # type: ignore[arg-type]
    assert (plain.predict(test, engine="torch").scores == fused.predict(test, engine="torch").scores).all()


TRAINED = {"epochs": 2, "batch": 4}
FEW: dict[str, dict[str, object]] = {
    "padim": {"dims": 8},
    "stfpm": TRAINED,
    "reverse_distillation": {**TRAINED, "blocks": 1},
    "fastflow": {**TRAINED, "steps": 2},
    "subspace": {},
    "asymmetric_student_teacher": {"teacher_epochs": 1, "student_epochs": 1, "batch": 4, "student_hidden": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(METHODS) & {"patchcore", *FEW}))
def test_every_method_reads_fused_levels(method: str, tmp_path: Path) -> None:
    good = textures(8, 48)
    levels = "one" if method == "asymmetric_student_teacher" else "all"
    detector = METHODS[method].configured({**RESNET, "size": 48, **FEW.get(method, {})})
    detector = detector.fused("pyramid", dims=8, normalise="standardise", levels=levels).fit(good, engine="torch")
    prediction = detector.predict(good, engine="torch")
    assert np.isfinite(prediction.scores).all()
    loaded = pg.load(detector.save(tmp_path / "model.safetensors")).predict(good, engine="torch")
    assert (loaded.scores == prediction.scores).all()


def test_only_fit_rows_are_learned_from() -> None:
    good, strange = textures(12, 64), textures(4, 64, seed=5) // 2
    roles = ["fit"] * 12 + ["validate", "validate", "calibrate", "calibrate"]
    rows = [
        Row(f"array:{i}", role=role, label=0, pixels=image)
        for i, (role, image) in enumerate(zip(roles, [*good, *strange], strict=True))
    ]
    detector = pg.PatchCore(**RESNET).fused("attention", normalise="whiten")  # type: ignore[arg-type]
    alone = detector.fit(good, validate=0, calibrate=0, engine="torch").fusion
    assert alone is not None
    expected = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    fusion = detector.fit(Table(rows), engine="torch").fusion
    assert fusion is not None
    for name, tensor in fusion.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_what_one_tile_of_a_head_too_many_repeats_is_counted_once() -> None:
    """Two heads for four tiles, three and one: the filling of the second enters no statistic."""
    detector = pg.PatchCore(**RESNET).fused("concat", normalise="standardise")  # type: ignore[arg-type]
    means = [
        detector.tiled(tile=32, stride=32, heads=heads).fit(textures(8, 64), engine="torch").fusion.normalisers[0].mean  # type: ignore[union-attr]
        for heads in ("position", 1, 3)  # type: ignore[arg-type]
    ]
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0])


def test_layers_may_be_written_in_one() -> None:
    assert pg.PatchCore(layers="stage3+stage5").level_names() == ["stage3", "stage5"]
    assert pg.PatchCore(layers="stage3+stage5").fused("concat").level_names() == ["stage3+stage5"]
    good = textures(8, 64)
    apart = (
        pg.PatchCore(**{**RESNET, "layers": ("layer1", "layer2")})
        .fit(good, engine="torch")
        .predict(good, engine="torch")
    )  # type: ignore[arg-type]
    assert (pg.PatchCore(**RESNET).fit(good, engine="torch").predict(good, engine="torch").scores == apart.scores).all()  # type: ignore[arg-type]


def test_settings_by_name() -> None:
    detector = build("patchcore", fusion={"kind": "pyramid", "dims": 8}, tiling={"tile": 64})
    assert detector.fusing == FusionSettings("pyramid", dims=8)
    assert detector.tiling is not None
    assert detector.configured(detector.configuration()).configuration() == detector.configuration()
    with pytest.raises(UnknownName, match="normalize"):
        build("patchcore", fusion={"kind": "pyramid", "normalize": "whiten"})
    assert "fusion" not in pg.PatchCore().configuration()


def test_fusing_on_the_command_line(tmp_path: Path) -> None:
    from PIL import Image

    for i, image in enumerate(textures(8, 64)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    model = tmp_path / "model.safetensors"
    said = ["fit", str(tmp_path), "-o", str(model), "--backbone", "resnet18", "--layers", "layer1+layer2"]
    said += ["--weights", "random", "--size", "64", "--calibrate", "0"]
    result = CliRunner().invoke(app, [*said, "--fuse", "pyramid", "--set", "fusion.dims=8"])
    assert result.exit_code == 0, result.output
    loaded = pg.load(model)
    assert loaded.fusing == FusionSettings("pyramid", dims=8)
    assert list(loaded.layers) == ["layer1", "layer2"]
    result = CliRunner().invoke(app, [*said, "--force", "--set", "fusion.dims=8"])
    assert isinstance(result.exception, InputError)
    assert "--fuse" in str(result.exception)


# -- several scales ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 32), (31, 17), (96, 50)])
def test_images_are_resampled_without_aliasing(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(resampled_to(images, size), expected, atol=1e-5, rtol=0)
    assert resampled_to(images, (48, 40)) is images


def test_the_levels_of_a_scale_are_those_of_the_image_resampled() -> None:
    images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    plain = FeatureExtractor("resnet18", ["layer1", "layer2"], "random")
    scaled = FeatureExtractor("resnet18", ["layer1", "layer2"], "random", scales=(0.5, 1.0))
    outputs = scaled(images)
    torch.testing.assert_close(list(outputs[:2]), list(plain(resampled_to(images, (32, 24)))), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(outputs[2:], plain(images), strict=True))
    assert scaled.shapes((64, 48)) == [tuple(level.shape[1:]) for level in outputs]


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, 1.0), "half", (1.0, 99)])
def test_scales_that_make_no_sense(scales: object) -> None:
    with pytest.raises(InputError, match="expected numbers from 1/16 to 4"):
        pg.PatchCore().fused("pyramid", scales=scales)  # type: ignore[arg-type]


def test_a_transformer_is_run_on_whole_patches() -> None:
    extractor = FeatureExtractor("vit_small_patch16_224", ["blocks.1"], "random", scales=(1.0, 0.6))
    assert [shape[1:] for shape in extractor.shapes((64, 64))] == [(4, 4), (2, 2)]


def test_the_pyramid_sums_all_scales_from_the_coarsest_grid_down() -> None:
    detector = (
        pg.PatchCore(**RESNET)
        .fused("pyramid", dims=8, scales=(1.0, 0.5), levels="all")
        .fit(textures(8, 64), engine="torch")
    )  # type: ignore[arg-type]
    fusion, extractor = detector.fusion, detector.extractor
    assert fusion is not None
    assert extractor is not None
    assert detector.level_names() == ["layer1", "layer2", "layer1 at 0.5", "layer2 at 0.5"]
    assert fusion.shapes == [(8, 16, 16), (8, 8, 8), (8, 8, 8), (8, 4, 4)]
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    levels = extractor(images)
    total = torch.zeros(1, 8, 4, 4)
    for i in (3, 1, 2, 0):  # of two levels on one grid that of the full size comes first
        own = torch.einsum("dc,nchw->ndhw", getattr(fusion.mix, f"lateral{i}"), levels[i])
        total = own + torch.nn.functional.interpolate(total, own.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(fusion(levels)[0], total, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_tiles_are_read_at_two_scales(tmp_path: Path) -> None:
    good = textures(6, 64)
    detector = pg.PatchCore(**RESNET, ratio=0.05).fused("pyramid", dims=16, scales=(1.0, 0.5))  # type: ignore[arg-type]
    detector = detector.tiled(tile=48, stride=16, heads=2).fit(good, engine="torch")
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    scores = detector.predict(good, engine="torch").scores
    assert (loaded.predict(good, engine="torch").scores == scores).all()
    whole = pg.PatchCore(**RESNET, ratio=0.05).fused("pyramid", dims=16, scales=(1.0, 0.5))  # type: ignore[arg-type]
    one = whole.tiled(tile=64, stride=64, image_score="max").fit(good, engine="torch").predict(good, engine="torch")
    np.testing.assert_allclose(
        one.scores, whole.fit(good, engine="torch").predict(good, engine="torch").scores, rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["padim", pytest.param("stfpm", marks=pytest.mark.long)])
def test_every_method_reads_several_scales(method: str, tmp_path: Path) -> None:
    good = textures(8, 64)
    layers = "layer1+layer2"
    detector = METHODS[method].configured({**RESNET, "layers": layers, **FEW.get(method, {})})
    detector = detector.fused("pyramid", dims=8, normalise="standardise", levels="all", scales=(1.0, 0.5)).fit(
        good, engine="torch"
    )
    prediction = detector.predict(good, engine="torch")
    assert np.isfinite(prediction.scores).all()
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    assert (loaded.predict(good, engine="torch").scores == prediction.scores).all()
    assert loaded.configuration() == detector.configuration()


def test_a_detector_of_two_scales_exports(tmp_path: Path) -> None:
    import openvino

    good = textures(8, 64)
    detector = (
        pg.PatchCore(**RESNET, ratio=0.05, smoothing=0.0).fused("concat", scales=(1.0, 0.5)).fit(good, engine="torch")
    )  # type: ignore[arg-type]
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(detector, (images,), str(tmp_path / "model.onnx"), dynamo=False)
    run = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    scores, maps = run([images.numpy()]).values()
    expected = detector(images)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-3)
    np.testing.assert_allclose(maps, expected[1], rtol=1e-2, atol=1e-3)


def test_shared_features_leave_several_scales_alone() -> None:
    good = textures(6, 64)
    plain = pg.PatchCore(**RESNET, ratio=0.1)  # type: ignore[arg-type]
    alone = (
        plain.fused("concat", scales=(1.0, 0.5))
        .fit(good, calibrate=0, engine="torch")
        .predict(good, engine="torch")
        .scores
    )
    with SharedFeatures("resnet18", "random", 0, ["layer1", "layer2"], 6, 1.0) as shared:
        detector = plain.fused("concat", scales=(1.0, 0.5))
        detector.shared_features = shared
        assert (detector.fit(good, calibrate=0, engine="torch").predict(good, engine="torch").scores == alone).all()


@pytest.mark.slow
def test_a_plain_fit_never_enters_the_research_folder() -> None:
    """A reader of a fit, a prediction and a model file need not know that there is one."""
    code = """
import sys, tempfile
import pickglass as pg
from pickglass.testing import textures
images = textures(4, 64)
detector = pg.PatchCore(layers="stage2", size=64, ratio=0.1)
detector.fit(images, engine="torch").predict(images[:1], engine="torch")
with tempfile.TemporaryDirectory() as folder:
    pg.load(detector.save(f"{folder}/model.safetensors"))
print(*(name for name in sys.modules if name.startswith("pickglass.features.research")))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
