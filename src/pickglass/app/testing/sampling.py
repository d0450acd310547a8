"""Choose the images of a data set that people are shown."""

from __future__ import annotations

from pickglass.data import Table

__all__ = ["choose_images"]


def choose_images(table: Table, n: int) -> list[int]:
    """Choose the images to look at: the types of defects in turn, and every fifth one a good image.

    Args:
        table: the images; rows without a label count as a type of their own.
        n: how many to choose at most.

    Returns:
        Places in the table, always the same ones for the same table.
    """
    kinds: dict[tuple[int | None, str | None], list[int]] = {}
    for i, row in enumerate(table):
        kinds.setdefault((row.label, row.defect), []).append(i)
    good = kinds.pop((0, None), [])
    rounds = [[places[round(k * (len(places) - 1) / max(1, n))] for places in kinds.values()] for k in range(n)]
    spread = dict.fromkeys(i for each in rounds for i in each)
    rest = dict.fromkeys(i for places in kinds.values() for i in places)
    defective = [*spread, *(i for i in rest if i not in spread)]
    n_good = min(len(good), max(n // 5, n - len(defective)))
    step = max(1, len(good) // max(1, n_good))
    return [*defective[: n - n_good], *good[::step][:n_good]]
