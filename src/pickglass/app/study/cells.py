"""A study is a list of cells, one fit and one test each; cells of one group share a backbone pass."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from pickglass.app.methods import method_name
from pickglass.data import DataSource
from pickglass.data.stored import from_stored
from pickglass.errors import InputError, UnknownName, WeightsMissing
from pickglass.features.backbones.checkpoints import RECIPES
from pickglass.features.backbones.registry import find_backbone
from pickglass.features.backbones.weights import find_weights
from pickglass.features.extractor import FeatureExtractor
from pickglass.methods import find_method

__all__ = ["EACH", "Cell", "Grid", "Plan", "command_of", "make_plan", "weights_name"]

EACH = "each"
"""The value of ``layers`` that stands for every named layer of the backbone on its own."""


@dataclass(frozen=True)
class Cell:
    """One fit and one test; two cells with the same fields are the same work.

    Attributes:
        root: folder or table that was named, absolute.
        dataset: name of the data set in it.
        method, backbone, layers, weights, size, seed: of the detector.
        settings: further settings of the method, as JSON with sorted keys.
        layout, group_by: how the folder is read; see :func:`pickglass.load_dataset`.
    """

    root: str
    dataset: str
    method: str
    backbone: str
    layers: tuple[str, ...]
    weights: str
    size: int | str
    seed: int
    settings: str = "{}"
    layout: str | None = None
    group_by: str | None = None

    @property
    def key(self) -> str:
        """The name of the cell: the start of the SHA-256 of its fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def group(self) -> str:
        """The name of the group; its cells read the same backbone pass. Random weights are drawn anew for each seed."""
        seed = self.seed if self.weights == "random" else None
        parts = (self.root, self.dataset, self.layout, self.group_by, self.backbone, self.weights, self.size, seed)
        return json.dumps(parts)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Cell:
        """Make a cell of the dict that :meth:`to_json` returned."""
        return from_stored(cls, stored)

    def command(self, file: str | Path) -> str:
        """Write the command line that does this cell, and the smaller seeds."""
        return command_of([self], file)


@dataclass(frozen=True)
class Grid:
    """All combinations of some lists; ``layers`` holds :data:`EACH`, or the layers of one detector joined by ``+``."""

    methods: Sequence[str]
    backbones: Sequence[str]
    layers: Sequence[str] = (EACH,)
    weights: Sequence[str] = ("default",)
    sizes: Sequence[int | str] = (256,)


@dataclass(frozen=True)
class Plan:
    """The cells of a study, group by group.

    Attributes:
        cells: in the order in which they are done.
        missing: key of a cell -> why its weights are missing and how to get them.
        left_out: combinations that nobody published weights for, one line each.
        images: (root, data set) -> number of images for training and for the test.
    """

    cells: tuple[Cell, ...]
    missing: Mapping[str, str]
    left_out: tuple[str, ...]
    images: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


def make_plan(
    data: Sequence[DataSource | str | Path],
    grids: Sequence[Grid],
    *,
    seeds: int = 1,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """List the cells of several grids over several data sets; what occurs twice is done once.

    Args:
        data: folders or tables, or how to read them; a root with several categories stands for all of them.
        grids: what to combine.
        seeds: 0 to ``seeds - 1``.
        settings: method -> settings of its constructor.

    Raises:
        UnknownName: a method, backbone, layer or setting that does not exist.
        InputError: nothing to do.
        DataError: a folder is no data set.
    """
    if seeds < 1:
        raise InputError(f"seeds={seeds!r}: expected how many, at least 1")
    settings_by_method = {method_name(method): dict(values) for method, values in (settings or {}).items()}
    methods = list(dict.fromkeys(method_name(method) for grid in grids for method in grid.methods))
    for method in methods:
        find_method(method).configured(settings_by_method.get(method, {}))
    for method in settings_by_method:
        if method not in methods:
            raise UnknownName("method of a setting", method, methods)
    sources = [DataSource.of(root) for root in data]
    sets = {
        (replace(source, path=str(Path(source.path).resolve())), name): (len(dataset.train), len(dataset.test))
        for source in sources
        for name, dataset in source.load_all().items()
    }
    cells: dict[Cell, None] = {}
    absent: dict[tuple[str, str], str] = {}
    left_out: dict[str, None] = {}
    for grid in grids:
        for backbone, weights in _usable(grid, absent, left_out):
            layer_sets = _layers(backbone, grid.layers)
            for (source, name), size, seed, method in product(sets, grid.sizes, range(seeds), grid.methods):
                for layers in layer_sets:
                    cell = Cell(
                        root=str(source.path),
                        dataset=name,
                        method=method_name(method),
                        backbone=backbone,
                        layers=layers,
                        weights=weights,
                        size=size,
                        seed=seed,
                        settings=json.dumps(settings_by_method.get(method_name(method), {}), sort_keys=True),
                        layout=source.layout,
                        group_by=source.group_by,
                    )
                    cells[cell] = None
    if not cells:
        raise InputError("a study without cells: " + ("; ".join(left_out) or "name methods, backbones and sizes"))
    grouped = _by_group(cells)
    missing = {c.key: absent[c.backbone, c.weights] for c in grouped if (c.backbone, c.weights) in absent}
    return Plan(grouped, missing, tuple(left_out), {(str(source.path), name): n for (source, name), n in sets.items()})


def command_of(cells: Sequence[Cell], file: str | Path) -> str:
    """Write the command line that does cells of one layout; it does all combinations of what they name."""

    def listed(values: Iterable[object]) -> str:
        return ",".join(dict.fromkeys(map(str, values)))

    first = cells[0]
    words = ["pickglass", "study", *dict.fromkeys(cell.root for cell in cells), "-o", str(file)]
    words += ["--methods", listed(cell.method for cell in cells)]
    words += ["--backbones", listed(cell.backbone for cell in cells)]
    words += ["--layers", listed("+".join(cell.layers) for cell in cells)]
    words += ["--sizes", listed(cell.size for cell in cells), "--weights", listed(cell.weights for cell in cells)]
    words += ["--seeds", str(max(cell.seed for cell in cells) + 1)]
    for option, value in (("--layout", first.layout), ("--group-by", first.group_by)):
        words += [] if value is None else [option, value]
    for method, settings in dict.fromkeys((cell.method, cell.settings) for cell in cells):
        for name, value in json.loads(settings).items():
            words += ["--set", f"{method}.{name}={json.dumps(value)}"]
    return shlex.join(words)


def weights_name(name: str) -> str:
    """Return the name of the weights for a pretraining as papers write it, e.g. ``supervised`` or ``MoCo_v2``."""
    plain = name.lower().replace("_", "").replace("-", "")
    if plain == "supervised":
        return "default"
    return {"moco": "mocov2", "sela": "selav2"}.get(plain, plain) if {plain, f"{plain}v2"} & set(RECIPES) else name


def _usable(grid: Grid, absent: dict[tuple[str, str], str], left_out: dict[str, None]) -> Iterable[tuple[str, str]]:
    """Yield the backbones with those weights that exist, here or with their authors."""
    for backbone in grid.backbones:
        spec = find_backbone(backbone)
        for weights in map(weights_name, grid.weights):
            if weights != "random":
                try:
                    find_weights(spec, weights)
                except WeightsMissing as error:
                    absent[backbone, weights] = str(error)
                except InputError as error:
                    left_out[str(error)] = None
                    continue
            yield backbone, weights


def _layers(backbone: str, wanted: Sequence[str]) -> list[tuple[str, ...]]:
    """List the layers of each detector; names are looked up now, not in the middle of the study."""
    layer_sets: dict[tuple[str, ...], None] = {}
    for text in wanted:
        if text == EACH:
            named = [(level.name,) for level in find_backbone(backbone).levels]
            if not named:
                raise InputError(
                    f"nobody has chosen layers of {backbone}, so 'each' means none: name some, e.g. --layers A,B,A+B; "
                    f"'pickglass layers --list {backbone}' shows them"
                )
            layer_sets |= dict.fromkeys(named)
            continue
        layers = tuple(name for name in text.split("+") if name)
        FeatureExtractor(backbone, layers, None)
        layer_sets[layers] = None
    return list(layer_sets)


def _by_group(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return tuple(cell for group in groups.values() for cell in group)
