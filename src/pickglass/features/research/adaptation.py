"""Adapted middle layers: chosen stages of the backbone fine-tuned on good images, with painted defects as negatives.

A network that was trained on photographs of dogs and lorries may look past what matters on a bearing ring. There are no
defects to learn from, so they are painted (:func:`pickglass.data.paint`), as in CutPaste (Li et al., CVPR 2021), whose
scheme this follows: a task with made-up defects shapes the features, and what judges images is a detector that sees
good features only. Three things are done otherwise, all because of what the detectors here measure:

- The task is per cell, and it is the nearest-neighbour distance of PatchCore (Roth et al. 2022, eq. 6) itself rather
  than a classifier that is thrown away: with d the distance of a cell to the nearest good cell of the *other* images of
  the batch, each painted cell p should be farther than each good one g. The loss is the mean over all pairs of
  softplus(log d_g - log d_p), the logistic bound on 1 - AUROC (Burges et al. 2005, RankNet, eq. 3). Logarithms, for
  otherwise larger features would do.
- The features of good cells are held where they were: ``pull`` times the mean squared distance to those of the
  network as it was, in units of their variance, as in learning without forgetting (Li and Hoiem 2016) and for the
  reason of L2-SP (Li, Grandvalet and Davoine 2018): a few dozen images must not undo a million.
- It stops when it hurts. After each epoch, and before the first, the detector's own question is asked on good images
  that nothing was trained on, with painted defects of kinds and seeds that were not trained on: the mean over the
  defects of the cell AUROC, distances measured to good cells of the training images. The best epoch is kept; the
  network as it was is epoch 0 and wins ties. On this measure the result is never worse.

A stage is what lies between one named layer and the next, up to and including it. Statistics of batch normalisation
stay as they are. A cell is the mean over its 3 x 3 neighbourhood of all levels brought to the finest grid, each level
divided by the standard deviation of all its channels together. Cells beside a painted one count as neither.

Letters: N images, H x W pixels of the network's input, D channels of all levels, h x w cells of the finest.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pickglass.data import paint
from pickglass.data.painting.defects import Kind
from pickglass.errors import InputError
from pickglass.features.anatomy.facts import needed
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.extractor import FeatureExtractor, layer_list
from pickglass.nn.maps import kept_cells, neighbourhood_mean, to_grid
from pickglass.nn.networks.stacked import Stacked
from pickglass.nn.search.neighbours import BankIndex
from pickglass.nn.training.loop import Phase, Plan, train_all

__all__ = ["JUDGED_BY", "TRAINED_ON", "AdaptationOptions", "AdaptationSettings", "Good", "adapt", "stage_weights"]

TRAINED_ON: tuple[Kind, ...] = ("scratch", "stain", "dent", "slub", "foreign_fibre")
JUDGED_BY: tuple[Kind, ...] = ("hole", "crack", "knot", "broken_pick", "missing_end")

_BATCH = 8
_CELLS = 1024  # of a batch, good and painted ones each: more of them cost memory and say little
_BANK_IMAGES, _BANK = 16, 2048  # good images, and cells of them, that distances are measured to when judging
_JUDGED = 24  # painted images
_SMALLEST = 4  # px that paint takes
_EPS = 1e-6


class AdaptationOptions(TypedDict, total=False):
    """The fields of :class:`AdaptationSettings` that have defaults, as keyword arguments."""

    epochs: int
    lr: float
    pull: float
    images: int


@dataclass(frozen=True)
class AdaptationSettings:
    """How a backbone is adapted; see :mod:`pickglass.features.research.adaptation`.

    Attributes:
        stages: layers by name; the weights between the layer before and this one are trained.
        epochs: at most; the best is kept.
        lr: learning rate of Adam.
        pull: weight of staying close to the network as it was.
        images: at most so many, or so many tiles, are trained on.
    """

    stages: tuple[str, ...]
    epochs: int = 8
    lr: float = 1e-4
    pull: float = 1.0
    images: int = 64

    def __post_init__(self) -> None:
        if not self.stages or not all(isinstance(stage, str) for stage in self.stages):
            raise InputError(
                f"stages={self.stages!r} of adaptation: expected names of layers, e.g. ('stage3', 'stage4')"
            )
        if self.epochs < 1 or self.images < 2:
            raise InputError(f"epochs={self.epochs!r}, images={self.images!r} of adaptation: expected at least 1 and 2")
        if not self.lr > 0 or not self.pull >= 0:
            raise InputError(f"lr={self.lr!r}, pull={self.pull!r} of adaptation: expected above 0, and 0 or more")

    def to_json(self) -> dict[str, Any]:
        """A plain dict from which :meth:`from_json` makes equal settings."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AdaptationSettings:
        """The settings that :meth:`to_json` described."""
        return cls(**{**data, "stages": layer_list(data["stages"])})


class Good(NamedTuple):
    """Good images as the network sees them, on the CPU: (N, 3, H, W) RGB in [0, 1], and what counts, (N, H, W) bool."""

    images: Tensor
    keep: Tensor | None


class _Painted(NamedTuple):
    images: Tensor  # (N, 3, H, W)
    painted: Tensor  # (N, H, W) bool
    keep: Tensor | None  # (N, H, W) bool

    def to(self, device: str) -> _Painted:
        return _Painted(*(None if t is None else t.to(device) for t in self))  # type: ignore[arg-type]


def adapt(
    extractor: FeatureExtractor,
    settings: AdaptationSettings,
    fit: Good,
    held: Good,
    *,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune an extractor in place; it stays as it was where no epoch was better.

    Args:
        extractor: on its device.
        settings: which stages, and how long.
        fit: good images to train on.
        held: others, to judge by.
        seed: of the painted defects and of everything else drawn at random.
        progress: called with (stage, done, total).

    Returns:
        What happened: ``stages``, ``weights`` (how many numbers were trained), ``images``, ``judged_images``, ``kept``
        (epoch; 0: as it was), ``auroc`` (per epoch from 0 on), ``loss`` (from 1 on), ``trained_on``, ``judged_by`` and
        ``seconds``.

    Raises:
        InputError: fewer than two images, none to judge by, or a stage that is not read.
        UnknownName: there is no such layer.
    """
    n = len(fit.images)
    if n < 2 or len(held.images) < 1:
        raise InputError(
            f"{n} images to adapt the backbone on and {len(held.images)} to judge by: expected at least 2 and 1. "
            "Give more images, and a share for validation, e.g. validate=0.1"
        )
    names = stage_weights(extractor, settings.stages)
    device = str(extractor.mean.device)
    task = _Task(extractor, names, settings.pull, fit, seed)
    judged = _judged(held, seed).to(device)
    plan = Plan(epochs=settings.epochs, batch=_BATCH, lr=settings.lr, drop_last=n > _BATCH, pick="best", start=True)
    (history,) = train_all(
        [Phase("backbone", task.stack, task.loss, plan, task.misses)],
        lambda indices: task.painted(indices).to(device),
        n,
        lambda _: judged,  # all of them are one thing to judge by
        1,
        seed=seed,
        device=device,
        autocast="off",
        progress=progress,
    )
    state = task.stack.tree.extractor.body.state_dict()  # type: ignore[union-attr]
    trained = {name: state[name][0].clone() for name in names}
    if history.picked[0] > 0:
        extractor.body.load_state_dict(trained, strict=False)
        if extractor.weights is not None:
            extractor.weights = replace(extractor.weights, adapted=_digest(trained))
    return {
        "stages": list(settings.stages),
        "weights": sum(tensor.numel() for tensor in trained.values()),
        "images": n,
        "judged_images": len(judged.images),
        "kept": history.picked[0],
        "auroc": [round(1 - misses, 6) for (misses,) in history.validation],
        "loss": [round(loss, 6) for (loss,) in history.train],
        "trained_on": list(TRAINED_ON),
        "judged_by": list(JUDGED_BY),
        "seconds": history.seconds,
    }


def stage_weights(extractor: FeatureExtractor, stages: Sequence[str]) -> list[str]:
    """Names of the parameters that lie between the layer before each of these and the layer itself.

    Args:
        extractor: whose body they belong to.
        stages: layers; what counts as the layer before is one of the preset's, of the detector's or of these.

    Raises:
        InputError: a stage lies behind all layers that are read, or has no parameter.
        UnknownName: there is no such layer.
    """
    spec = find_backbone(extractor.backbone)
    names = list(dict.fromkeys([*(level.name for level in spec.levels), *extractor.layers, *stages]))
    whole = FeatureExtractor(extractor.backbone, names, weights=None)
    graph: fx.Graph = whole.body.graph  # type: ignore[assignment]
    (output,) = (node for node in graph.nodes if node.op == "output")
    behind = {name: needed(output.args[0][node]) for name, node in zip(names, whole.nodes, strict=True)}
    read = set().union(*(behind[name] for name in extractor.layers))
    known = [name for name, _ in extractor.body.named_parameters()]
    found: list[str] = []
    for stage in stages:
        if not behind[stage] <= read:
            raise InputError(
                f"stage {stage!r} of adaptation lies behind all layers that are read, {', '.join(extractor.layers)}: "
                "read it too, or adapt an earlier one"
            )
        before = max((nodes for nodes in behind.values() if nodes < behind[stage]), key=len, default=set())
        targets = [str(node.target) for node in behind[stage] - before if node.op in ("call_module", "get_attr")]
        own = [name for name in known if any(name == t or name.startswith(f"{t}.") for t in targets)]
        if not own:
            raise InputError(f"stage {stage!r} of adaptation has no weights of its own: name another layer")
        found += own
    return list(dict.fromkeys(found))


def _digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


# -- the task ----------------------------------------------------------------------------------------------------------


class _Described(nn.Module):
    """An extractor and what it says of each cell: (N, 3, H, W) -> (N, D, h, w)."""

    def __init__(self, extractor: FeatureExtractor, scales: Sequence[float]) -> None:
        super().__init__()
        self.extractor = extractor
        self.scales = scales

    def forward(self, images: Tensor) -> Tensor:
        levels = self.extractor(images.contiguous(memory_format=torch.channels_last))
        grid = max(((level.shape[2], level.shape[3]) for level in levels), key=lambda grid: grid[0] * grid[1])
        parts = [
            to_grid(neighbourhood_mean(level, 3) * scale, grid)
            for level, scale in zip(levels, self.scales, strict=True)
        ]
        return torch.cat(parts, dim=1)


class _Task:
    """What is learned and what is asked.

    Attributes:
        stack: the network that is trained, P = 1.
    """

    def __init__(self, extractor: FeatureExtractor, names: Sequence[str], pull: float, fit: Good, seed: int) -> None:
        self.pull = pull
        self.fit = fit
        self.seed = seed
        self.visits = [0] * len(fit.images)
        self.bank = Good(fit.images[:_BANK_IMAGES], None if fit.keep is None else fit.keep[:_BANK_IMAGES])
        with torch.no_grad():
            levels = extractor(self.bank.images.to(extractor.mean.device))
            scales = [1 / max(float(level.var((0, 2, 3)).sum()) ** 0.5, _EPS) for level in levels]
        self.frozen = _Described(extractor, scales)
        own = copy.deepcopy(extractor).eval()  # a copied graph is back in training mode
        for name, parameter in own.body.named_parameters():
            parameter.requires_grad_(name in names)
        self.stack = Stacked(lambda: _Described(own, scales), positions=1, seed=seed)

    def painted(self, indices: Sequence[int]) -> _Painted:
        """Training images, each time with another defect."""
        found = []
        for i in indices:
            rng = np.random.default_rng((self.seed, 0, i, self.visits[i]))
            self.visits[i] += 1
            found.append(_painted(self.fit, i, str(rng.choice(TRAINED_ON)), rng))
        return _stacked(found)

    def loss(self, batch: _Painted) -> Tensor:
        """The mean over pairs of softplus(log d_g - log d_p), and the pull: (1,)."""
        now = self.stack(batch.images[:, None])[:, 0]  # (N, D, h, w)
        with torch.no_grad():
            was = self.frozen(batch.images)
        bad, good = _cells(batch, (now.shape[2], now.shape[3]))
        moved = (now - was).square().sum(1)[good].mean() / len(self.frozen.scales)
        vectors = now.permute(0, 2, 3, 1)  # (N, h, w, D)
        log_p, log_g = (
            _log_distances(vectors, _some(cells), _some(good)) for cells in (bad, good)
        )  # (n,), (m,), the good cells drawn anew
        ranked = F.softplus(log_g[:, None] - log_p).mean() if len(log_p) else moved * 0
        total: Tensor = ranked + self.pull * moved
        return total.reshape(1)

    def misses(self, batch: _Painted) -> Tensor:
        """1 - the mean over the defects of the cell AUROC: (1,)."""
        images = self.bank.images.to(batch.images.device)
        vectors = _vectors(self.stack, images)  # (N, h, w, D)
        keep = kept_cells(self.bank.keep, (vectors.shape[1], vectors.shape[2]))
        held = vectors.flatten(0, 2) if keep is None else vectors[keep.to(images.device)]
        drawn = torch.randperm(len(held), generator=torch.Generator().manual_seed(self.seed))[:_BANK]
        index = BankIndex(held[drawn.to(held.device)])
        found, passed = [], []
        for lo in range(0, len(batch.images), _BATCH):
            part = _Painted(*(None if t is None else t[lo : lo + _BATCH] for t in batch))  # type: ignore[arg-type]
            vectors = _vectors(self.stack, part.images)
            distances = index.distances(vectors.flatten(0, 2)).view(vectors.shape[:3])  # (N, h, w)
            bad, good = _cells(part, (vectors.shape[1], vectors.shape[2]))
            found += [d[b] for d, b in zip(distances, bad, strict=True) if bool(b.any())]
            passed.append(distances[good])
        ok = torch.cat(passed).sort().values
        shares = [
            (torch.searchsorted(ok, d) + torch.searchsorted(ok, d, right=True)).double().mean() / (2 * len(ok))
            for d in found
        ]
        return 1 - torch.stack(shares).mean().reshape(1)


def _vectors(stack: Stacked, images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, h, w, D), a few images at once."""
    parts = [stack(images[lo : lo + _BATCH, None])[:, 0] for lo in range(0, len(images), _BATCH)]
    return torch.cat(parts).permute(0, 2, 3, 1).contiguous()


def _cells(batch: _Painted, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cells with painted pixels, and good cells, both (N, h, w) bool; those beside a painted one are neither."""
    bad = F.adaptive_max_pool2d(batch.painted[:, None].float(), grid)  # (N, 1, h, w)
    good = F.max_pool2d(bad, 3, stride=1, padding=1)[:, 0] == 0
    keep = kept_cells(batch.keep, grid)
    return (bad[:, 0] > 0, good) if keep is None else ((bad[:, 0] > 0) & keep, good & keep)


def _some(cells: Tensor) -> Tensor:
    """At most 1,024 of them, drawn from torch's default generator: (n, 3) image, row and column."""
    places = cells.nonzero()
    return places[torch.randperm(len(places))[:_CELLS].to(places.device)]


def _log_distances(vectors: Tensor, queries: Tensor, bank: Tensor) -> Tensor:
    """log of the distance (n,) of the cells (n, 3) to the nearest of the cells (m, 3) of other images."""
    x, y = (vectors[at[:, 0], at[:, 1], at[:, 2]] for at in (queries, bank))  # (n, D), (m, D)
    squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T  # (n, m)
    nearest = squared.masked_fill(queries[:, :1] == bank[:, 0], torch.inf).amin(1) if len(x) and len(y) else x.sum(1)
    nearest = nearest[torch.isfinite(nearest)]
    return nearest.clamp(min=_EPS).log() / 2


# -- painting ----------------------------------------------------------------------------------------------------------


def _judged(held: Good, seed: int) -> _Painted:
    """Images to judge by, each held image as often as needed, the kinds in turn."""
    found = []
    for i in range(_JUDGED):
        rng = np.random.default_rng((seed, 1, i))
        found.append(_painted(held, i % len(held.images), JUDGED_BY[i % len(JUDGED_BY)], rng))
    judged = _stacked(found)
    if not bool(judged.painted.any()):
        raise InputError("no defect can be painted on the held-back images: are they all of one colour, or too small?")
    return judged


def _painted(good: Good, i: int, kind: str, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """Image (3, H, W), painted pixels (H, W), and what counts of it."""
    image, keep = good.images[i].clone(), None if good.keep is None else good.keep[i]
    pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()  # (H, W, 3)
    largest = max(_SMALLEST, min(pixels.shape[:2]) / 4)
    size = float(np.exp(rng.uniform(np.log(_SMALLEST), np.log(largest))))
    drawn = float(rng.uniform(0.3, 1.0))
    for contrast in (drawn, 1.0, 2.0):  # too weak a one may change nothing
        try:
            found = paint(np.ascontiguousarray(pixels), kind, size, rng, contrast)  # type: ignore[arg-type]
        except InputError:
            continue
        mask = torch.from_numpy(found.mask)
        image[:, mask] = torch.from_numpy(found.image).permute(2, 0, 1)[:, mask].float() / 255
        return image, mask if keep is None else mask & keep, keep
    return image, torch.zeros(image.shape[1:], dtype=torch.bool), keep


def _stacked(found: list[tuple[Tensor, Tensor, Tensor | None]]) -> _Painted:
    images, masks, keeps = zip(*found, strict=True)
    return _Painted(torch.stack(images), torch.stack(masks), None if keeps[0] is None else torch.stack(keeps))
