"""Use case: a backbone is distilled into a patch description network, the teacher of EfficientAD, on any photographs.

How it learns is in :mod:`pickglass.features.distillation`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pickglass.app.results import DistillResult
from pickglass.data import as_table, fingerprint
from pickglass.data.files import alone, output_path
from pickglass.features.distillation import (
    BackboneTeacher,
    DistillSettings,
    explained_variance,
    hold_out,
    new_pdn,
    read_photographs,
    train_pdn,
)
from pickglass.features.engine import device_name
from pickglass.features.extractor import FeatureExtractor
from pickglass.features.teacher_file import write_teacher
from pickglass.nn.training.plan import EpochRecord
from pickglass.runtime.compute import ComputeOptions, Progress

__all__ = ["distill"]

_STATE = ".training.safetensors"  # in place of the teacher's suffix
_NO_OPTIONS = ComputeOptions()


def distill(
    photos: Path,
    out: Path,
    settings: DistillSettings,
    *,
    limit: int | None = None,
    licences: tuple[str, str] = ("", ""),
    compute: ComputeOptions = _NO_OPTIONS,
    progress: Progress | None = None,
    callback: Callable[[EpochRecord, DistillResult], object] | None = None,
) -> DistillResult:
    """Train a teacher, and write it when it has made all its steps.

    A killed run goes on where it was when it is started again: its state is in ``NAME.training.safetensors`` beside
    the teacher, every two minutes, and is deleted at the end.

    Args:
        photos: folder of photographs of anything; one in twenty is held out.
        out: file to write, .safetensors: half precision, with a card in its header.
        settings: the backbone, the size of the teacher, and the training.
        limit: how many of the photographs to use; None: all.
        licences: what the card says of the backbone and of the photographs.
        compute: device, engine, decoding threads and the largest photograph.
        progress: called with (stage, done, total).
        callback: called after each pass with the training's record and the result so far.

    Raises:
        DataError: fewer than two photographs, or broken ones.
        InputError: a setting out of its range, or layers whose stride does not fit.
    """
    target = output_path(out, ".safetensors")
    with alone(target):
        table = as_table(photos, role="train")[:limit]
        held_out, learned_from = hold_out(
            read_photographs(table, compute.workers, compute.max_pixels, progress), settings.seed
        )
        extractor = FeatureExtractor(settings.backbone, settings.layers, settings.weights, settings.seed)
        teacher = BackboneTeacher(extractor, device_name(compute.device), compute.engine, settings.crop)
        teacher.learn_statistics(learned_from, settings.seed, progress)
        pdn = new_pdn(settings.model, settings.seed, settings.start)
        pdn = pdn.to(teacher.device).to(memory_format=torch.channels_last)

        result: DistillResult = {
            "teacher": str(target),
            "model": settings.model,
            "backbone": settings.backbone,
            "layers": list(extractor.layers),
            "photos": len(table),
            "held_out": len(held_out),
            "step": 0,
            "steps": settings.steps,
            "seconds": 0.0,
            "explained_variance": {},
        }
        card = {
            **{k: result[k] for k in ("model", "backbone", "layers", "photos", "held_out", "steps")},
            **{k: getattr(settings, k) for k in ("batch", "crop", "lr", "seed")},
            **{"photos_sha256": fingerprint(table), "backbone_licence": licences[0], "photos_licence": licences[1]},
            **_origin(extractor, settings.start),
        }

        def explain(step: int, seconds: float) -> None:
            # nothing is drawn here, so the training goes on bit-equal
            result["explained_variance"] = explained_variance(pdn, teacher, held_out)
            result["step"], result["seconds"] = step, seconds

        def after_pass(record: EpochRecord) -> None:
            explain(record.step, record.seconds)
            if callback is not None:
                callback(record, result)

        state = target.with_suffix(_STATE)
        seconds = train_pdn(
            pdn,
            teacher,
            learned_from,
            settings,
            checkpoint=state,
            fingerprint=json.dumps(card),
            progress=progress,
            callback=after_pass,
        )
        if result["step"] < settings.steps:  # it was killed after the last step
            explain(settings.steps, seconds)
        # not earlier: an unfinished teacher would pass for a finished one
        write_teacher(target, pdn, {**card, **{k: result[k] for k in ("step", "seconds", "explained_variance")}})
        state.unlink(missing_ok=True)
        return result


def _origin(extractor: FeatureExtractor, start: Path | None) -> dict[str, Any]:
    return {
        "backbone_weights": extractor.weights.to_json() if extractor.weights else None,
        "start_sha256": None if start is None else hashlib.sha256(start.read_bytes()).hexdigest(),
        "versions": {"pickglass": version("pickglass"), "torch": torch.__version__},
    }
