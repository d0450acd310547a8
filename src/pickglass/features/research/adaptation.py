"""Chosen stages of the backbone are fine-tuned on good images, with painted defects as negatives.

Measured: no clear gain on real defects (docs/fusion.md).

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

The task is in :mod:`~pickglass.features.research.adaptation_task`, the painting in
:mod:`~pickglass.features.research.adaptation_painting`.

Letters: N images, H x W pixels of the network's input, D channels of all levels, h x w cells of the finest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

from torch import Tensor, fx

from pickglass.errors import InputError
from pickglass.features.anatomy.facts import needed
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.extractor import FeatureExtractor, layer_list
from pickglass.features.research.adaptation_painting import JUDGED_BY, TRAINED_ON, Good, judged_images
from pickglass.features.research.adaptation_task import BATCH, AdaptationTask
from pickglass.nn.training.loop import Phase, Plan, train_all

__all__ = ["AdaptationOptions", "AdaptationSettings", "Good", "adapt", "stage_weights"]


class AdaptationOptions(TypedDict, total=False):
    """The fields of :class:`AdaptationSettings` that have defaults can be given as keyword arguments."""

    epochs: int
    lr: float
    pull: float
    images: int


@dataclass(frozen=True)
class AdaptationSettings:
    """A backbone is adapted by these settings; see :mod:`pickglass.features.research.adaptation`.

    Attributes:
        stages: layers by name; the weights between the layer before and this one are trained.
        epochs: largest number of epochs; the best is kept.
        lr: learning rate of Adam.
        pull: weight of the penalty for moving away from the network as it was.
        images: largest number of images, or of tiles, that are trained on.

    Raises:
        InputError: a setting out of its range, or no stage.
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
        """Return a plain dict from which :meth:`from_json` makes equal settings."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AdaptationSettings:
        """Make settings of what :meth:`to_json` returned."""
        return cls(**{**data, "stages": layer_list(data["stages"])})


def adapt(
    extractor: FeatureExtractor,
    settings: AdaptationSettings,
    fit: Good,
    validate: Good,
    *,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune an extractor in place; it stays as it was where no epoch was better.

    Args:
        extractor: on its device.
        settings: which stages, and how long.
        fit: good images to train on.
        validate: other good images, to judge by.
        seed: seeds the painted defects and everything else that is drawn at random.
        progress: called with (stage, done, total).

    Returns:
        A record with ``stages``, ``weights`` (how many numbers were trained), ``images``, ``judged_images``, ``kept``
        (epoch; 0: as it was), ``auroc`` (per epoch from 0 on), ``loss`` (from 1 on), ``trained_on``, ``judged_by``
        and ``seconds``.

    Raises:
        InputError: fewer than two images, none to judge by, or a stage that is not read.
        UnknownName: there is no such layer.
    """
    n = len(fit.images)
    if n < 2 or len(validate.images) < 1:
        raise InputError(
            f"{n} images to adapt the backbone on and {len(validate.images)} to judge by: expected at least 2 and 1. "
            "Give more images, and a share for validation, e.g. validate=0.1"
        )
    names = stage_weights(extractor, settings.stages)
    device = str(extractor.mean.device)
    task = AdaptationTask(extractor, names, settings.pull, fit, seed)
    judged = judged_images(validate, seed).to(device)
    plan = Plan(epochs=settings.epochs, batch=BATCH, lr=settings.lr, drop_last=n > BATCH, pick="best", start=True)
    (history,) = train_all(
        [Phase("backbone", task.stack, task.loss, plan, task.misses, task.draws)],
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
    """Name the parameters of stages, which lie between the layer before each and the layer itself.

    Args:
        extractor: the network; its parameters are named as in its body.
        stages: layers. The layer before each is looked for among the preset's, the extractor's and these.

    Returns:
        The parameters' names, each once.

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
    parameters = [name for name, _ in extractor.body.named_parameters()]

    names_of_stages: list[str] = []
    for stage in stages:
        if not behind[stage] <= read:
            raise InputError(
                f"stage {stage!r} of adaptation lies behind all layers that are read, {', '.join(extractor.layers)}: "
                "read it too, or adapt an earlier one"
            )
        before = max((nodes for nodes in behind.values() if nodes < behind[stage]), key=len, default=set())
        targets = [str(node.target) for node in behind[stage] - before if node.op in ("call_module", "get_attr")]
        inside = [name for name in parameters if any(name == t or name.startswith(f"{t}.") for t in targets)]
        if not inside:
            raise InputError(f"stage {stage!r} of adaptation has no weights of its own: name another layer")
        names_of_stages += inside
    return list(dict.fromkeys(names_of_stages))


def _digest(tensors: dict[str, Tensor]) -> str:
    """Hash tensors and their names (SHA-256)."""
    sha256 = hashlib.sha256()
    for name, tensor in tensors.items():
        sha256.update(name.encode())
        sha256.update(tensor.cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()
