"""Giving a head its images: each once in a stream, and where it trains, from a cache as often as its phases say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pickglass.data import Row, Table
from pickglass.detectors.compute import Progress, silent
from pickglass.detectors.loading import FeatureLoader
from pickglass.detectors.method import FitContext, Method
from pickglass.detectors.tiling import Tiles
from pickglass.errors import DataError, Failure, InputError
from pickglass.features.batch import Batch
from pickglass.features.cache import FeatureCache
from pickglass.features.research.adaptation import AdaptationSettings, Good, adapt
from pickglass.features.research.fusion import Fusion
from pickglass.nn.training.loop import train_all

__all__ = ["Watch", "adapt_backbone", "learn", "learn_fusion", "readings"]

_DESCRIBED = 16  # images that say which positions look alike


Watch = Callable[[Sequence[Row], Batch], None]


def learn(
    head: Method,
    loader: FeatureLoader,
    table: Table,
    run: FitContext,
    checkpoint: Path | None,
    fingerprint: str,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Teach a head, all positions at once or group by group.

    Args:
        head: takes in the rows of the role ``fit``, then trains its phases, then takes in those of ``validate``.
        loader: reads the rows.
        table: rows with their roles.
        run: for one position; tiles multiply it.
        checkpoint: of the training; see :meth:`pickglass.Detector.fit`.
        fingerprint: of all that the training depends on; a checkpoint of another one is refused.
        watch: is shown the rows and readings of the role ``fit`` as they pass; not where tiles are read in groups or
            share a head, for then a reading is not one of whole images.

    Returns:
        What ``finish`` returned and, under ``training``, the course of each phase; of several groups, under ``groups``
        those of each.
    """
    tiles = loader.tiles
    if tiles is None:
        return _teach(head, loader, table, run, checkpoint, fingerprint, watch)
    _check_size(head, tiles, run)
    if tiles.heads not in (1, tiles.n):
        tiles.assign(_described(loader, table), run.seed)
    run = replace(run, positions=tiles.heads, n_images=run.n_images * tiles.per_head)
    groups = _groups(head, loader, table, run)
    if len(groups) == 1:
        own_watch = watch if tiles.heads == tiles.n else None
        details = _teach(head, loader, table, run, checkpoint, fingerprint, own_watch)
    else:
        told, apart = [], []
        head.build(run.shapes, run.positions, run.seed)
        built = head.head_state()
        for group in groups:
            own = head.clone()
            part = replace(run, positions=len(group), seed=run.seed + group.start, groups=len(groups))
            told.append(_teach(own, loader.only(group), table, part, checkpoint, f"{fingerprint} {group}"))
            grown = {}
            for name, tensor in own.head_state().items():
                if name in built and built[name].shape[1:] == tensor.shape[1:]:
                    built[name][group.start : group.stop] = tensor  # in place: networks are held once
                else:
                    grown[name] = tensor
            apart.append(grown)
            if checkpoint is not None:
                checkpoint.unlink(missing_ok=True)
        head.load_head_state({name: head.stacked(name, [part[name] for part in apart]) for name in apart[0]})
        head.to(loader.engine.device)
        details = {"groups": told}
    if tiles.settings.normalise == "position":
        tiles.scale = _scales(head, loader, tiles, table)
    return details


def _check_size(head: Method, tiles: Tiles, run: FitContext) -> None:
    """Raise where the model file would be too large; the remedy is fewer heads where they take less."""
    limit = tiles.settings.max_file_mb
    backbone = {} if head.extractor is None else head.extractor.state_dict()
    fixed: float = sum(t.numel() * t.element_size() for t in backbone.values()) / 1e6

    def size(heads: int) -> float:
        shared = replace(run, positions=heads, n_images=run.n_images * math.ceil(tiles.n / heads))
        return fixed + head.predicted_mb(shared)

    if size(tiles.heads) <= limit:
        return
    low, high = 0, tiles.heads  # the largest number that fits lies from low to below high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    remedy = f"share heads among the tiles, heads={low}" if low else "let the method keep less, or lower size"
    raise InputError(
        f"{tiles.heads} heads for {tiles.n} tiles would make a model file of {size(tiles.heads):,.0f} MB, more than "
        f"max_file_mb={limit:g}: {remedy}, or raise max_file_mb"
    )


def learn_fusion(fusion: Fusion, loader: FeatureLoader, table: Table, progress: Progress) -> None:
    """Show a fusion the images of the role ``fit`` that it learns from.

    Args:
        fusion: takes in the levels of all positions alike.
        loader: reads the rows, their levels not fused.
        table: rows with their roles.
        progress: to report to.
    """
    fusion.to(loader.engine.device)
    if fusion.wants_images:
        for batch in readings(loader, table.role("fit"), progress):
            fusion.observe(batch)
    fusion.settle()


def adapt_backbone(
    settings: AdaptationSettings, loader: FeatureLoader, table: Table, seed: int, progress: Progress
) -> dict[str, Any]:
    """Fine-tune the reader's backbone in place on images of the role ``fit``, judged by those of ``validate``.

    Args:
        settings: which stages, and how long; of the images, or of their tiles, at most so many are drawn.
        loader: of the backbone.
        table: rows with their roles.
        seed: of all that is drawn.
        progress: to report to.

    Returns:
        What :func:`pickglass.features.research.adaptation.adapt` tells.
    """
    fit, held = (_as_seen(loader, table.role(role), settings.images, seed) for role in ("fit", "validate"))
    return adapt(loader.engine.extractor, settings, fit, held, seed=seed, progress=progress)


def _as_seen(loader: FeatureLoader, table: Table, most: int, seed: int) -> Good:
    """At most so many images as the network sees them, evenly spread over the rows; of tiles, drawn from all."""
    rows = Table([table[i * len(table) // most] for i in range(most)]) if len(table) > most else table
    plain = loader.plain()
    total = len(rows) * (plain.tiles.n if plain.tiles else 1)
    drawn = np.zeros(total, np.bool_)
    drawn[np.random.default_rng(seed).permutation(total)[:most]] = True
    images, keeps, begin = [], [], 0
    for batch in readings(plain, rows, silent):
        if batch.images is None:
            raise RuntimeError("a reader of images gave none")
        seen = batch.images.flatten(0, 1).cpu()  # (B T, 3, h, w)
        size = (len(seen), *seen.shape[2:])
        keep = torch.ones(size, dtype=torch.bool) if batch.keep is None else batch.keep.flatten(0, 1).cpu()
        some = torch.from_numpy(drawn[begin : begin + len(seen)]) & keep.flatten(1).any(1)
        begin += len(seen)
        images.append(seen[some])
        keeps.append(keep[some])
    if not images:
        return Good(torch.zeros(0, 3, 1, 1), None)
    kept = torch.cat(keeps)
    return Good(torch.cat(images), None if bool(kept.all()) else kept)


def _groups(head: Method, loader: FeatureLoader, table: Table, run: FitContext) -> list[range]:
    """Which positions are learned together."""
    tiles = loader.tiles
    if tiles is None or tiles.heads != tiles.n:
        return [range(run.positions)]
    at_once = tiles.settings.at_once
    if at_once is None and not head.trains:
        at_once = tiles.n
    elif at_once is None:
        cached = run.n_images * 4 * sum(math.prod(shape) for shape in run.shapes)  # bytes a position
        largest = max(cached, _training_bytes(head, loader, table, run))
        at_once = max(1, int(run.memory_gb / 2 * 1e9 // largest))
    return [range(i, min(i + at_once, tiles.n)) for i in range(0, tiles.n, at_once)]


def _training_bytes(head: Method, loader: FeatureLoader, table: Table, run: FitContext) -> int:
    """What a training step of one position holds: what two images leave for the backward pass tells it."""
    own = head.clone()
    own.build(run.shapes, 1, run.seed)
    own.to(loader.engine.device)
    own.begin_fit(replace(run, positions=1))
    batch = next(readings(loader.only(range(1)), table.role("fit")[:2], silent))
    images = len(batch.levels[0] if batch.levels else batch.images)  # type: ignore[arg-type]
    known = {t.untyped_storage().data_ptr() for t in own.state_dict().values()}
    most = 0
    for phase in own.phases():
        phase.module.train()
        left: dict[int, int] = {}  # storage -> its bytes

        def keep(tensor: Tensor, left: dict[int, int] = left) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                left[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), hooks:
            loss = phase.loss(batch)  # held until its memory is counted
        weights = sum(p.numel() * p.element_size() for p in phase.module.parameters())
        # beside the weights their gradients, two moments and the best epoch's
        most = max(most, phase.plan.batch * sum(left.values()) // images + 5 * weights)
        del loss
    return most


def _described(loader: FeatureLoader, table: Table) -> np.ndarray:
    """The mean features of each position over some training images: (T, d)."""
    tiles = loader.tiles
    if tiles is None:
        raise RuntimeError("without tiles there are no positions to describe")
    rows = table.role("fit")[:_DESCRIBED]
    means = [
        torch.cat([level.mean((0, 3, 4)) for level in batch.levels] or [batch.images.mean((0, 3, 4))], dim=1)  # type: ignore[union-attr]
        for batch in readings(loader.only(range(tiles.n)), rows, silent)
    ]
    described: np.ndarray = torch.stack(means).mean(0).cpu().numpy()
    return described


def _scales(head: Method, loader: FeatureLoader, tiles: Tiles, table: Table) -> Tensor:
    """The median score of each position on the validation images: (T,)."""
    held = table.role("validate")
    if not held:
        raise InputError("normalise='position' takes its scales from validation images: give validate, e.g. 0.1")
    head.eval()
    with torch.no_grad():
        scores = [tiles.unfold(head.score(batch)[0]) for batch in readings(loader, held, silent)]
    scales = torch.cat(scores).masked_fill(~torch.isfinite(torch.cat(scores)), torch.nan).nanmedian(0).values  # (T,)
    return scales.nan_to_num(1.0).clamp(min=torch.finfo(torch.float32).tiny)


def _teach(
    head: Method,
    loader: FeatureLoader,
    table: Table,
    run: FitContext,
    checkpoint: Path | None,
    fingerprint: str,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Teach one head its positions."""
    head.build(run.shapes, run.positions, run.seed)
    head.to(loader.engine.device)
    head.begin_fit(run)
    fit, held = table.role("fit"), table.role("validate")
    phases = head.phases()
    if not phases:
        for turn in head.quarter_turns:
            for batch in readings(loader.turned(turn), fit, run.progress, watch if turn == 0 else None):
                head.observe(batch)
        if type(head).observe_validation is not Method.observe_validation:
            for batch in readings(loader, held, silent):
                head.observe_validation(batch)
        return head.end_fit()
    many = run.n_images // len(fit)  # positions that share a head
    with ExitStack() as stack:
        taught, unseen = (
            stack.enter_context(FeatureCache(many * len(rows), run.memory_gb / 2 * len(rows) / len([*fit, *held])))
            for rows in (fit, held)
        )
        for batch in readings(loader, fit, run.progress, watch):
            head.observe(batch)
            taught.add(batch)
        for batch in readings(loader, held, silent):
            unseen.add(batch)
        device = loader.engine.device
        histories = train_all(
            phases,
            lambda indices: taught.read(indices).to(device),
            many * len(fit),
            (lambda indices: unseen.read(indices).to(device)) if held else None,
            many * len(held),
            seed=run.seed,
            device=device,
            progress=run.progress,
            checkpoint=checkpoint,
            fingerprint=fingerprint,
        )
        head.eval()
        with torch.no_grad():
            for start in range(0, many * len(held), loader.batch):
                rows = range(start, min(start + loader.batch, many * len(held)))
                head.observe_validation(unseen.read(rows).to(device)._replace(engine=loader.engine))
    return {**head.end_fit(), "training": [history.to_json() for history in histories]}


def readings(loader: FeatureLoader, table: Table, progress: Progress, watch: Watch | None = None) -> Iterator[Batch]:
    """What a head reads of these images.

    Raises:
        DataError: one of them can no longer be read.
    """
    done = 0
    for loaded in loader.batches(table):
        broken = [Failure(item.row.path, item.error) for item in loaded.items if item.error is not None]
        if broken or loaded.batch is None:
            raise DataError(f"{len(broken)} training images can no longer be read:", broken)
        done += len(loaded.items)
        progress("reading features", done, len(table))
        if watch is not None:
            watch([item.row for item in loaded.items], loaded.batch)
        yield loaded.batch
