"""What a transformer makes of the size of its input is kept apart, so that one drawing of its graph fits all sizes.

timm computes tables of rotary positions and the masks of shifted windows inside the forward pass, from the height and
width that come: steps that torch's tracer cannot draw. Here each of them becomes a module that is left whole. They hold
nothing that was trained.

- Rotary positions: Su et al., "RoFormer" (2021), in the two directions of an image as DINOv3 (2025) uses them.
- Masks of shifted windows: Liu et al., "Swin Transformer" (ICCV 2021), section 3.2.

Letters: h x w tokens, s x t tokens a window, n windows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RotaryTable", "WindowMask", "any_size", "opened"]

_MASKED = -100.0  # added before the softmax, where tokens of one window do not lie side by side in the image

_ANY_SIZE: dict[str, dict[str, Any]] = {
    "vision_transformer": {"dynamic_img_size": True},
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
}
"""File of timm -> arguments with which its networks read images of any size."""


def any_size(architecture: str) -> dict[str, Any]:
    """Return the arguments with which timm builds a network that reads images of any size; {} where it needs none."""
    from timm.models import model_entrypoint

    return _ANY_SIZE.get(model_entrypoint(architecture).__module__.rpartition(".")[2], {})


def opened(network: nn.Module) -> nn.Module:
    """Set apart what a network of timm computes from the size of its input; others come back as they are."""
    rope = getattr(network, "rope", None)
    if isinstance(rope, nn.Module) and hasattr(rope, "get_embed") and not list(rope.parameters()):
        network.rope = RotaryTable(rope)
    for block in network.modules():
        if getattr(block, "dynamic_mask", False) and any(getattr(block, "shift_size", ())):
            mask = WindowMask(tuple(block.window_size), tuple(block.shift_size))  # type: ignore[arg-type]
            block.add_module("window_mask", mask)
            # an attribute of the block itself goes before the method of its class
            block.__dict__["get_attn_mask"] = _Reads(mask)
    return network


class RotaryTable(nn.Module):
    """The table of rotary positions of a network, (h w, 2 d), for the size at hand."""

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope

    def get_embed(self, shape: tuple[int, int]) -> Tensor:
        """Return the table for h x w tokens, as timm asks for it."""
        table: Tensor = self(*shape)
        return table

    def forward(self, height: int, width: int) -> Tensor:
        """Return the table (h w, 2 d) for h x w tokens."""
        table: Tensor = self.rope.get_embed(shape=(int(height), int(width)))  # type: ignore[operator]
        return table


class WindowMask(nn.Module):
    """The mask (n, s t, s t) says which tokens of a shifted window lie side by side in the image: 0, else -100."""

    def __init__(self, window: tuple[int, int], shift: tuple[int, int]) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # knows the device
        self.zero: Tensor

    def forward(self, height: int, width: int) -> Tensor:
        """Return the mask for h x w tokens, whole windows in both directions."""
        h, w, (s, t) = int(height), int(width), self.window
        rows, columns = (self._parts(*sides) for sides in zip((h, w), self.window, self.shift, strict=True))
        place = 3 * rows[:, None] + columns  # (h, w): which of nine parts of the image
        windows = place.view(h // s, s, w // t, t).transpose(1, 2).reshape(-1, s * t)  # (n, s t)
        apart = windows[:, None] != windows[:, :, None]
        return torch.zeros_like(apart, dtype=self.zero.dtype).masked_fill(apart, _MASKED)

    def _parts(self, side: int, window: int, shift: int) -> Tensor:
        """Divide one direction: what fills whole windows, what does not, and what came over from the other end."""
        at = torch.arange(side, device=self.zero.device)
        inner = (at >= side - window).long() + (at >= side - shift).long()  # (side,) of 0, 1, 2
        return inner if shift else torch.zeros_like(at)


class _Reads:
    """A block of timm asks for its mask with the features that the mask is for, (B, h, w, C)."""

    def __init__(self, mask: WindowMask) -> None:
        self.mask = mask

    def __call__(self, x: Tensor | None = None, **_: Any) -> Tensor | None:
        return None if x is None else self.mask(x.shape[1], x.shape[2])
