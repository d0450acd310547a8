"""The examples for those who do not use Python: the same canvas bit by bit, the same verdicts, the same scores."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from PIL import Image

import pickglass as pg
from pickglass.data import Preprocess
from pickglass.testing import textures

EXAMPLES = Path(__file__).parents[1] / "examples"
NO_NETWORK = r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ONNXRUNTIME = os.environ.get("ONNXRUNTIME_ROOT", "")  # unpacked release: include/ and lib/
CASES = [
    ((71, 90), Preprocess((64, 64))),
    ((71, 90), Preprocess((64, 64), "bicubic")),
    ((64, 64), Preprocess((64, 64), "bicubic")),
    ((64, 200), Preprocess((64, 64), "bilinear")),  # one of the two directions stays as it is
    ((13, 7), Preprocess((40, 32), "bicubic")),  # enlarged
    ((1, 1), Preprocess((8, 8), "bicubic")),
    ((300, 17), Preprocess((32, 32), "bilinear", "letterbox")),
    ((30, 71), Preprocess((33, 32), "bicubic", "letterbox")),
    ((500, 3), Preprocess((32, 32), "bilinear", "letterbox")),
    ((5, 2), Preprocess((10, 5), "bicubic", "letterbox")),
    ((71, 90), Preprocess((32, 64), "bilinear", "shorter", 32)),
    ((64, 90), Preprocess((96, 96), "bicubic", "shorter", 32)),
    ((25, 30), Preprocess((32, 32), "bilinear", "native")),
    ((4, 90), Preprocess((2, 45), "bilinear", "shorter", 2)),
    ((2, 25), Preprocess((1, 16), "bilinear", "shorter", 1)),  # 12.5 pixels are 12
]


def tool(*names: str) -> str:
    """The path of the first of these programs that is there; none: the test is skipped."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    return found or pytest.skip(f"none of these is installed: {', '.join(names)}")


def run(*command: object, fails: bool = False, **options: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, **options)
    assert (done.returncode != 0) == fails, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stderr if fails else done.stdout


# -- the canvas --------------------------------------------------------------------------------------------------------

# Each reads "height width H W geometry side interpolation" a line and the pixels of all cases, and writes canvas and
# keep of all cases.
DRIVERS = {
    "main.mjs": """
import { readFileSync, writeFileSync } from 'node:fs';
import { canvas } from './canvas.mjs';
const all = readFileSync('pixels'), out = [];
let at = 0;
for (const line of readFileSync('cases', 'utf8').trim().split('\\n')) {
  const words = line.split(' '), [geometry, , interpolation] = words.slice(4);
  const [height, width, H, W] = words.map(Number), side = +words[5];
  const data = all.subarray(at, at += height * width * 3);
  const { pixels, keep } = canvas({ height, width, data }, { size: [H, W], geometry, side, interpolation });
  out.push(pixels, keep);
}
writeFileSync('canvases', Buffer.concat(out));
""",
    "main.cpp": """
#include <fstream>
#include "canvas.hpp"
int main() {
  std::ifstream cases("cases"), pixels("pixels", std::ios::binary);
  std::ofstream out("canvases", std::ios::binary);
  Image image;
  Preprocess how;
  std::string kernel;
  while (cases >> image.height >> image.width >> how.H >> how.W >> how.geometry >> how.side >> kernel) {
    how.cubic = kernel == "bicubic";
    image.rgb.resize(size_t(image.height) * image.width * 3);
    pixels.read(reinterpret_cast<char*>(image.rgb.data()), image.rgb.size());
    const Canvas on = canvas(image, how);
    out.write(reinterpret_cast<const char*>(on.pixels.data()), on.pixels.size());
    out.write(reinterpret_cast<const char*>(on.keep.data()), on.keep.size());
  }
}
""",
    "Main.cs": """
using System.IO;
using System.Linq;
public static class MainOfTest
{
    public static void Main()
    {
        using (var pixels = File.OpenRead("pixels"))
        using (var output = File.Create("canvases"))
            foreach (string line in File.ReadLines("cases"))
            {
                string[] of = line.Split(' ');
                int height = int.Parse(of[0]), width = int.Parse(of[1]);
                var rgb = new byte[height * width * 3];
                pixels.Read(rgb, 0, rgb.Length);
                int H = int.Parse(of[2]), W = int.Parse(of[3]);
                var canvas = new Canvas(rgb, height, width, H, W, of[4], int.Parse(of[5]), of[6] == "bicubic");
                output.Write(canvas.Pixels, 0, canvas.Pixels.Length);
                output.Write(canvas.Keep.Select(kept => (byte)(kept ? 1 : 0)).ToArray(), 0, canvas.Keep.Length);
            }
    }
}
""",
}


def javascript(folder: Path) -> None:
    run(tool("node"), "main.mjs", cwd=folder)


def cpp(folder: Path) -> None:
    run(tool("g++", "clang++"), "-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", "main", "main.cpp", cwd=folder)
    run(folder / "main", cwd=folder)


def csharp(folder: Path) -> None:
    run(tool("mcs"), "-out:main.exe", "Main.cs", "Canvas.cs", cwd=folder)
    run(tool("mono"), "main.exe", cwd=folder)


@pytest.mark.parametrize("language", [javascript, pytest.param(cpp, marks=pytest.mark.slow), csharp])
def test_the_canvas_is_that_of_python(language: Callable[[Path], None], tmp_path: Path) -> None:
    for name, text in DRIVERS.items():
        (tmp_path / name).write_text(text)
    for source in ("javascript/canvas.mjs", "cpp/canvas.hpp", "csharp/Canvas.cs"):
        shutil.copy(EXAMPLES / source, tmp_path)
    rng = np.random.default_rng(0)
    # noise, and black and white, where bicubic overshoots
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size, _ in CASES]
    images += [rng.integers(0, 2, (*size, 3), np.uint8) * np.uint8(255) for size, _ in CASES]
    hows = [how for _, how in CASES] * 2
    lines = [
        f"{h} {w} {how.size[0]} {how.size[1]} {how.geometry} {how.side or 0} {how.interpolation}"
        for (h, w, _), how in zip((image.shape for image in images), hows, strict=True)
    ]
    (tmp_path / "cases").write_text("\n".join(lines) + "\n")
    (tmp_path / "pixels").write_bytes(b"".join(image.tobytes() for image in images))
    language(tmp_path)
    found = np.frombuffer((tmp_path / "canvases").read_bytes(), np.uint8)
    for line, image, how in zip(lines, images, hows, strict=True):
        pixels, keep, found = np.split(found, np.cumsum([3 * how.size[0] * how.size[1], how.size[0] * how.size[1]]))
        expected = np.rint(how(image) * 255).astype(np.uint8).transpose(1, 2, 0)
        np.testing.assert_array_equal(pixels.reshape(expected.shape), expected, err_msg=line)
        kept = how.kept((image.shape[0], image.shape[1]))
        np.testing.assert_array_equal(keep.reshape(how.size), 1 if kept is None else kept, err_msg=line)
    assert found.size == 0


def test_an_image_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    how = "{ size: [32, 32], geometry: 'native', side: null, interpolation: 'bilinear' }"
    shutil.copy(EXAMPLES / "javascript" / "canvas.mjs", tmp_path)
    (tmp_path / "main.mjs").write_text(
        f"import {{ canvas }} from './canvas.mjs'; canvas({{ height: 33, width: 8, data: [] }}, {how});"
    )
    message = run(tool("node"), "main.mjs", cwd=tmp_path, fails=True)
    assert "33 x 8 pixels: they do not fit on the canvas of 32 x 32" in message


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_metadata_and_verdict_in_javascript(tmp_path: Path) -> None:
    """With a runtime in place of onnxruntime that answers with given scores."""
    about: dict[str, Any] = {
        "input": "uint8",
        "canvas": [2, 2],
        "preprocess": Preprocess((2, 2)).to_json(),
        "keep": False,
        "calibration": {"image_threshold": 2.0},
    }

    def save(name: str, **changes: Any) -> None:
        graph = onnx.helper.make_graph([], "graph", [], [])
        model = onnx.helper.make_model(graph, producer_name="é" * 100)
        onnx.helper.set_model_props(model, {"other": "x", "pickglass": json.dumps({**about, **changes})})
        onnx.save(model, tmp_path / name)

    save("one.onnx")
    save("two.onnx", calibration={"image_threshold": 2.0, "unsure_threshold": 1.0})
    save("none.onnx", calibration=None)
    save("floats.onnx", input="float32")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [])), tmp_path / "foreign.onnx")
    for name in ("canvas.mjs", "judge.mjs"):
        shutil.copy(EXAMPLES / "javascript" / name, tmp_path)
    (tmp_path / "main.mjs").write_text("""
import { readFileSync } from 'node:fs';
import { load } from './judge.mjs';
const image = { height: 1, width: 1, data: Uint8Array.of(1, 2, 3) };
const scores = [1, 1.5, 2, 2.5, NaN, Infinity, -Infinity];
const found = {};
for (const name of ['one', 'two', 'none', 'floats', 'foreign']) {
  const runs = scores.map((score) => ({ score: { data: [score] } }));
  const ort = { Tensor: class {}, InferenceSession: { create: async () => ({ run: async () => runs.shift() }) } };
  try {
    const judge = await load(ort, readFileSync(`${name}.onnx`));
    found[name] = [];
    for (const _ of scores) found[name].push((await judge(image)).verdict);
  } catch (error) {
    found[name] = error.message;
  }
}
console.log(JSON.stringify(found));
""")
    assert json.loads(run(tool("node"), "main.mjs", cwd=tmp_path)) == {
        "one": ["good", "good", "good", "bad", "bad", "bad", "bad"],
        "two": ["good", "unsure", "unsure", "bad", "bad", "bad", "bad"],
        "none": ["no threshold"] * 7,
        "floats": "the model takes float32: export it with --input uint8",
        "foreign": "'pickglass export' did not write this file",
    }


# -- the whole way, from file to verdict -------------------------------------------------------------------------------


class Trained:
    """Exported models, images, and what Python says of them."""

    def __init__(self, folder: Path) -> None:
        images = textures(9, 96, seed=3)[:, :71]
        good, other = images[:8], images[8].copy()
        other[20:50, 30:70] = np.random.default_rng(0).integers(0, 256, (30, 40, 3))
        grey = Image.fromarray(other).convert("L")
        self.images = [folder / f"{name}.png" for name in ("good", "bad", "grey", "palette", "alpha")]
        for path, image in zip(
            self.images,
            (
                Image.fromarray(images[0]),
                Image.fromarray(other),
                grey,
                Image.fromarray(other).convert("P", palette=Image.Palette.ADAPTIVE),
                Image.merge("RGBA", (*Image.fromarray(other).split(), grey)),
            ),
            strict=True,
        ):
            image.save(path)
        self.models: dict[Path, list[tuple[float, str | None]]] = {}
        for name, settings in {
            "squeeze": {"backbone": "efficientnet_lite0", "size": (32, 64)},
            "letterbox": {"backbone": "resnet18", "weights": "random", "layers": ["layer1"], "size": "letterbox:64"},
        }.items():
            detector = pg.PatchCore(**settings, ratio=0.05).fit(good, engine="torch")
            detector.export(folder / f"{name}.onnx", good[:2], batch=1, input="uint8")
            found = detector.predict(self.images, engine="torch")
            verdicts = [found.verdict(i) for i in range(len(found))]
            assert {*verdicts} == {"good", "bad"}, found.scores
            self.models[folder / f"{name}.onnx"] = [*zip(found.scores, verdicts, strict=True)]

    def expect(self, program: Callable[[Path, list[Path]], str], images: slice = slice(None)) -> None:
        for model, expected in self.models.items():
            found = [json.loads(line) for line in program(model, self.images[images]).splitlines()]
            assert [line["path"] for line in found] == [str(path) for path in self.images[images]]
            for line, (score, verdict) in zip(found, expected[images], strict=True):
                assert line["score"] == pytest.approx(score, rel=1e-4), line
                assert line["verdict"] == verdict, line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the JavaScript example with its packages, half a gigabyte that does not stay."""
    npm, folder = tool("npm"), tmp_path_factory.mktemp("javascript")
    shutil.copytree(EXAMPLES / "javascript", folder, dirs_exist_ok=True)
    # without scripts: that of onnxruntime-node fetches libraries for GPUs
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    if done.returncode and (why := re.search(NO_NETWORK, done.stderr)):
        pytest.skip(f"npm reaches no registry: {why.group()}")
    assert done.returncode == 0, done.stderr[-2000:]
    yield folder
    shutil.rmtree(folder / "node_modules")


@pytest.mark.slow
@pytest.mark.long
def test_node(trained: Trained, installed: Path) -> None:
    node = tool("node")
    trained.expect(lambda model, images: run(node, "node.mjs", model, *images, cwd=installed))


class Server(ThreadingHTTPServer):
    """A server of a folder; what a page sends back to it is in ``answers``."""

    answers: Queue[str] = Queue()


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None: ...

    def do_POST(self) -> None:
        Server.answers.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()


WHEN_READY = """
<script type="module">
  while (!document.body.dataset.ready) await new Promise((resolve) => setTimeout(resolve, 50));
  await fetch('done', { method: 'POST', body: document.getElementById('found').innerHTML });
</script>
"""


@pytest.fixture(scope="module")
def address(installed: Path) -> Iterator[str]:
    (installed / "main.html").write_text((installed / "index.html").read_text() + WHEN_READY)
    with Server(("127.0.0.1", 0), partial(Handler, directory=str(installed))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/main.html"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.long
def test_a_page(trained: Trained, installed: Path, address: str, tmp_path: Path) -> None:
    browser = [tool(*BROWSERS), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]

    def page(model: Path, images: list[Path]) -> str:
        for path in (model, *images):
            shutil.copy(path, installed)
        query = "&".join([f"model={model.name}", *(f"image={path.name}" for path in images)])
        with subprocess.Popen(
            [*browser, f"{address}?{query}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                shown = Server.answers.get(timeout=120)
            finally:
                process.terminate()
        lines = re.findall(r"<li>(\S+): (good|bad) (\S+)</li>", shown)
        assert len(lines) == len(images), shown
        return "\n".join(
            json.dumps({"path": str(path), "verdict": verdict, "score": float(score)})
            for path, (_, verdict, score) in zip(images, lines, strict=True)
        )

    trained.expect(page, slice(4))  # a browser does not keep what lies under transparency


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what CMake makes of the C++ example."""
    cmake, folder = tool("cmake"), tmp_path_factory.mktemp("cpp")
    tool("g++", "clang++")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "nlohmann-json==3.12.0"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"pip brings no nlohmann-json: {done.stderr.strip()[-200:]}")
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
    run(
        *(cmake, "-S", EXAMPLES / "cpp", "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Debug"),
        f"-DCMAKE_PREFIX_PATH={folder / 'nlohmann_json'};{ONNXRUNTIME}",
        f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}",
    )
    run(cmake, "--build", folder / "build")
    return folder / "build"


@pytest.mark.slow
@pytest.mark.long  # the compiler takes its time; test_the_canvas_is_that_of_python compiles the part that computes
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_cpp(runtime: str, trained: Trained, built: Path) -> None:
    program = built / f"pickglass-{runtime}"
    if runtime == "onnxruntime" and not program.exists():
        pytest.skip("no onnxruntime for C++: set ONNXRUNTIME_ROOT to an unpacked release")
    trained.expect(lambda model, images: run(program, model, *images))
    assert "no/such.png" in run(program, next(iter(trained.models)), "no/such.png", fails=True)


@pytest.fixture(scope="module")
def dotnet() -> Any:
    """Where it is missing the test is skipped before models are trained for it."""
    return tool("dotnet")


@pytest.mark.slow
def test_csharp(dotnet: Any, trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "csharp", tmp_path, dirs_exist_ok=True)
    run(dotnet, "build", "-c", "Release", "-o", "built", cwd=tmp_path)
    trained.expect(lambda model, images: run(dotnet, tmp_path / "built" / "pickglass-example.dll", model, *images))


# -- the pages ---------------------------------------------------------------------------------------------------------


def test_each_file_is_short_and_named_in_the_page() -> None:
    page = (EXAMPLES / "README.md").read_text()
    files = [path for path in EXAMPLES.glob("*/*") if path.is_file() and path.parent.name != "serve"]  # docs/serve.md
    assert len(files) >= 12
    for path in files:
        lines = path.read_text().splitlines()
        assert len(lines) < 60, path
        assert max(map(len, lines)) <= 120, path
        assert f"`{path.name}`" in page, path
