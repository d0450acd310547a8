"""The precisions in which the engine runs a backbone on this CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pickglass.runtime.compute import EngineName

__all__ = ["engines", "in_precision"]


def engines() -> list[EngineName]:
    """The engine in float32 and, where the CPU has it, in bfloat16."""
    from pickglass.features.engine import has_bfloat16

    return ["openvino", "bfloat16"] if has_bfloat16() else ["openvino"]


def in_precision(engine: str) -> str:
    """How the row of a table ends: float32 goes without saying."""
    return ", bfloat16" if engine == "bfloat16" else ""
