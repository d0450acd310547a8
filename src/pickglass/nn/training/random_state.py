"""The random numbers of a training: seeded by name, and saved so that a killed training goes on with the same ones.

Only torch's default generators are used, and the caller finds them as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["epoch_order", "forked", "load_random_state", "random_state", "seed_generators"]


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """Random numbers drawn inside leave the default generators as they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device.index or 0] if on_gpu else [], device_type="cuda"):
        yield


def seed_generators(device: torch.device, seed: int, name: str) -> None:
    """The default generators of the CPU and of the device start anew, for this seed and this name."""
    torch.default_generator.manual_seed(_number(seed, name))  # torch.manual_seed would reach every GPU
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(_number(seed, name))


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The n images of an epoch come in this order; seed and epoch alone decide."""
    order: list[int] = torch.randperm(n, generator=torch.Generator().manual_seed(_number(seed, epoch))).tolist()
    return order


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the default generators, for :func:`load_random_state`."""
    state = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["random.cuda"] = torch.cuda.get_rng_state(device)
    return state


def load_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    """The default generators go on from a state that :func:`random_state` returned."""
    torch.set_rng_state(state["random.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["random.cuda"], device)


def _number(*parts: object) -> int:
    """A seed of 56 bits that depends on all parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")
