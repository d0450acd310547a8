"""What a model tells of the known defects that its fit was shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pickglass.app.results import KnownDefects

__all__ = ["about_defects", "defects_told"]


def about_defects(known: Sequence[Mapping[str, Any]]) -> KnownDefects:
    """Count the known defects that a model was shown, as its provenance keeps them."""
    types = Counter(str(defect["defect"] or "without a type") for defect in known)
    return {
        "n": len(known),
        "types": dict(sorted(types.items())),
        "use": known[0]["use"],
        "names": [defect["name"] for defect in known],
    }


def defects_told(known: KnownDefects, unsure: float | None) -> str:
    """Say which bad parts a model was shown, and what for.

    Args:
        known: what :func:`about_defects` counted.
        unsure: the model's threshold of unsure; None: it has none.
    """
    types = ", ".join(f"{n} {kind}" for kind, n in known["types"].items())
    if known["use"] == "learned":
        use = "learned from"
    elif unsure is None:
        use = "none of them gains by a threshold of unsure"
    else:
        use = f"images above {unsure:.4g} are unsure"
    return f"{known['n']} shown ({types}), {use}; none set the threshold, and 'pickglass test' leaves them out"
