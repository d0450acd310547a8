"""STFPM against its formulas done literally, its student, its training, and the conformance suite."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pickglass as pg
from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.features.extractor import FeatureExtractor, untrained
from pickglass.methods.stfpm import STFPM
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.training.loop import train_all
from pickglass.testing import textures

SMALL = {"backbone": "resnet18", "layers": ("layer1", "layer2"), "weights": "random", "size": 32, "batch": 4}


class Fixed(nn.Module):
    """A student that has its answer ready."""

    def __init__(self, answer: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.answer


def with_student(answer: tuple[Tensor, ...], **settings: object) -> STFPM:
    detector = STFPM(**{"size": (24, 20), "smoothing": 0.0, **settings})  # type: ignore[arg-type]
    detector.student = Fixed(answer)  # type: ignore[assignment]
    return detector


def levels(seed: int, batch: int = 3, positions: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, positions, 4, 6, 5, generator=generator),
        torch.randn(batch, positions, 7, 3, 3, generator=generator),
    )


def literal_distance(f_t: Tensor, f_s: Tensor) -> np.ndarray:
    """Eq. 1, cell by cell: (C, h, w) twice -> (h, w)."""
    t, s = f_t.double().numpy(), f_s.double().numpy()
    result = np.zeros(t.shape[1:])
    for y in range(t.shape[1]):
        for x in range(t.shape[2]):
            unit_t = t[:, y, x] / math.sqrt(sum(v * v for v in t[:, y, x]))
            unit_s = s[:, y, x] / math.sqrt(sum(v * v for v in s[:, y, x]))
            result[y, x] = sum((a - b) ** 2 for a, b in zip(unit_t, unit_s, strict=True)) / 2
    return result


def test_loss_is_equations_1_to_3_done_literally() -> None:
    teacher, student = levels(0), levels(1)
    found = with_student(student)._loss(Batch(teacher, torch.zeros(3, 2, 3, 24, 20)))
    assert found.shape == (2,)
    for p in range(2):
        each = [
            sum(literal_distance(t[i, p], s[i, p]).mean() for t, s in zip(teacher, student, strict=True))
            for i in range(3)
        ]
        assert float(found[p]) == pytest.approx(np.mean(each), rel=1e-5)


def test_cells_that_do_not_count_are_left_out_of_the_loss() -> None:
    teacher, student = levels(0), levels(1)
    keep = torch.ones(3, 2, 24, 20, dtype=torch.bool)
    keep[..., 12:, :] = False  # rows 3 to 5 of level 1; of level 2 the last, its second is half inside
    found = with_student(student)._loss(Batch(teacher, torch.zeros(3, 2, 3, 24, 20), keep))
    first = np.mean([literal_distance(teacher[0][i, 0], student[0][i, 0])[:3].mean() for i in range(3)])
    second = np.mean([literal_distance(teacher[1][i, 0], student[1][i, 0])[:2].mean() for i in range(3)])
    assert float(found[0]) == pytest.approx(first + second, rel=1e-5)


def test_the_map_is_the_product_of_the_levels_fine_ones_to_a_lower_power_unless_the_paper_is_asked_for() -> None:
    """By hand: the same direction is at distance 0, a right angle at 1, the opposite at 2, whatever the lengths."""
    teacher = (torch.tensor([[3.0, 0.0]]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1))
    student = torch.tensor([[[5.0, 0.0], [-1.0, 0.0]], [[0.0, 2.0], [0.0, 7.0]]]).view(1, 1, 2, 2, 2)
    # level 1: same, right angle / opposite, right angle; level 2: opposite
    answer, batch = (student, torch.tensor(-4.0).view(1, 1, 1, 1, 1)), Batch(teacher, torch.zeros(1, 1, 3, 4, 4))
    paper = with_student(answer, size=4, stride_powers=STFPM.presets["paper"]["stride_powers"])
    scores, maps = paper.score(batch)
    torch.testing.assert_close(maps, torch.tensor([[[[0.0, 2.0], [4.0, 2.0]]]]))  # a sum would be 2, 3, 4, 3
    assert float(scores) == pytest.approx(4)
    scores, maps = with_student(answer, size=4).score(batch)  # level 1 has half the stride, so its root counts
    torch.testing.assert_close(maps, torch.tensor([[[[0.0, 2.0], [math.sqrt(8), 2.0]]]]))
    assert float(scores) == pytest.approx(math.sqrt(8))


def test_levels_of_one_grid_count_alike() -> None:
    teacher, student = levels(0)[:1] * 2, levels(1)[:1] * 2
    batch = Batch(teacher, torch.zeros(3, 2, 3, 24, 20))
    own, paper = (with_student(student, stride_powers=powers).score(batch)[1] for powers in (True, False))
    assert torch.equal(own, paper)


def test_what_the_levels_say_adds_up_to_the_map() -> None:
    """Above the median of every level the logarithms of the factors are that of the map, but for a constant."""
    batch = Batch(levels(0), torch.zeros(3, 2, 3, 24, 20))
    detector = with_student(levels(1), layers=("layer1", "layer2"), backbone="resnet18", weights="random")
    parts = torch.stack(list(detector.level_maps(batch).values())).double()  # (K, B, P, h, w)
    strange = (parts > 0).all(0)
    rest = (detector.score(batch)[1].double().log() - parts.sum(0)).masked_fill(~strange, torch.nan)  # (B, P, h, w)
    for map_ in rest.flatten(0, 1):
        found = map_[~map_.isnan()]
        torch.testing.assert_close(found, found.mean().expand_as(found), rtol=0, atol=1e-5)


def test_the_score_is_the_maximum_before_smoothing_of_what_counts() -> None:
    teacher, student = levels(0), levels(1)
    batch = Batch(teacher, torch.zeros(3, 2, 3, 24, 20))
    scores, plain = with_student(student).score(batch)
    torch.testing.assert_close(scores, plain.flatten(2).max(2).values)
    smooth_scores, smooth = with_student(student, smoothing=6.0).score(batch)
    torch.testing.assert_close(smooth_scores, scores)
    assert bool((smooth.flatten(2).max(2).values < scores).all())
    keep = torch.ones(3, 2, 24, 20, dtype=torch.bool)
    keep[..., 12:, :] = False
    kept_scores, _ = with_student(student).score(batch._replace(keep=keep))
    torch.testing.assert_close(kept_scores, plain[..., :3, :].flatten(2).max(2).values)


def test_a_cell_counts_by_the_length_of_the_teachers_feature() -> None:
    """By hand, lengths of 1 and 3 where 1 is usual: distances of a right angle, 1, weigh 1/2 and 9/10."""
    teacher = (torch.tensor([[1.0, 0.0], [3.0, 0.0]]).T.view(1, 1, 2, 1, 2),)
    student = (torch.tensor([[0.0, 2.0], [0.0, 7.0]]).T.view(1, 1, 2, 1, 2),)
    detector = with_student(student, size=(4, 8))
    detector.usual = torch.ones(1, 1)
    batch = Batch(teacher, torch.zeros(1, 1, 3, 4, 8))
    torch.testing.assert_close(detector.score(batch)[1], torch.tensor([[[[0.5, 0.9]]]]))
    assert float(detector._loss(batch)) == pytest.approx(1)  # the loss is the paper's


def test_the_usual_length_is_that_of_the_good_images_unless_the_paper_is_asked_for() -> None:
    teacher = levels(0)
    shapes = [(4, 6, 5), (7, 3, 3)]
    detector = STFPM(**SMALL)  # type: ignore[arg-type]
    detector.build(shapes, 2, 0)
    for i in range(3):
        detector.observe(Batch(tuple(t[i : i + 1] for t in teacher), torch.zeros(1, 2, 3, 24, 20)))
    expected = [[float(t[:, p].square().sum(1).mean().sqrt()) for t in teacher] for p in range(2)]
    torch.testing.assert_close(detector.usual, torch.tensor(expected))
    paper = STFPM(**{**SMALL, "length_weights": STFPM.presets["paper"]["length_weights"]})  # type: ignore[arg-type]
    paper.build(shapes, 2, 0)
    paper.observe(Batch(teacher, torch.zeros(3, 2, 3, 24, 20)))
    assert paper.usual is None


# -- the student -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "names"), [("resnet18", ["layer1", "layer2"]), ("efficientnet_lite0", ["stage2"])]
)
def test_untrained_is_the_extractors_network(backbone: str, names: list[str]) -> None:
    """With the extractor's weights and in eval mode it gives the extractor's features."""
    extractor = FeatureExtractor(backbone, names, weights="random", seed=3)
    network = untrained(backbone, names)
    assert not network.training
    assert all(p.requires_grad for p in network.parameters())
    images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    before = [f.detach() for f in network(images)]
    network.load_state_dict(extractor.state_dict())
    for own, other, untouched in zip(network(images), extractor(images), before, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(untouched, other, rtol=1e-2)


def test_depthwise_convolutions_compute_in_float32_on_a_cpu() -> None:
    network = untrained("efficientnet_lite0", ["stage2"])
    deep = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert {m.kernel_size for m in deep} == {(3, 3)}
    assert {m.stride for m in deep} == {(1, 1), (2, 2)}
    for part in deep:
        x = torch.rand(2, part.in_channels, 9, 8, generator=torch.Generator().manual_seed(0))
        expected = part(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(part(x), expected)
            assert part(x.bfloat16()).dtype == torch.bfloat16


def test_untrained_follows_the_default_generator_and_the_mode() -> None:
    def made(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return untrained("resnet18", ["layer1"])

    a, b, c = made(0), made(0), made(1)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(a(images)[0], b(images)[0])
    assert not torch.allclose(a(images)[0], c(images)[0])
    in_eval = a(images)[0]
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    in_training = a.train()(images)[0]
    assert not torch.allclose(in_eval, in_training)  # by the batch's statistics
    state = dict(a.named_buffers())
    assert not torch.equal(state["body.bn1.running_mean"], dict(b.named_buffers())["body.bn1.running_mean"])
    first = a.eval()(images)[0]
    assert torch.equal(first, a(images)[0])  # nothing moves in eval mode


# -- training ----------------------------------------------------------------------------------------------------------


def ready(positions: int = 1, seed: int = 0, **settings: object) -> tuple[STFPM, Batch]:
    """A detector with its student, and readings of random images through a random teacher."""
    detector = STFPM(**{**SMALL, **settings})  # type: ignore[arg-type]
    teacher = FeatureExtractor("resnet18", ["layer1", "layer2"], weights="random", seed=5)
    images = torch.rand(8, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = Stacked(lambda: nn.Identity(), 2, 0)(images)
    found = [teacher(maps[:, p]) for p in range(2)]
    batch = Batch(tuple(torch.stack(both, dim=1) for both in zip(*found, strict=True)), images)
    detector.build([(c.shape[2], c.shape[3], c.shape[4]) for c in batch.levels], positions, seed)
    return detector, batch


def part(batch: Batch, rows: object, positions: slice) -> Batch:
    """Some images and positions of a reading."""
    assert batch.images is not None
    return Batch(tuple(x[rows][:, positions] for x in batch.levels), batch.images[rows][:, positions])  # type: ignore[index]


def trained(detector: STFPM, batch: Batch, positions: slice) -> list[float]:
    """Train on the first six images and validate on the last two; the training loss of position 0, epoch by epoch."""
    history = train_all(
        detector.phases(),
        lambda rows: part(batch, list(rows), positions),
        6,
        lambda rows: part(batch, [6 + i for i in rows], positions),
        2,
        seed=0,
        autocast="off",
    )
    return [epoch[0] for epoch in history[0].train]


def test_training_lowers_the_loss_and_keeps_the_best_epoch() -> None:
    detector, batch = ready(epochs=4)
    losses = trained(detector, batch, slice(0, 1))
    assert losses[-1] < 0.8 * losses[0]
    plan = detector.phases()[0].plan
    assert (plan.optimiser, plan.pick, plan.momentum, plan.weight_decay) == ("sgd", "best", 0.9, 1e-4)
    assert STFPM.validate_share == 0.2


def test_the_length_of_training_is_in_steps_unless_epochs_are_given() -> None:
    """Any number of images gets the same training; more images than the steps hold do not cost more."""
    default, asked = ready()[0], ready(epochs=4)[0]
    assert (default.phases()[0].plan.steps, default.phases()[0].plan.epochs) == (300, None)
    assert default.work_units(10) == default.work_units(1000) == 300 * SMALL["batch"]  # type: ignore[operator]
    assert (asked.phases()[0].plan.steps, asked.phases()[0].plan.epochs) == (None, 4)
    assert asked.work_units(10) == 40


@pytest.mark.slow
def test_two_positions_are_two_detectors() -> None:
    both, batch = ready(positions=2, epochs=2)
    trained(both, batch, slice(0, 2))
    scores, maps = both.score(batch)
    for p in range(2):
        alone, _ = ready(seed=p, epochs=2)
        own = slice(p, p + 1)
        trained(alone, batch, own)
        own_scores, own_maps = alone.score(part(batch, slice(None), own))
        torch.testing.assert_close(scores[:, own], own_scores, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(maps[:, own], own_maps, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_validation_images_are_needed() -> None:
    with pytest.raises(InputError, match="give validate"):
        STFPM(**SMALL).fit(textures(8, 32), validate=0, engine="torch")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lr=0"):
        STFPM(**SMALL, lr=0.0).fit(textures(8, 32), engine="torch")  # type: ignore[arg-type]


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_paper_preset_runs_on_random_weights() -> None:
    detector = STFPM.from_preset("paper", weights="random", size=64, epochs=1).fit(
        textures(8, 64), calibrate=0, engine="torch"
    )
    assert detector.student is not None
    # ResNet-18 has 11,689,512 parameters, of which layer4 8,393,728 and the classifier 513,000
    assert sum(p.numel() for p in detector.student.parameters()) == 11_689_512 - 8_393_728 - 513_000
    found = detector.predict(textures(2, 64, seed=1), engine="torch")
    assert found.maps[0].shape == (16, 16)
    paper = STFPM.from_preset("paper")
    assert (paper.epochs, paper.batch, paper.lr, paper.smoothing) == (100, 32, 0.4, 0.0)


@pytest.mark.slow
def test_a_file_from_before_keeps_its_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thresholds are of the product of levels that all count alike; the file does not say so."""
    good = textures(8, 48)
    detector = STFPM(**SMALL, epochs=1, lr=0.02, stride_powers=False).fit(good, calibrate=0, engine="torch")  # type: ignore[arg-type]
    scores = detector.predict(good, engine="torch").scores
    settings = detector.configuration()
    del settings["stride_powers"]
    monkeypatch.setattr(detector, "configuration", lambda: settings)
    loaded = pg.load(detector.save(tmp_path / "m.safetensors"))
    np.testing.assert_array_equal(loaded.predict(good, engine="torch").scores, scores)
    loaded.stride_powers = True  # type: ignore[attr-defined]
    assert bool((loaded.predict(good, engine="torch").scores != scores).all())


@pytest.mark.golden
def test_golden_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed number is a changed method: change it here only with a reason in the changelog."""
    monkeypatch.setattr("pickglass.nn.training.loop.has_fast_bfloat16", lambda: False)  # the same arithmetic everywhere
    detector = STFPM(**SMALL, epochs=2, lr=0.02, top_share=0.0)  # type: ignore[arg-type]
    detector.fit(textures(10, 48), calibrate=0, engine="torch")
    found = detector.predict(textures(3, 48, seed=1), engine="torch")
    np.testing.assert_allclose(found.scores, GOLDEN, rtol=5e-3)


GOLDEN = [0.266657, 0.209007, 0.235535]
