"""Compiled graphs on the disk: they answer as before, stay within their bound, and never break a prediction."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

import pickglass as pg
from pickglass.features import engine as engines
from pickglass.features.engine import BackboneEngine
from pickglass.runtime import compiled
from pickglass.runtime.session import import_runtime, open_session

PIXELS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(compiled.VARIABLE, str(tmp_path / "graphs"))
    monkeypatch.setattr(engines, "_kept", engines._Kept())
    return tmp_path / "graphs"


@pytest.fixture(scope="module")
def extractor() -> pg.FeatureExtractor:
    return pg.FeatureExtractor("resnet18", ["layer1"], weights=None).eval()


def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each graph that is traced."""
    seen: list[str] = []
    original = engines.to_onnx
    monkeypatch.setattr(engines, "to_onnx", lambda *args, **more: seen.append("traced") or original(*args, **more))
    return seen


def in_a_new_process(extractor: pg.FeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Run an engine that remembers nothing."""
    monkeypatch.setattr(engines, "_kept", engines._Kept())
    engine = BackboneEngine(extractor, "cpu", "openvino")
    return [level.numpy() for level in engine(PIXELS)]


def test_a_kept_backbone_is_not_traced_again_and_answers_the_same(
    place: Path, extractor: pg.FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = traced(monkeypatch)
    first = in_a_new_process(extractor, monkeypatch)
    assert len(list(place.iterdir())) == len(seen) == 1
    again = in_a_new_process(extractor, monkeypatch)
    assert len(seen) == 1
    assert all(map(np.array_equal, first, again))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # other settings are another graph
    in_a_new_process(extractor, monkeypatch)
    assert len(seen) == len(list(place.iterdir())) == 2


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _sound_nonsense(path: Path) -> None:
    """A blob whose digest is right and that OpenVINO refuses."""
    path.write_bytes(compiled._START + hashlib.sha256(b"nonsense").digest() + b"nonsense")


@pytest.mark.parametrize("damage", [_cut, _flip, _sound_nonsense, lambda path: path.write_bytes(b"")])
def test_a_damaged_graph_is_compiled_anew(
    damage: Callable[[Path], None], place: Path, extractor: pg.FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = traced(monkeypatch)
    first = in_a_new_process(extractor, monkeypatch)
    (path,) = place.iterdir()
    sound = path.stat().st_size
    damage(path)
    assert all(map(np.array_equal, first, in_a_new_process(extractor, monkeypatch)))
    assert len(seen) == 2
    assert path.stat().st_size == sound


def test_a_graph_that_answers_otherwise_is_compiled_anew(
    place: Path, extractor: pg.FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one would that another release of pickglass had kept under the same key."""
    other = pg.FeatureExtractor("resnet18", ["layer1"], weights=None).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    in_a_new_process(other, monkeypatch)
    (wrong,) = place.iterdir()
    first = in_a_new_process(extractor, monkeypatch)
    (right,) = set(place.iterdir()) - {wrong}
    right.write_bytes(wrong.read_bytes())
    seen = traced(monkeypatch)
    assert all(map(np.array_equal, first, in_a_new_process(extractor, monkeypatch)))
    assert seen == ["traced"]
    assert all(map(np.array_equal, first, in_a_new_process(extractor, monkeypatch)))
    assert seen == ["traced"]


def _full(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fails)


def _read_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", fails)


def _a_file(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write_text("no folder")


def _no_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(compiled.VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fails)


def _of_another_user(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "geteuid"):
        pytest.skip("users are told apart by number on POSIX")
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)


def _off(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(compiled.VARIABLE, "off")


@pytest.mark.parametrize("trouble", [_full, _read_only, _a_file, _no_home, _of_another_user, _off])
def test_no_trouble_with_the_folder_breaks_a_prediction(
    trouble: Callable[[Path, pytest.MonkeyPatch], None],
    place: Path,
    extractor: pg.FeatureExtractor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trouble(place, monkeypatch)
    seen = traced(monkeypatch)
    (level,) = in_a_new_process(extractor, monkeypatch)
    with torch.no_grad():
        assert np.allclose(level, extractor(PIXELS)[0].numpy(), atol=1e-3 * np.abs(level).max())
    assert seen == ["traced"]
    monkeypatch.undo()
    assert not place.is_dir() or not list(place.iterdir())


def test_the_graphs_used_longest_ago_give_way(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def export_model(self, stream: BinaryIO) -> None:
            stream.write(bytes(100))

    monkeypatch.setattr(compiled, "MOST_BYTES", 3 * (100 + len(compiled._START) + 32))
    for i, key in enumerate("abc"):
        compiled.keep(key, Model())
        os.utime(place / f"{key}.graph", (1000 + i, 1000 + i))
    os.utime(place / "a.graph", (2000, 2000))  # it was used again
    (place / "notes.txt").write_bytes(bytes(1000))  # what is not ours stays
    compiled.keep("d", Model())
    assert sorted(path.name for path in place.iterdir()) == ["a.graph", "c.graph", "d.graph", "notes.txt"]
    monkeypatch.setattr(compiled, "_LARGEST", 99)
    compiled.keep("e", Model())
    assert not (place / "e.graph").exists()


def test_the_folder_is_the_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled.folder() == tmp_path / "pickglass" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to ignore
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert compiled.folder() == tmp_path / "me" / ".cache" / "pickglass" / "compiled"
    if os.name != "nt":
        assert (tmp_path / "me" / ".cache" / "pickglass" / "compiled").stat().st_mode & 0o077 == 0


def exported_graph() -> bytes:
    class Scores(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            map = image.mean(1)
            return map.amax((1, 2)), map

    return engines.to_onnx(Scores(), [PIXELS[:1]], ["image"], output_names=["score", "map"])


def test_an_exported_model_is_compiled_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, image = exported_graph(), {"image": PIXELS[:1].numpy()}
    first = open_session("openvino", content, 1).run(image)
    assert len(list(place.iterdir())) == 1
    monkeypatch.setattr(import_runtime("openvino").Core, "compile_model", lambda *_: pytest.fail("compiled again"))
    again = open_session("openvino", content, 1).run(image)
    assert np.array_equal(first.score, again.score)
    assert np.array_equal(first.map, again.map)
    assert np.array_equal(first.map, PIXELS[:1].mean(1).numpy())


_KEEPS = """
import sys
from pickglass.runtime import compiled
class Model:
    def export_model(self, stream):
        stream.write(bytes([int(sys.argv[1])]) * 300_000)
for _ in range(20):
    compiled.keep("shared", Model())
    content = (compiled.folder() / "shared.graph").read_bytes()
    head = len(compiled._START) + 32
    assert len(content) == head + 300_000 and len(set(content[head:])) == 1
"""


def test_several_processes_keep_graphs_under_one_name(place: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", _KEEPS, str(i)]) for i in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert [path.name for path in place.iterdir()] == ["shared.graph"]
