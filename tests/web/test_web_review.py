"""The review page: scores that come in the background, thresholds, promises, reports, and the page in a browser."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import Settings, client_of

from pickglass.data.tables.sources import DataSource
from pickglass.runtime.export_file import read_export_header


def reviewed(client: TestClient, **query: Any) -> dict[str, Any]:
    """Ask for the scores until all images are judged."""
    for _ in range(600):
        answer = client.get("/api/review/scores", params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        if found["stage"] in ("done", "failed"):
            return found
        time.sleep(0.05)
    raise AssertionError(found["stage"])


def test_images_are_judged_in_the_background(client: TestClient) -> None:
    found = reviewed(client)
    images = client.get("/api/review/images").json()
    assert (found["stage"], found["done"], found["total"], found["key"]) == ("done", 24, 24, images["key"])
    scores = dict(zip(found["images"], found["scores"], strict=True))
    by_name = {name: scores[i] for i, name in enumerate(images["names"])}
    assert min(s for n, s in by_name.items() if "/hole/" in n) > max(s for n, s in by_name.items() if "test/good" in n)
    assert sorted(set(images["types"]), key=str) == [None, "hole", "scratch"]
    # the training images taught the model, so they do not judge it
    outside = [images["names"][i] for i in found["outside"]]
    assert len(outside) == 16
    assert all(name.startswith("train/") for name in outside)
    assert client.get("/api/review/scores", params={"after": 24}).json()["images"] == []
