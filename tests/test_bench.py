"""Each script of bench/ can be imported, and explains itself with --help.

What the scripts measure is not run here; mypy and this test hold that they keep up with the package.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

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
