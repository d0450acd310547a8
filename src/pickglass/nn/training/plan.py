"""The training loop is given phases with plans, and returns a history of each.

Letters: P positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from pickglass.errors import InputError

__all__ = ["Draws", "EpochRecord", "History", "Phase", "Plan"]

T = TypeVar("T")  # a batch as the loss reads it


@dataclass(frozen=True)
class Plan:
    """A plan says for how long and with which steps a phase trains.

    Args:
        epochs, steps: exactly one of them; steps go on over as many epochs as they take.
        batch: number of images of a step; never more than there are.
        optimiser: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        lr: learning rate.
        lr_factors: start of a parameter's name, up to a dot -> what its learning rate is multiplied by, e.g.
            ``{"adaptor": 0.5}``; 1 for all others.
        betas, eps: parameters of Adam.
        momentum: parameter of SGD.
        weight_decay: L2 penalty, added to the gradient; AdamW takes it off the weights instead.
        milestone: share of all steps, 0..1, from which on the learning rate is ``lr * gamma``, or several of them, at
            each of which it is multiplied by ``gamma``; None: never.
        gamma: see ``milestone``.
        cosine: the learning rate rises over the first 2 % of the steps and falls to 0 along half a cosine.
        drop_last: leave out the incomplete batch at an epoch's end.
        pick: ``"last"`` keeps the last weights, ``"best"`` those of the epoch with the lowest validation loss (of
            equals the earlier), each position its own.
        start: with ``pick="best"`` the weights before the first step compete too, as epoch 0.

    Raises:
        InputError: a value that no training can have.
    """

    epochs: int | None = None
    steps: int | None = None
    batch: int = 8
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    milestone: float | tuple[float, ...] | None = None
    gamma: float = 0.1
    cosine: bool = False
    drop_last: bool = False
    pick: Literal["last", "best"] = "last"
    start: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise InputError(f"epochs={self.epochs!r}, steps={self.steps!r}: give exactly one of the two")
        for name in ("epochs", "steps", "batch"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{name}={value!r}: expected a whole number from 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr={self.lr!r}: expected a learning rate above 0, e.g. 0.001")
        if not all(math.isfinite(factor) and factor > 0 for factor in self.lr_factors.values()):
            raise InputError(f"lr_factors={self.lr_factors!r}: expected factors above 0, e.g. 0.5")
        if self.optimiser not in ("adam", "adamw", "sgd"):
            raise InputError(f"optimiser={self.optimiser!r}: expected 'adam', 'adamw' or 'sgd'")
        if self.pick not in ("last", "best"):
            raise InputError(f"pick={self.pick!r}: expected 'last' or 'best'")
        if self.start and self.pick != "best":
            raise InputError(f"start=True lets the first weights compete, but pick={self.pick!r}: use 'best'")
        if self.cosine and self.milestone is not None:
            raise InputError(f"cosine=True, milestone={self.milestone!r}: give one of the two")
        if not all(0 <= share <= 1 for share in self._milestones):
            raise InputError(f"milestone={self.milestone!r}: expected a share of the steps, 0 to 1")

    def further(self) -> Plan:
        """Return the plan for going on with new images: a quarter of the time, at a tenth of the learning rate.

        The weights before the first step compete where the best ones are kept: then the validation images get no worse.
        """
        epochs, steps = (None if n is None else math.ceil(n / 4) for n in (self.epochs, self.steps))
        return replace(self, epochs=epochs, steps=steps, lr=self.lr / 10, start=self.pick == "best")

    def rate(self, step: int, total: int) -> float:
        """Compute the learning rate of a step, counted from 0, of ``total``."""
        if self.cosine:
            rise = min(1.0, (step + 1) / max(1.0, 0.02 * total))
            return self.lr * rise * (1 + math.cos(math.pi * step / total)) / 2
        passed = sum(step >= int(share * total) for share in self._milestones)
        return self.lr * self.gamma**passed

    @property
    def _milestones(self) -> tuple[float, ...]:
        if self.milestone is None:
            return ()
        return self.milestone if isinstance(self.milestone, tuple) else (self.milestone,)


class Draws:
    """The random numbers of a training come from generators of its own, one for each device.

    Torch's default generators are shared by all threads: whoever draws from one moves the numbers of all others.

    Args:
        seed: decides the numbers; on the CPU they are those of torch's default generator with the same seed.

    Example:
        >>> draws = Draws(3)
        >>> one = torch.rand(2, generator=draws.on("cpu"))
        >>> with draws.aside(3):
        ...     bool((torch.rand(2, generator=draws.on("cpu")) == one).all())
        True
    """

    def __init__(self, seed: int = 0) -> None:
        self.start(seed)

    def start(self, seed: int) -> None:
        """Begin anew with a seed."""
        self._seed = seed
        self._generators: dict[str, torch.Generator] = {}  # kind of device -> its generator
        self._states: Mapping[str, Tensor] = {}  # of generators that are not made yet

    def on(self, device: torch.device | str) -> torch.Generator:
        """Return the generator of a device."""
        device = torch.device(device)
        generator = self._generators.get(device.type)
        if generator is None:
            generator = torch.Generator(device).manual_seed(self._seed)
            if device.type in self._states:
                generator.set_state(self._states[device.type])
            self._generators[device.type] = generator
        return generator

    def dropout(self, x: Tensor, share: float) -> Tensor:
        """Put 0 in place of a share of the elements, below 1, and scale the others up, as in training."""
        kept = torch.empty_like(x).bernoulli_(1 - share, generator=self.on(x.device))
        return x * kept.div_(1 - share)

    def state(self) -> dict[str, Tensor]:
        """Return the states of the generators, by kind of device."""
        return {**self._states, **{kind: generator.get_state() for kind, generator in self._generators.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from states that :meth:`state` returned, after a start with the same seed."""
        self._generators, self._states = {}, state

    def __getstate__(self) -> dict[str, Any]:
        return {"_seed": self._seed, "_generators": {}, "_states": self.state()}

    @contextmanager
    def aside(self, seed: int | None = None) -> Iterator[None]:
        """Numbers drawn inside, from a seed or from here on, leave those after it as they were."""
        before, state = self._seed, self.state()
        if seed is not None:
            self.start(seed)
        try:
            yield
        finally:
            self.start(before)
            self.restore(state)


@dataclass(frozen=True)
class Phase(Generic[T]):
    """A phase is one training: a module, its loss and its plan.

    Args:
        name: the phase's name in messages, e.g. ``"student"``; also seeds its random numbers.
        module: its parameters that require gradients are trained; they and all its buffers lead with P. Nothing else
            may change during the training.
        loss: a batch -> (P,), the mean loss of the batch per position; it draws random numbers from ``draws`` alone.
        plan: see :class:`Plan`.
        measure: what validation computes in place of the loss, (P,), the lower the better, always in float32; None:
            the loss.
        draws: where loss, and reading of batches, get random numbers from; the loop seeds it.
    """

    name: str
    module: nn.Module
    loss: Callable[[T], Tensor]
    plan: Plan
    measure: Callable[[T], Tensor] | None = None
    draws: Draws = field(default_factory=Draws)


@dataclass
class History:
    """The history of a phase says how its training went.

    Attributes:
        phase: name of the phase.
        train: per epoch the mean training loss (P,).
        validation: per epoch the mean validation loss (P,), with ``start`` from epoch 0 on; empty without validation
            images.
        picked: per position the epoch, counted from 1, whose weights were kept; 0: those of the start.
        autocast: True if it trained in bfloat16.
        seconds: duration, killed runs included up to their last checkpoint.
    """

    phase: str
    train: list[list[float]] = field(default_factory=list)
    validation: list[list[float]] = field(default_factory=list)
    picked: list[int] = field(default_factory=list)
    autocast: bool = False
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the history as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class EpochRecord:
    """A callback receives this after an epoch; epochs and steps are counted from 1, losses are per position."""

    phase: str
    epoch: int
    step: int
    steps: int
    lr: float
    train: tuple[float, ...]
    validation: tuple[float, ...] | None
    seconds: float
