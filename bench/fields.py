"""How far does each layer look: receptive fields by gradient and by the graph, grid and cost of five networks.

    python -m bench run fields [-o bench/results/fields.jsonl] [--backbones NAME ...]

What ``pickglass layers BACKBONE`` prints, at 256 x 256 px. EfficientNet-Lite0 has its trained weights, and random ones
for comparison. The other four, those of Heckler, König and Bergmann (CVPR workshops 2023), have random weights, seed 0:
grid, cost and theoretical field do not depend on the weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.harness import Case, Record, Suite, markdown

LITE = "efficientnet_lite0"
BACKBONES = {
    "resnet50": "ResNet-50",
    "wide_resnet50_2": "WideResNet-50",
    "densenet201": "DenseNet-201",
    "efficientnet_b5": "EfficientNet-B5",
}


def measured(backbone: str, weights: str) -> dict[str, Any]:
    """Return the layers of a network, as ``pickglass layers --json`` tells them."""
    from pickglass.app.see.layers import layers
    from pickglass.app.see.request import BackboneRequest

    found = layers(BackboneRequest(backbone, weights=None if weights == "default" else weights))
    kept = ("name", "node", "grid", "stride", "channels", "rf_gradient", "rf_image", "rf_theoretical", "rrf", "macs")
    return {"size": found["size"], "layers": [{key: node[key] for key in kept} for node in found["nodes"]]}  # type: ignore[literal-required]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbones", nargs="+", default=[LITE, *BACKBONES])


def cases(given: argparse.Namespace) -> Iterator[Case]:
    for name in given.backbones:
        for weights in ("default", "random") if name == LITE else ("random",):
            yield Case({"backbone": name, "weights": weights}, partial(measured, name, weights))


def _grid(layer: dict[str, Any]) -> str:
    return "x".join(str(cells) for cells in layer["grid"])


def table_of_random(rows: list[Record]) -> str:
    """The four backbones of the paper."""
    lines = []
    for row in rows:
        for number, layer in enumerate(row["layers"] if row["backbone"] in BACKBONES else []):
            name = "" if number else BACKBONES[row["backbone"]]
            field = f"{layer['rf_gradient']}, {'noise' if layer['rf_image'] == 'noise' else 'empty'}"
            cost = f"{layer['macs'] / 1e9:.2f} G"
            theoretical = layer["rf_theoretical"]
            lines.append([name, f"`{layer['node']}`", _grid(layer), layer["channels"], field, theoretical, cost])
    heads = ["backbone", "node", "grid", "channels", "by gradient (random)", "theoretical", "multiply-adds"]
    return markdown(heads, lines)


def table_of_lite(rows: list[Record]) -> str:
    """EfficientNet-Lite0, trained and random."""
    trained, drawn = (
        next(row["layers"] for row in rows if (row["backbone"], row["weights"]) == (LITE, weights))
        for weights in ("default", "random")
    )
    heads = ["layer", "node", "grid", "channels", "by gradient", "the same, random weights", "theoretical", "RRF"]
    lines = [
        [
            f"`{one['name']}`",
            f"`{one['node']}`",
            _grid(one),
            one["channels"],
            one["rf_gradient"],
            other["rf_gradient"],
            one["rf_theoretical"],
            f"{one['rrf']:.3f}",
            f"{one['macs'] / 1e9:.3f} G",
        ]
        for one, other in zip(trained, drawn, strict=True)
    ]
    return markdown([*heads, "multiply-adds"], lines)


SUITE = Suite(cases, arguments, {"random": table_of_random, "lite0": table_of_lite})
