"""A CUDA device computes what the CPU does: searches, the coreset, and every method moved there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.methods import METHODS
from pickglass.nn.search.coreset import greedy_coreset
from pickglass.nn.search.neighbours import BankIndex, nearest_of_each, nearest_plain
from pickglass.testing import textures

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
SIDE = 64


def points(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)) + 3


def test_searches() -> None:
    queries, bank = points(300, 0), points(900, 1)
    distance, index = nearest_plain(queries[None].double(), bank[None].double())
    found = BankIndex(bank.to(DEVICE)).search(queries.to(DEVICE))
    assert found.indices.device.type == DEVICE
    assert torch.equal(found.indices.cpu(), index[0])
    torch.testing.assert_close(found.distances.cpu().double(), distance[0], rtol=1e-4, atol=1e-5)
    each = nearest_of_each(queries[None].to(DEVICE), bank[None].to(DEVICE))
    torch.testing.assert_close(each.cpu(), nearest_of_each(queries[None], bank[None]), rtol=1e-3, atol=1e-3)


def test_coreset_up_to_the_first_close_call() -> None:
    x = points(2000, 2).double()
    there, here = greedy_coreset(x.to(DEVICE), 100, first=0), greedy_coreset(x, 100, first=0)
    assert there.close_calls > 0 or there.indices.tolist() == here.indices.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_detector_moves_there_and_back(method: str, tmp_path: Path) -> None:
    cls = METHODS[method]
    detector = cls.configured({"size": SIDE, **cls.quick_settings(12, SIDE)})
    detector.fit(textures(12, SIDE), device=DEVICE)
    images = textures(4, SIDE, seed=1)
    there = detector.predict(images, device=DEVICE)
    loaded = pg.load(detector.save(tmp_path / "model.safetensors"))
    for answer in (
        detector.predict(images, device="cpu", engine="torch"),
        loaded.predict(images, device="cpu", engine="torch"),
        loaded.predict(images, device=DEVICE),
    ):
        np.testing.assert_allclose(answer.scores, there.scores, rtol=0, atol=1e-2 * np.abs(there.scores).max())


def test_a_gpu_judges_in_bfloat16() -> None:
    detector = pg.PatchCore(size=SIDE).fit(textures(8, SIDE), device=DEVICE, engine="bfloat16", calibrate=0)
    assert detector.provenance.engine == "bfloat16"
    rounded, exact = (detector.predict(textures(2, SIDE), device=DEVICE, engine=e).scores for e in ("auto", "torch"))
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=0.2 * np.abs(exact).max())
