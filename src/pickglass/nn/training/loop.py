"""Every learned method trains through this one loop.

A method says what is trained, by which loss and how long (:class:`Phase`, :class:`Plan`); the loop orders the images,
steps, validates, keeps the best weights, and leaves checkpoints from which a killed training goes on bit-equal. The
losses of the positions are added up: they share no parameter, and optimisers work element by element, so this is
training them apart.

Letters: P positions, B images of a batch.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from pickglass.errors import InputError, TrainingError
from pickglass.nn.maps import LightMode, has_fast_bfloat16
from pickglass.nn.networks.stacked import copy_into, named_tensors
from pickglass.nn.training.checkpoint import Checkpoint, training_fingerprint, under_prefix
from pickglass.nn.training.plan import Draws, EpochRecord, History, Phase, Plan

__all__ = ["Draws", "EpochRecord", "History", "Phase", "Plan", "train_all"]

T = TypeVar("T")  # a batch as the loss reads it

_PARITY = 0.01  # of the first batch's loss: by so much it may differ under bfloat16


@dataclass(frozen=True)
class _Setting(Generic[T]):
    """All phases of a training share this."""

    read: Callable[[Sequence[int]], T]
    n_fit: int
    read_validate: Callable[[Sequence[int]], T] | None
    n_validate: int
    seed: int
    device: torch.device
    autocast: bool
    progress: Callable[[str, int, int], None] | None
    callback: Callable[[EpochRecord], object] | None


def train_all(
    phases: Sequence[Phase[T]],
    read: Callable[[Sequence[int]], T],
    n_fit: int,
    read_validate: Callable[[Sequence[int]], T] | None = None,
    n_validate: int = 0,
    *,
    seed: int,
    device: str = "cpu",
    autocast: Literal["auto", "off"] = "auto",
    progress: Callable[[str, int, int], None] | None = None,
    callback: Callable[[EpochRecord], object] | None = None,
    checkpoint: str | Path | None = None,
    fingerprint: str = "",
    checkpoint_s: float = 120.0,
) -> list[History]:
    """Train the phases one after the other; their modules are changed in place and left in eval mode.

    Args:
        phases: what to train; no two have the same name.
        read: indices of training images, 0 to n_fit - 1 -> their batch, on the device.
        n_fit: number of training images.
        read_validate, n_validate: the same for the validation images. They change nothing but ``pick="best"``.
        seed: decides the order of the images and the numbers of each phase's ``draws``; generators of others are left
            alone.
        device: where modules and batches are.
        autocast: ``"auto"`` computes the losses in bfloat16 where the device is fast at it and the first batch's loss
            stays within 1 % of float32; ``"off"`` never does.
        progress: called with (stage, steps done, steps in all).
        callback: called after each epoch; what it returns is ignored.
        checkpoint: .safetensors file to leave the state in. If it exists, the training goes on from there and ends
            with the same bits as if it had never been killed. The caller deletes it once what was trained is safe.
        fingerprint: hash of what the training depends on and the loop cannot see (images, settings): a checkpoint
            with another one is refused.
        checkpoint_s: seconds between two writings; 0 writes after every step.

    Returns:
        One history per phase.

    Raises:
        InputError: no training image, ``pick="best"`` without validation images, or a checkpoint of another fit.
        TrainingError: a loss or a weight is not finite.
    """
    if autocast not in ("auto", "off"):
        raise InputError(f"autocast={autocast!r}: expected 'auto' or 'off'")
    if n_fit < 1:
        raise InputError("there is no image to train on: lower validate and calibrate, or add good images")
    for phase in phases:
        if phase.plan.pick == "best" and n_validate < 1:
            raise InputError(
                f"phase {phase.name!r} keeps the epoch with the lowest validation loss, but no image is held back for "
                "validation: give validate, e.g. 0.1, or let it keep the last epoch"
            )

    where = torch.device(device)
    wanted = autocast == "auto" and _fast_bfloat16(where)
    setting = _Setting(read, n_fit, read_validate, n_validate, seed, where, wanted, progress, callback)
    with torch.enable_grad():
        if checkpoint is None:
            return _train_all(phases, setting, None)
        hashed = training_fingerprint(phases, fingerprint, seed, n_fit, n_validate, wanted)
        return _train_all(phases, setting, Checkpoint(checkpoint, hashed, checkpoint_s))


def _train_all(phases: Sequence[Phase[T]], setting: _Setting[T], checkpoint: Checkpoint | None) -> list[History]:
    histories: list[History] = []
    saved = checkpoint.load() if checkpoint else None
    header, tensors = saved or ({"histories": [], "training": None}, {})
    finished = len(header["histories"])
    for i, phase in enumerate(phases):
        if i < finished:
            copy_into(phase.module, under_prefix(tensors, f"module.{i}."))
            phase.module.eval()
            histories.append(History(**header["histories"][i]))
            continue

        training = _Training(phase, setting)
        if i == finished and header["training"] is not None:
            copy_into(phase.module, under_prefix(tensors, f"module.{i}."))
            training.restore(header["training"], under_prefix(tensors, "training."))

        written = time.monotonic()
        for _ in training.steps():
            if checkpoint and time.monotonic() - written >= checkpoint.every_s:
                _save(checkpoint, phases, histories, training)
                written = time.monotonic()
        histories.append(training.finish())
        if checkpoint:
            _save(checkpoint, phases, histories, None)
    return histories


def _save(
    checkpoint: Checkpoint,
    phases: Sequence[Phase[T]],
    histories: Sequence[History],
    training: _Training[T] | None,
) -> None:
    """Write the modules of all phases begun so far, and the whole state of the one on its way."""
    state, tensors = training.state() if training else (None, {})
    tensors = {f"training.{name}": tensor for name, tensor in tensors.items()}
    for i, phase in enumerate(phases[: len(histories) + (training is not None)]):
        tensors |= {f"module.{i}.{name}": tensor for name, tensor in named_tensors(phase.module).items()}
    checkpoint.save({"histories": [h.to_json() for h in histories], "training": state}, tensors)


class _Training(Generic[T]):
    """A phase on its way takes steps, validates, and has a state from which it goes on after a kill."""

    def __init__(self, phase: Phase[T], setting: _Setting[T]) -> None:
        plan = phase.plan
        self.phase = phase
        self.setting = setting
        self.history = History(phase.name)
        self.batch = min(plan.batch, setting.n_fit)
        self.per_epoch = setting.n_fit // self.batch if plan.drop_last else -(-setting.n_fit // self.batch)
        self.total = plan.steps if plan.steps is not None else (plan.epochs or 0) * self.per_epoch
        self.optimiser = _optimiser(phase)

        self.step = 0  # steps done
        self.sums: list[float] = []  # (P,) of this epoch's losses, each weighted by its images ...
        self.seen = 0  # ... of which there were so many
        self.best: dict[str, Tensor] = {}  # the module's tensors, each position's of its best epoch
        self.began = time.monotonic()
        phase.draws.start(_number(setting.seed, phase.name))

    def steps(self) -> Iterator[int]:
        """Train to the end; each step yields its number, and a state from which to go on."""
        if self.step == 0 and self.phase.plan.start:
            self._compete()

        self.phase.module.train()
        order: list[int] = []
        while self.step < self.total:
            epoch, at = divmod(self.step, self.per_epoch)
            if at == 0 or not order:
                order = _epoch_order(self.setting.n_fit, self.setting.seed, epoch)
            self._take(order[at * self.batch : (at + 1) * self.batch])
            self.step += 1
            if self.step % self.per_epoch == 0 or self.step == self.total:
                self._end_epoch()
            if self.setting.progress is not None:
                self.setting.progress(f"training {self.phase.name}", self.step, self.total)
            yield self.step

    def _take(self, indices: list[int]) -> None:
        batch = self.setting.read(indices)
        if self.step == 0 and self.setting.autocast:
            self.history.autocast = self._holds_in_bfloat16(batch)
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * self.phase.plan.rate(self.step, self.total)
        self.optimiser.zero_grad()
        with _OwnDraws(self.phase.name) if self.step == 0 else nullcontext():
            losses = self._losses(batch, self.history.autocast)
        values = self._finite(losses, "loss", self.step)
        losses.sum().backward()
        self.optimiser.step()

        sums = self.sums or [0.0] * len(values)
        self.sums = [s + len(indices) * v for s, v in zip(sums, values, strict=True)]
        self.seen += len(indices)

    def _losses(self, batch: T, autocast: bool) -> Tensor:
        with torch.autocast(self.setting.device.type, torch.bfloat16, enabled=autocast):
            losses = self.phase.loss(batch)
        if losses.ndim != 1:
            raise RuntimeError(f"the loss of phase {self.phase.name!r} has shape {tuple(losses.shape)}, expected (P,)")
        return losses.float()

    def _finite(self, losses: Tensor, what: str, step: int) -> list[float]:
        values: list[float] = losses.detach().tolist()
        if not all(map(math.isfinite, values)):
            shown = f"{what} is {', '.join(f'{v:.4g}' for v in values)}"
            if self.step == 0:  # before the first step no learning rate can have done it
                raise TrainingError(
                    f"training {self.phase.name}: {shown} before the first step, so the learning rate is not the "
                    "cause: look for features or settings that are no finite numbers"
                )
            raise self._astray(shown, step)
        return values

    def _astray(self, what: str, step: int) -> TrainingError:
        epoch, at = divmod(step, self.per_epoch)
        place = f"epoch {epoch + 1}, step {at + 1} of {self.per_epoch}"
        lr = self.phase.plan.lr
        return TrainingError(
            f"training {self.phase.name}: {what} in {place}: lower lr, now {lr:g}, e.g. to {lr / 10:g}"
        )

    @torch.no_grad()
    def _holds_in_bfloat16(self, batch: T) -> bool:
        """Compare the loss of this batch with the one in bfloat16; leaves no trace."""
        before = {name: buffer.clone() for name, buffer in self.phase.module.named_buffers()}
        losses = []
        for autocast in (False, True):
            with self.phase.draws.aside():
                losses.append(self._losses(batch, autocast))
            copy_into(self.phase.module, before)
        exact, rounded = losses
        return bool(((rounded - exact).abs() <= _PARITY * exact.abs()).all())

    def _end_epoch(self) -> None:
        history, validation = self.history, None
        train = [s / self.seen for s in self.sums]
        self.sums, self.seen = [], 0
        history.train.append(train)
        history.picked = [len(history.train)] * len(train)
        if self.setting.read_validate is not None and self.setting.n_validate:
            validation = self._compete()
        if self.setting.callback is not None:
            lr = self.phase.plan.rate(self.step - 1, self.total)
            record = EpochRecord(
                history.phase,
                len(history.train),
                self.step,
                self.total,
                lr,
                tuple(train),
                None if validation is None else tuple(validation),
                self.seconds(),
            )
            self.setting.callback(record)

    def _compete(self) -> list[float]:
        """Validate the weights as they are, and keep them where none before were better."""
        history, plan = self.history, self.phase.plan
        if self.setting.read_validate is None:
            raise RuntimeError("nothing to validate on")
        history.validation.append(self._validate(self.setting.read_validate))
        if plan.pick == "best":
            first = 0 if plan.start else 1
            history.picked = [of.index(min(of)) + first for of in zip(*history.validation, strict=True)]
            self._keep_best(len(history.validation) - 1 + first)
        return history.validation[-1]

    @torch.no_grad()
    def _validate(self, read: Callable[[Sequence[int]], T]) -> list[float]:
        """Compute the mean loss (P,) of the validation images, with the same random numbers after each epoch."""
        module, setting = self.phase.module, self.setting
        module.eval()
        sums = torch.zeros((), dtype=torch.float64)
        with self.phase.draws.aside(_number(setting.seed, f"{self.phase.name}, validation")):
            for lo in range(0, setting.n_validate, self.batch):
                indices = range(lo, min(lo + self.batch, setting.n_validate))
                measure, batch = self.phase.measure, read(indices)
                losses = self._losses(batch, self.history.autocast) if measure is None else measure(batch)
                sums = sums + len(indices) * losses.cpu().double()  # (P,)
        module.train()
        return self._finite(sums / setting.n_validate, "validation loss", self.step - 1)

    def _keep_best(self, epoch: int) -> None:
        """Copy the tensors of the positions whose best epoch this is."""
        tensors = named_tensors(self.phase.module)
        if not self.best:
            self.best = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        for p in (p for p, picked in enumerate(self.history.picked) if picked == epoch):
            for name, tensor in tensors.items():
                self.best[name][p] = tensor[p]

    def finish(self) -> History:
        """End the phase after its last step: bring the best weights back, and check that all are finite."""
        if self.best:
            copy_into(self.phase.module, self.best)
        self.phase.module.eval()
        for name, tensor in self.phase.module.named_parameters():
            if not bool(torch.isfinite(tensor).all()):
                raise self._astray(f"{name} is not finite", self.step - 1)
        self.history.seconds = self.seconds()
        return self.history

    def seconds(self) -> float:
        """Count the seconds since the phase began, earlier runs included."""
        return self.history.seconds + time.monotonic() - self.began

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the header and tensors that :meth:`restore` needs beside the module."""
        tensors = {f"best.{name}": tensor for name, tensor in self.best.items()}
        for i, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
        tensors |= {f"random.{kind}": state for kind, state in self.phase.draws.state().items()}
        history = {**self.history.to_json(), "seconds": self.seconds()}
        return {"step": self.step, "sums": self.sums, "seen": self.seen, "history": history}, tensors

    def restore(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go back to a saved state; the module is the caller's business."""
        self.step, self.sums, self.seen = header["step"], header["sums"], header["seen"]
        self.history = History(**header["history"])
        self.best = {name: tensor.to(self.setting.device) for name, tensor in under_prefix(tensors, "best.").items()}
        moments: dict[int, dict[str, Tensor]] = {}  # of each parameter
        for name, tensor in under_prefix(tensors, "optimiser.").items():
            i, _, key = name.partition(".")
            moments.setdefault(int(i), {})[key] = tensor
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
        self.phase.draws.restore(under_prefix(tensors, "random."))


def _optimiser(phase: Phase[T]) -> torch.optim.Optimizer:
    """Make the optimiser of a phase; parameters with a learning rate of their own are groups of their own."""
    plan = phase.plan
    names = [name for name, _ in phase.module.named_parameters()]
    for start in plan.lr_factors:
        if not any(name.startswith(f"{start}.") for name in names):
            raise InputError(f"lr_factors: no parameter of phase {phase.name!r} lies under {start!r}: {names}")
    groups: dict[float, list[Tensor]] = {}
    for name, parameter in phase.module.named_parameters():
        if parameter.requires_grad:
            factor = next((f for start, f in plan.lr_factors.items() if name.startswith(f"{start}.")), 1.0)
            groups.setdefault(factor, []).append(parameter)
    given = [{"params": parameters, "factor": factor} for factor, parameters in groups.items()]
    if plan.optimiser == "adam":
        return torch.optim.Adam(given, plan.lr, plan.betas, plan.eps, weight_decay=plan.weight_decay)
    if plan.optimiser == "adamw":
        return torch.optim.AdamW(given, plan.lr, plan.betas, plan.eps, weight_decay=plan.weight_decay)
    return torch.optim.SGD(given, plan.lr, plan.momentum, weight_decay=plan.weight_decay)


def _fast_bfloat16(device: torch.device) -> bool:
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu" and has_fast_bfloat16()


# -- random numbers ---------------------------------------------------------------------------------------------------


class _OwnDraws(LightMode):
    """A loss that draws from torch's default generators is refused: other threads would move its numbers."""

    def __init__(self, phase: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = phase

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch, unless it draws without a generator."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | (kwargs or {})
            draws_nothing = given.get("dropout_p", given.get("p")) == 0
            if given.get("generator") is None and not draws_nothing:
                raise RuntimeError(
                    f"the loss of phase {self.phase!r} draws by {func.name()} from torch's default generator, which "
                    "all threads share: give Phase(draws=draws), and draw by draws.on(device) or draws.dropout"
                )
        return func(*args, **(kwargs or {}))


def _epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """Order the n images of an epoch; seed and epoch alone decide."""
    order: list[int] = torch.randperm(n, generator=torch.Generator().manual_seed(_number(seed, epoch))).tolist()
    return order


def _number(*parts: object) -> int:
    """Make a seed of 56 bits that depends on all parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
