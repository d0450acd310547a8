"""Each script of bench/ can be imported, and explains itself with --help.

What the scripts measure is not run here, but for one; mypy and these tests hold that they keep up with the package.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from pickglass.app.jobs.executors import LocalExecutor

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in (ROOT / "bench").glob("*.py") if not path.stem.startswith(("__", "peer_")))
LIBRARIES = {"textures"}  # imported by others


def test_each_script_says_how_it_is_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT)
    assert len(SCRIPTS) > 20
    for name in SCRIPTS:
        script = importlib.import_module(f"bench.{name}")
        if name in LIBRARIES:
            continue
        monkeypatch.setattr(sys, "argv", [f"bench/{name}.py", "--help"])
        with pytest.raises(SystemExit) as stop:
            script.main()
        assert stop.value.code == 0, name
        assert "usage:" in capsys.readouterr().out, name


@pytest.mark.slow
def test_the_runtime_against_a_peer(
    small_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that says what it was asked stands for the peer; the bank of its PatchCore is drawn at random."""
    monkeypatch.syspath_prepend(ROOT)
    (tmp_path / "anomalib" / "models").mkdir(parents=True)
    (tmp_path / "anomalib" / "__init__.py").touch()
    (tmp_path / "anomalib" / "engine.py").write_text("class Engine:\n    def predict(self, model): ...\n")
    (tmp_path / "anomalib" / "models" / "__init__.py").touch()
    (tmp_path / "anomalib" / "models" / "components.py").write_text(
        "class KCenterGreedy:\n    def sample_coreset(self): raise SystemExit('the bank is to be drawn')\n"
    )
    script = tmp_path / "peer.py"
    script.write_text(
        "import json, sys\n"
        "import numpy as np\n"
        "def main():\n"
        "    bank = None\n"
        "    if 'patchcore' in sys.argv:\n"
        "        from anomalib.models.components import KCenterGreedy\n"
        "        greedy = KCenterGreedy()\n"
        "        greedy.embedding, greedy.coreset_size = np.arange(20.0).reshape(10, 2), 3\n"
        "        bank = greedy.sample_coreset().tolist()\n"
        "    print('something else')\n"
        "    print(json.dumps({'images_per_s': 0.5, 'asked': sys.argv[1:], 'bank': bank}))\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    # in this process: a new one for each run takes seconds
    monkeypatch.setattr("pickglass.app.bench.bench.LocalExecutor", lambda apart: LocalExecutor())
    runtime = importlib.import_module("bench.runtime")
    small = ["--size", "64", "--repeat", "4", "--ratio", "0.1"]
    words = ["bench/runtime.py", small_dataset, *small, "--peer-python", sys.executable, "--peer-script", script]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    runtime.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["n_fit"] == 16
    for method in ("patchcore", "padim"):
        both, theirs = found[method]["ours"], found[method]["peer"]
        assert list(both) == ["onnxruntime", "openvino"]
        best = max(figures["images_per_s"] for figures in both.values())
        assert found[method]["times_faster"] == pytest.approx(best / 0.5)
        assert both["onnxruntime"]["p99_over_median"] is None  # of four passes
        assert both["onnxruntime"]["image_auroc"] is not None
        assert theirs["asked"][:5] == [str(small_dataset.resolve()), "--method", method, "--size", "64"]
    bank = found["patchcore"]["peer"]["bank"]
    assert len(bank) == 3
    assert all(row in [[2.0 * i, 2.0 * i + 1] for i in range(10)] for row in bank)
    assert found["padim"]["peer"]["asked"][-5:] == ["100", "--layers", "blocks.1", "blocks.2", "blocks.4"]
