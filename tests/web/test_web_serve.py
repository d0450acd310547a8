"""The command: what it refuses, that it needs no torch, and that the examples name options that it has."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import typer.main
from typer.testing import CliRunner

from pickglass.cli.main import app
from pickglass.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "examples" / "serve"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere.onnx"], "nowhere.onnx"),
        (["--host", "0.0.0.0"], "give a token as well"),
        (["--token", "short"], "at least 16"),
        (["--watch", "nowhere"], "no such file or folder"),
        (["--port", "1", "--host", "192.0.2.1", "--token", "a-token-of-some-length"], "cannot be had"),
    ],
)
def test_what_it_refuses(exported_model: Path, tmp_path: Path, arguments: list[str], reason: str) -> None:
    models = [] if arguments[0].endswith(".onnx") else [str(exported_model)]
    ended = CliRunner().invoke(app, ["serve", *models, *arguments, "--folder", str(tmp_path)])
    assert isinstance(ended.exception, InputError)
    assert reason in str(ended.exception)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_it_serves_without_torch_until_it_is_told_to_end(exported_model: Path, tmp_path: Path) -> None:
    hidden = "import sys; sys.modules.update(dict.fromkeys(('torch', 'scipy', 'timm', 'onnx'))); "
    code = hidden + "from pickglass.cli.main import main; sys.argv[0] = 'pickglass'; main()"
    command = [sys.executable, "-c", code, "serve", str(exported_model), "--port", "0", "--folder", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[3]
            sent = Request(address + "/inspect", b"no image", {"Content-Type": "image/png"})
            with pytest.raises(OSError, match="400"):
                urlopen(sent, timeout=20)
            with urlopen(address + "/models", timeout=20) as answer:
                assert b'"tile"' in answer.read()
        finally:
            process.send_signal(signal.SIGINT)  # Ctrl+C
        assert process.wait(20) == 0


def test_the_examples_name_options_that_there_are() -> None:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = {option for param in command.params for option in param.opts}
    container, service = (EXAMPLES / "Dockerfile").read_text(), (EXAMPLES / "pickglass.service").read_text()
    (entry,) = re.findall(r"^ENTRYPOINT \[(.*)\]$", container, flags=re.MULTILINE)
    (line,) = re.findall(r"^ExecStart=(.*)$", service, flags=re.MULTILINE)
    for words in (entry.replace('"', "").split(", "), shlex.split(line)):
        assert words[1] == "serve"
        named = {word for word in words if word.startswith("--")}
        assert {"--host", "--port", "--folder"} <= named <= options
