"""Reverse distillation against its formulas done literally, its networks, its training, and the conformance suite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pickglass.errors import InputError
from pickglass.features.batch import Batch
from pickglass.methods.reverse_distillation import ReverseDistillation, _Student
from pickglass.nn.training.loop import train_all
from pickglass.testing import textures

SMALL = {"size": 64, "backbone": "resnet18", "layers": ("layer1", "layer2"), "weights": "random", "width": 0.25}
WIDE_RESNET = [(256, 64, 64), (512, 32, 32), (1024, 16, 16)]  # layer1 to layer3 at 256 pixels


class Fixed(nn.Module):
    """A student that has its answer ready."""

    def __init__(self, answer: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        return self.answer


def with_student(answer: tuple[Tensor, ...], **settings: object) -> ReverseDistillation:
    detector = ReverseDistillation(**{"size": (24, 20), "smoothing": 0.0, **settings})  # type: ignore[arg-type]
    detector.student = Fixed(answer)  # type: ignore[assignment]
    return detector


def levels(seed: int, batch: int = 3, positions: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, positions, 4, 6, 5, generator=generator),
        torch.randn(batch, positions, 7, 3, 3, generator=generator),
    )


def cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def literal_map(f_e: Tensor, f_d: Tensor) -> np.ndarray:
    """Eq. 1, cell by cell: (C, h, w) twice -> (h, w)."""
    e, d = f_e.double().numpy(), f_d.double().numpy()
    return np.array([[cosine_distance(e[:, y, x], d[:, y, x]) for x in range(e.shape[2])] for y in range(e.shape[1])])


# -- loss and score ----------------------------------------------------------------------------------------------------


def test_training_takes_the_distance_of_the_flattened_level_and_not_of_its_cells() -> None:
    teacher, student = levels(0), levels(1)
    found = with_student(student)._loss(Batch(teacher))
    assert found.shape == (2,)
    for p in range(2):
        flattened, by_cell = 0.0, 0.0
        for t, s in zip(teacher, student, strict=True):
            for i in range(3):
                flattened += cosine_distance(t[i, p].double().numpy().ravel(), s[i, p].double().numpy().ravel()) / 3
                by_cell += literal_map(t[i, p], s[i, p]).mean() / 3
        assert float(found[p]) == pytest.approx(flattened, rel=1e-5)
        assert abs(flattened - by_cell) > 0.01


def test_a_cell_counts_by_the_length_of_the_teachers_feature() -> None:
    """By hand, lengths of 1 and 3 where 1 is usual: distances of a right angle, 1, weigh 1/2 and 9/10."""
    teacher = torch.tensor([[1.0, 0.0], [3.0, 0.0]]).T.view(1, 1, 2, 1, 2)
    student = torch.tensor([[0.0, 2.0], [0.0, 7.0]]).T.view(1, 1, 2, 1, 2)
    detector = with_student((student,), size=(4, 8))
    plain = detector._loss(Batch((teacher,)))
    detector.usual = torch.ones(1, 1)
    torch.testing.assert_close(detector.score(Batch((teacher,)))[1], torch.tensor([[[[0.5, 0.9]]]]))
    torch.testing.assert_close(detector._loss(Batch((teacher,))), plain)  # long features lead it anyhow


def test_flattened_and_by_cell_differ_by_hand() -> None:
    """Cells (10, 0) and (0, 1) against (10, 0) and (0, -1): by cell (0 + 2) / 2, flattened 1 - 99 / 101."""
    teacher = torch.tensor([[10.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 1, 2)
    student = torch.tensor([[10.0, 0.0], [0.0, -1.0]]).view(1, 1, 2, 1, 2)
    detector = with_student((student,), size=(4, 8))
    assert float(detector._loss(Batch((teacher,)))) == pytest.approx(2 / 101, rel=1e-5)
    scores, maps = detector.score(Batch((teacher,)))
    torch.testing.assert_close(maps, torch.tensor([[[[0.0, 2.0]]]]))
    assert float(scores) == 2


def test_cells_that_do_not_count_are_left_out_of_the_loss() -> None:
    teacher, student = levels(0), levels(1)
    keep = torch.ones(3, 2, 24, 20, dtype=torch.bool)
    keep[..., 12:, :] = False  # rows 3 to 5 of level 1; of level 2 the last, its second is half inside
    found = with_student(student)._loss(Batch(teacher, None, keep))
    expected = 0.0
    for t, s, rows in zip(teacher, student, (3, 2), strict=True):
        cut = [(t[i, 0, :, :rows].double().numpy(), s[i, 0, :, :rows].double().numpy()) for i in range(3)]
        expected += np.mean([cosine_distance(a.ravel(), b.ravel()) for a, b in cut])
    assert float(found[0]) == pytest.approx(expected, rel=1e-5)


def test_the_map_is_the_sum_of_the_levels_and_the_score_comes_after_smoothing() -> None:
    teacher, student = levels(0), levels(1)
    scores, maps = with_student(student).score(Batch(teacher))
    low = torch.from_numpy(literal_map(teacher[1][2, 1], student[1][2, 1])).view(1, 1, 3, 3)
    enlarged = nn.functional.interpolate(low, (6, 5), mode="bilinear").numpy()[0, 0]
    expected = literal_map(teacher[0][2, 1], student[0][2, 1]) + enlarged
    np.testing.assert_allclose(maps[2, 1].numpy(), expected, atol=1e-5)
    torch.testing.assert_close(scores, maps.flatten(2).max(2).values)
    smooth_scores, smooth = with_student(student, smoothing=4.0).score(Batch(teacher))
    torch.testing.assert_close(smooth_scores, smooth.flatten(2).max(2).values)
    assert bool((smooth_scores < scores).all())
    keep = torch.ones(3, 2, 24, 20, dtype=torch.bool)
    keep[..., 12:, :] = False
    kept_scores, _ = with_student(student).score(Batch(teacher, None, keep))
    torch.testing.assert_close(kept_scores, maps[..., :3, :].flatten(2).max(2).values)


# -- the networks ------------------------------------------------------------------------------------------------------


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_of_the_authors_network() -> None:
    """Counted in the authors' code with WideResNet-50: decoder and the convolutions that bring levels to one grid."""
    with torch.device("meta"):  # shapes without numbers
        student = _Student(WIDE_RESNET, (6, 4, 3, 3), "bottleneck", None)
        mirrored = _Student(WIDE_RESNET, (3, 4, 6, 3), "bottleneck", None)
    assert [parameters(stage) for stage in student.stages] == [1_759_744, 5_317_632, 17_840_128]
    assert parameters(student.fusions) == 10_621_952
    # the fourth stage of WideResNet-50 but for the classifier: 1024 -> 2048 channels, three blocks
    first = 1024 * 1024 + 9 * 1024 * 1024 + 1024 * 2048 + 1024 * 2048 + 2 * (2 * 1024 + 2 * 2048)
    other = 2048 * 1024 + 9 * 1024 * 1024 + 1024 * 2048 + 2 * (2 * 1024 + 2048)
    assert parameters(student.embed) == first + 2 * other
    assert [len(stage) for stage in mirrored.stages] == [3, 4, 6]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "shapes",
    [
        [(8, 16, 16), (12, 8, 8), (16, 4, 4)],
        [(8, 15, 21), (12, 8, 11), (16, 4, 6)],
        [(8, 13, 9)],
        [(6, 20, 20), (10, 5, 5)],
        [(6, 9, 9), (10, 3, 3)],
        [(6, 7, 7), (10, 7, 7)],
        [(4, 4, 4), (6, 2, 2), (8, 1, 1)],
    ],
    ids=["halved", "odd", "one level", "quartered", "a third", "same grid", "down to one cell"],
)
@pytest.mark.parametrize(("block", "width"), [("basic", 2.0), ("bottleneck", None)])
def test_any_levels_come_back_in_their_shapes(
    shapes: list[tuple[int, int, int]], block: str, width: float | None
) -> None:
    student = _Student(shapes, [1] * len(shapes) + [2], block, width)  # type: ignore[arg-type]
    given = tuple(torch.rand(2, *shape) for shape in shapes)
    assert [tuple(x.shape) for x in student(*given)] == [tuple(x.shape) for x in given]


def test_only_with_a_linear_layer_can_values_below_zero_come_back() -> None:
    given = tuple(torch.randn(2, *shape) for shape in [(8, 8, 8), (12, 4, 4)])
    plain, linear = (_Student([(8, 8, 8), (12, 4, 4)], [1, 1, 1], "basic", width) for width in (None, 1.0))
    assert all(bool((x >= 0).all()) for x in plain(*given))
    assert all(bool((x < 0).any()) for x in linear(*given))


def test_everything_passes_through_the_embedding() -> None:
    """What the fused levels cannot tell, the student cannot restore: no way leads around the embedding."""
    student = _Student([(8, 8, 8), (12, 4, 4)], [1, 1, 1], "basic", 1.0).eval()
    student.embed.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    a, b = (student(*(torch.randn(2, *s) for s in [(8, 8, 8), (12, 4, 4)])) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- training ----------------------------------------------------------------------------------------------------------


def ready(positions: int = 1, seed: int = 0, **settings: object) -> ReverseDistillation:
    detector = ReverseDistillation(**{**SMALL, "size": (24, 20), "batch": 4, **settings})  # type: ignore[arg-type]
    detector.build([(4, 6, 5), (7, 3, 3)], positions, seed)
    return detector


def trained(detector: ReverseDistillation, given: tuple[Tensor, ...]) -> list[float]:
    """Train on the first six images and validate on the last two; the training loss of position 0, epoch by epoch."""
    history = train_all(
        detector.phases(),
        lambda rows: Batch(tuple(x[list(rows)] for x in given)),
        6,
        lambda rows: Batch(tuple(x[[6 + i for i in rows]] for x in given)),
        2,
        seed=0,
        autocast="off",
    )
    return [epoch[0] for epoch in history[0].train]


def test_training_lowers_the_loss() -> None:
    detector = ready(epochs=10, width=2.0)
    losses = trained(detector, levels(0, 8, 1))
    assert losses[-1] < 0.9 * losses[0]
    plan = detector.phases()[0].plan
    assert (plan.optimiser, plan.lr, plan.betas, plan.pick) == ("adam", 5e-3, (0.5, 0.999), "best")


def test_two_positions_are_two_detectors() -> None:
    given = levels(0, 8, 2)
    both = ready(positions=2, epochs=2)
    trained(both, given)
    scores, maps = both.score(Batch(given))
    for p in range(2):
        own = tuple(x[:, p : p + 1] for x in given)
        alone = ready(seed=p, epochs=2)
        trained(alone, own)
        own_scores, own_maps = alone.score(Batch(own))
        torch.testing.assert_close(scores[:, p : p + 1], own_scores, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(maps[:, p : p + 1], own_maps, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": (1, 1)}, r"blocks=\(1, 1\): expected a number from 1 on, or 3 of them"),
        ({"blocks": 0}, "blocks=0"),
        ({"block": "plain"}, "block='plain': expected one of basic, bottleneck"),
        ({"width": 0.0}, "width=0.0: expected a positive multiple"),
        ({"layers": ("layer2", "layer1")}, "layer2 8x8, layer1 16x16: reorder them"),
        ({"epochs": 0}, "epochs=0"),
    ],
)
@pytest.mark.slow
def test_bad_settings_name_the_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ReverseDistillation(**{**SMALL, **settings}).fit(textures(10, 64), engine="torch")  # type: ignore[arg-type]


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_the_paper_preset_runs_on_random_weights() -> None:
    detector = ReverseDistillation.from_preset("paper", weights="random", size=64, epochs=1, batch=2)
    found = detector.fit(textures(2, 64), calibrate=0, validate=0, engine="torch").predict(
        textures(1, 64, seed=1), engine="torch"
    )
    assert found.maps[0].shape == (16, 16)
    paper = ReverseDistillation.from_preset("paper")
    assert (paper.epochs, paper.batch, paper.lr, paper.betas, paper.pick) == (200, 16, 5e-3, (0.5, 0.999), "last")
    assert (paper.size, paper.smoothing, paper.blocks) == (256, 4.0, (3, 4, 6, 3))


@pytest.mark.golden
def test_golden_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed number is a changed method: change it here only with a reason in the changelog."""
    monkeypatch.setattr("pickglass.nn.training.loop.has_fast_bfloat16", lambda: False)  # the same arithmetic everywhere
    detector = ReverseDistillation(**SMALL, epochs=2)  # type: ignore[arg-type]
    found = detector.fit(textures(10, 64), calibrate=0, engine="torch").predict(textures(3, 64, seed=1), engine="torch")
    np.testing.assert_allclose(found.scores, GOLDEN, rtol=5e-3)


GOLDEN = [1.030449, 1.035516, 1.046727]
