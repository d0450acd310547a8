"""Weights are found where others put them, and fetched from a local server in place of the net: never another file."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from pickglass.app.weights import weights
from pickglass.cli.main import main
from pickglass.errors import DataError, InputError, WeightsMissing
from pickglass.features import FeatureExtractor, find_backbone
from pickglass.features.backbones import fetching
from pickglass.features.backbones.checkpoints import RECIPES
from pickglass.features.backbones.fetching import agrees, fetch, home, pinned, torch_cache
from pickglass.features.backbones.registry import Published, catalogue, published, published_as
from pickglass.features.backbones.weights import find_weights, lookup

pytestmark = pytest.mark.fresh

CONTENT = bytes(range(256)) * 3000


class Web(ThreadingHTTPServer):
    """Serves one file at every address, and can be told to misbehave."""

    content = CONTENT
    breaks_after: int | None = None  # bytes, of the next answer alone
    status = 200
    version = '"one"'

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.ranges: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        web = self.server
        asked = self.headers["Range"]
        if body:
            web.ranges.append(asked)
        if web.status != 200:
            self.send_error(web.status)
            return
        begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if asked and self.headers["If-Range"] not in (None, web.version):
            asked, begin = None, 0
        if begin >= len(web.content):
            self.send_error(416)
            return
        part = web.content[begin:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", web.version)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(web.content) - 1}/{len(web.content)}")
        # what the hub adds
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(web.content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(web.content)))
        self.end_headers()
        if not body:
            return
        if web.breaks_after is not None:
            part, web.breaks_after = part[: web.breaks_after], None
            self.close_connection = True
        with suppress(ConnectionError):  # a client may go before it has all
            self.wfile.write(part)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Web]:
    for name in ("HF_HUB_OFFLINE", "PICKGLASS_WEIGHTS", "PICKGLASS_DOWNLOAD", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    server = Web()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setitem(RECIPES, "swav", replace(RECIPES["swav"], url=f"{server.address}/{{file}}"))
    yield server
    server.shutdown()
    server.server_close()


def wanted(web: Web, **changes: Any) -> Published:
    return replace(Published("net", "net.pth", "the authors", "mit", f"{web.address}/net.pth"), **changes)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("net.pth", "pickglass-pins.json"))


# -- a file at an address ----------------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_the_first_fetch_pins_it(web: Web, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    one = fetch(wanted(web), lambda *step: seen.append(step))
    assert one.path == tmp_path / "torch/hub/checkpoints/net.pth"
    assert one.path.read_bytes() == CONTENT
    assert (one.sha256, one.verified) == (hashlib.sha256(CONTENT).hexdigest(), False)
    assert seen[-1] == ("fetching net", len(CONTENT), len(CONTENT))
    assert pinned("net")["sha256"] == one.sha256
    assert left_over(one.path.parent) == []
    assert fetch(wanted(web)).verified
    web.content = b"another" * 1000
    with pytest.raises(InputError, match=r"weights net: refused, for what came has the SHA-256 .* was expected"):
        fetch(wanted(web))
    assert one.path.read_bytes() == CONTENT
    assert left_over(one.path.parent) == []


@pytest.mark.parametrize(
    ("digest", "right"),
    [
        (f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", True),
        (f"sha256:{hashlib.sha256(CONTENT).hexdigest()[:8]}", True),
        (f"md5:{hashlib.md5(CONTENT).hexdigest()[:8]}", True),
        (f"git:{hashlib.sha1(b'blob %d' % len(CONTENT) + bytes(1) + CONTENT).hexdigest()}", True),
        ("sha256:00000000", False),
        ("md5:00000000", False),
        ("git:00000000", False),
    ],
)
def test_what_comes_is_compared_with_what_its_authors_say(web: Web, digest: str, right: bool) -> None:
    if right:
        assert fetch(wanted(web, digest=digest)).verified
        return
    with pytest.raises(InputError, match="Nothing of it was kept"):
        fetch(wanted(web, digest=digest))
    assert left_over(home()) == []
    assert not (home() / "net.pth").exists()
    assert pinned("net") == {}


def test_a_download_that_breaks_off_goes_on_where_it_ended(web: Web) -> None:
    web.breaks_after = 500_000
    assert fetch(wanted(web)).path.read_bytes() == CONTENT
    assert web.ranges == [None, "bytes=500000-"]


def test_a_part_of_another_version_is_begun_anew(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_TRIES", 1)
    web.breaks_after = 500_000
    with pytest.raises(InputError, match=r"broke off .*\. 0\.5 MB are kept, and the same command goes on from there"):
        fetch(wanted(web))
    web.content, web.version = CONTENT[::-1], '"two"'
    assert fetch(wanted(web)).path.read_bytes() == CONTENT[::-1]
    assert web.ranges == [None, "bytes=500000-"]
    web.content, web.version = CONTENT[:1000], '"three"'
    (home() / ".net.pth.part").write_bytes(CONTENT)
    (home() / ".net.pth.part-of").write_text('"three"')
    assert fetch(wanted(web, name="other")).path.read_bytes() == CONTENT[:1000]  # longer than the file is now


def test_what_stands_in_the_way_is_said_in_a_line(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(match: str, one: Published) -> None:
        with pytest.raises(InputError, match=match) as caught:
            fetch(one)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 500

    web.status = 404
    refused(r"/net\.pth answers 404 Not Found: look at the authors", wanted(web))
    assert len(web.ranges) == 1  # asking again would not help
    web.status = 200
    refused("cannot be reached or broke off", wanted(web, url="http://127.0.0.1:9/net.pth"))
    refused("get the file net.pth from the authors", wanted(web, url=None))
    refused("pip install some-package", wanted(web, url=None, package="some-package"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        refused(
            r"no room in .* \(1 MB are needed and 0 MB are free\): free some, or set PICKGLASS_WEIGHTS", wanted(web)
        )
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(fetching, "_copied", lambda *_: (_ for _ in ()).throw(full))
        refused(r"no room in .* \(No space left on device\)", wanted(web))
    (tmp_path / "file").touch()
    monkeypatch.setenv("PICKGLASS_WEIGHTS", str(tmp_path / "file" / "folder"))
    refused("cannot write to .*: set PICKGLASS_WEIGHTS to a folder that you can write", wanted(web))
    monkeypatch.setenv("PICKGLASS_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PICKGLASS_DOWNLOAD", "1")
    refused("HF_HUB_OFFLINE=1 forbids to fetch anything", wanted(web))


# -- where weights are found -------------------------------------------------------------------------------------------


def in_hub(folder: Path, repository: str, name: str = "model.safetensors") -> Path:
    """Write a file where the hub's client keeps it."""
    entry = folder / f"models--{repository.replace('/', '--')}"
    file = entry / "snapshots" / ("a" * 40) / name
    file.parent.mkdir(parents=True)
    (entry / "refs").mkdir()
    (entry / "refs/main").write_text("a" * 40)
    file.write_bytes(b"weights")
    return file


def test_weights_are_found_where_others_put_them(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vit = published_as("vit_small_patch14_dinov2")
    hub = "timm/vit_small_patch14_dinov2.lvd142m"
    assert (vit.hub, lookup(vit)) == (hub, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    in_cache = in_hub(tmp_path / "hub", hub, "pytorch_model.bin")
    assert lookup(vit) == in_cache
    by_torch = tmp_path / "torch/hub/checkpoints/dinov2_vits14_pretrain.pth"  # as torch.hub keeps it
    by_torch.parent.mkdir(parents=True)
    by_torch.touch()
    assert lookup(vit) == by_torch
    monkeypatch.setenv("PICKGLASS_WEIGHTS", str(tmp_path / "own"))
    assert lookup(vit) == by_torch
    in_own_cache = in_hub(tmp_path / "own", hub)
    assert lookup(vit) == in_own_cache
    beside = tmp_path / "own" / hub / "model.safetensors"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert lookup(vit) == beside
    (tmp_path / "own" / vit.file).touch()
    assert lookup(vit) == tmp_path / "own" / vit.file
    assert web.ranges == []


def test_missing_weights_name_the_one_command_and_come_where_that_is_allowed(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    resnet = find_backbone("resnet50")
    with pytest.raises(WeightsMissing, match=r"licence cc-by-nc-4\.0: pickglass weights get resnet50:swav \(or --down"):
        find_weights(resnet, "swav")
    with pytest.raises(WeightsMissing, match=r"\(1\) get the file from .*simclr"):
        find_weights(resnet, "simclr")
    monkeypatch.setenv("PICKGLASS_DOWNLOAD", "0")
    with pytest.raises(WeightsMissing):
        find_weights(resnet, "swav")
    monkeypatch.setenv("PICKGLASS_DOWNLOAD", "1")
    state = {f"module.{name}": value for name, value in resnet.build().state_dict().items() if name[:3] != "fc."}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    web.content = buffer.getvalue()
    info = FeatureExtractor("resnet50", ["layer1"], "swav").weights
    assert info is not None
    assert (info.strategy, info.licence) == ("swav", "cc-by-nc-4.0")
    assert info.sha256 == hashlib.sha256(web.content).hexdigest()
    assert len(web.ranges) == 1
    monkeypatch.delenv("PICKGLASS_DOWNLOAD")
    assert find_weights(resnet, "swav").is_file()


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_table_has_what_people_ask_for_and_no_digest_that_nobody_stated() -> None:
    table = {one.name: one for one in catalogue()}
    assert len(table) > 80
    assert all(one.source and one.file for one in table.values())
    assert all(one.licence for one in table.values() if one.name.partition(":")[0] in ("resnet50", "pdn_small"))
    for name in ("resnet18", "resnet50:v2", "resnet50:mocov2", "resnet50:swav", "resnet50:selav2", "resnet50:simclr"):
        assert name in table
    assert table["resnet50:dino"].url == (
        "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"
    )
    registers = published_as("vit_base_patch14_reg4_dinov2:dinov2")
    assert registers.url == "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"
    assert (table["resnet18"].digest, table["resnet50:mocov2"].digest) == ("sha256:f37072fd", "md5:a04e12f8")
    assert str(table["pdn_small:efficientad"].digest).startswith("git:")
    assert published_as("vit_small_patch16_dinov3:dinov3").digest == "sha256:08c60483"
    assert published_as("vit_small_patch16_dinov3").licence in ("dinov3-license", "dinov3")  # the latter in timm 1.0.20
    assert {one.name for one in table.values() if one.digest is None} > {"resnet50:swav", "resnet50:dino"}
    with pytest.raises(InputError, match="'swav': published for resnet50, not for resnet18"):
        published(find_backbone("resnet18"), "swav")
    with pytest.raises(InputError, match="weights 'mocov3': expected default, v1, v2 or one of mocov2"):
        published_as("resnet50:mocov3")


def test_get_pack_and_import(web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (row,) = weights("get", ["resnet50:swav"])["weights"]
    assert (row["verified"], row["licence"]) == (False, "cc-by-nc-4.0")
    assert Path(str(row["path"])).read_bytes() == CONTENT
    weights("get", ["resnet50:swav"])
    assert len(web.ranges) == 1  # it is there
    (listed,) = weights("list", ["resnet50:swav"])["weights"]
    assert (listed["path"], listed["digest"]) == (row["path"], f"sha256:{row['sha256']}")
    with pytest.raises(InputError, match=r"not here: resnet18\. First: pickglass weights get resnet18"):
        weights("pack", ["resnet50:swav", "resnet18"], folder=tmp_path / "stick")
    weights("pack", ["resnet50:swav"], folder=tmp_path / "stick")
    monkeypatch.setenv("PICKGLASS_WEIGHTS", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert lookup(published_as("resnet50:swav")) is None
    result = weights("import", folder=tmp_path / "stick")
    assert result["folder"] == str(tmp_path / "elsewhere")
    assert lookup(published_as("resnet50:swav")) == tmp_path / "elsewhere/swav_800ep_pretrain.pth.tar"
    (tmp_path / "stick/swav_800ep_pretrain.pth.tar").write_bytes(b"changed")
    with pytest.raises(DataError, match="is not what was packed: copy the folder again"):
        weights("import", folder=tmp_path / "stick")
    with pytest.raises(DataError, match=r"holds no pickglass-weights\.json: expected a folder that 'pickglass weights"):
        weights("import", folder=tmp_path)
    with pytest.raises(InputError, match="does not hold resnet18; it holds resnet50:swav"):
        weights("import", ["resnet18"], folder=tmp_path / "stick")


def test_a_file_that_is_there_and_is_another_is_refused(web: Web, tmp_path: Path) -> None:
    place = torch_cache() / "resnet18-f37072fd.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"not it")
    assert not agrees(place, "sha256:f37072fd")
    with pytest.raises(InputError, match=r"is there, but is not what .* publishes \(sha256:f37072fd\): delete it"):
        weights("get", ["resnet18"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get"], "name the weights to get, e.g. resnet18"),
        (["pack", "resnet18"], "-o names the folder of pack"),
        (["list", "-o", "x"], "-o names the folder of pack"),
        (["import"], "name the folder that was packed"),
        (["get", "resnet19"], "unknown backbone 'resnet19'"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pickglass", "weights", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_hub_gives_weights_through_its_own_client(
    web: Web, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net = published_as("timm/resnet18.tv_in1k")
    monkeypatch.setenv("HF_ENDPOINT", web.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert (net.hub, lookup(net)) == ("timm/resnet18.tv_in1k", None)
    one = fetch(net)
    assert one.path.read_bytes() == CONTENT
    assert (one.sha256, one.verified) == (hashlib.sha256(CONTENT).hexdigest(), False)
    assert pinned(net.name)["revision"] == "c" * 40
    assert lookup(net) == one.path
    shutil.rmtree(tmp_path / "hub")
    web.content = b"another" * 1000
    with pytest.raises(InputError, match="refused, for what came has the SHA-256"):
        fetch(net)
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.stat().st_size == 7000]
    web.status = 404
    with pytest.raises(InputError, match=r"weights timm/resnet18\.tv_in1k: huggingface\.co/timm/resnet18") as caught:
        fetch(net)
    assert len(str(caught.value).splitlines()) == 1
