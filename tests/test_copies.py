"""Addresses of object stores: copies on this machine, made like the store before a command and sent after it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.core import url_to_fs
from typer.testing import CliRunner

from pickglass.app.jobs.executors import _on_cluster
from pickglass.cli.main import app
from pickglass.data.copies import address_of, local_copies
from pickglass.errors import DataError, InputError, MissingExtra, PickglassError


@pytest.fixture(autouse=True)
def _copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICKGLASS_COPIES", str(tmp_path / "copies"))


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of an empty place in a store in memory, and in one of files."""
    if request.param == "file":
        (tmp_path / "store").mkdir()
        yield f"file://{tmp_path}/store"
        return
    memory = fsspec.filesystem("memory")
    yield "memory://store"
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def put(address: str, content: str) -> None:
    """Write to the store, as another does."""
    with fsspec.open(address, "w", auto_mkdir=True) as file:
        file.write(content)


def got(address: str) -> str:
    with fsspec.open(address) as file:
        return str(file.read().decode())


def there(address: str) -> list[str]:
    files, root = url_to_fs(address)
    return sorted(path[len(root) :] for path in files.find(root)) if files.exists(root) else []


def test_addresses_are_told_from_paths(tmp_path: Path) -> None:
    assert address_of(Path("s3://bucket/a/b.png")) == "s3://bucket/a/b.png"  # a path has swallowed a slash
    assert address_of("gs://bucket/a/") == "gs://bucket/a"
    assert address_of(Path("file:///a/b")) == "file:///a/b"
    for path in ("a/b", "/a/b", "C:\\a", "C:/a", "c:", "a:b", ".", ""):
        assert address_of(path) is None
    (tmp_path / "s3:").mkdir()
    assert address_of(f"{tmp_path}/s3:/a") is None


def test_only_what_differs_is_fetched(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files, _ = url_to_fs(store)
    fetched: list[str] = []
    get = type(files).get_file

    def counted(self: Any, remote: str, local: str, **given: Any) -> None:
        fetched.append(remote.rpartition("/")[2])
        get(self, remote, local, **given)

    monkeypatch.setattr(type(files), "get_file", counted)
    for name in ("a.txt", "sub/b.txt", "c.txt"):
        put(f"{store}/in/{name}", name)
    with local_copies([f"{store}/in", "beside"]) as (copy, beside):
        assert beside == Path("beside")
        assert {p.name: p.read_text() for p in copy.rglob("*.txt")} == {
            n: m for n, m in (("a.txt", "a.txt"), ("b.txt", "sub/b.txt"), ("c.txt", "c.txt"))
        }
    assert sorted(fetched) == ["a.txt", "b.txt", "c.txt"]
    put(f"{store}/in/a.txt", "another")
    files.rm_file(url_to_fs(f"{store}/in/c.txt")[1])
    with local_copies([f"{store}/in"]) as (copy,):
        assert (copy / "a.txt").read_text() == "another"
        assert not (copy / "c.txt").exists()
        (copy / "sub" / "b.txt").unlink()
        (copy / "a.txt").write_text("the third")
        (copy / "new").mkdir()
        (copy / "new" / "d.txt").write_text("new")
    assert fetched[3:] == ["a.txt"]
    assert there(f"{store}/in") == ["/a.txt", "/new/d.txt"]
    assert got(f"{store}/in/a.txt") == "the third"
    with local_copies([f"{store}/in"]):
        pass
    assert len(fetched) == 4  # what was sent is not fetched back


def test_a_file_that_is_gone_here_is_fetched_again(store: str) -> None:
    put(f"{store}/a.txt", "a")
    with local_copies([f"{store}/a.txt"]) as (copy,):
        assert copy.read_text() == "a"
    copy.unlink()
    with local_copies([f"{store}/a.txt"]) as (copy,):
        assert copy.read_text() == "a"


def test_after_an_error_the_copy_stays_and_nothing_is_sent(store: str) -> None:
    def killed() -> None:
        with local_copies([f"{store}/out.txt"]) as (copy,):
            copy.write_text("half")
            raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        killed()
    assert there(store) == []
    with local_copies([f"{store}/out.txt"]) as (copy,):
        assert copy.read_text() == "half"  # it goes on
    assert got(f"{store}/out.txt") == "half"


def test_what_another_wrote_meanwhile_is_not_overwritten(store: str) -> None:
    def both_write(name: str) -> None:
        with local_copies([f"{store}/{name}"]) as (copy,):
            copy.write_text("mine")
            put(f"{store}/{name}", "theirs, of another size")

    put(f"{store}/m.txt", "old")
    with pytest.raises(InputError, match=r"m\.txt was changed in the store by another, and here, in .*m\.txt"):
        both_write("m.txt")
    assert got(f"{store}/m.txt") == "theirs, of another size"
    (copy,) = Path(os.environ["PICKGLASS_COPIES"]).glob("*/m.txt")
    assert copy.read_text() == "mine"
    with pytest.raises(InputError, match="keep one of the two"), local_copies([f"{store}/m.txt"]):
        pass
    copy.unlink()
    with local_copies([f"{store}/m.txt"]) as (copy,):
        assert copy.read_text() == "theirs, of another size"
    with pytest.raises(InputError, match="changed in the store"):
        both_write("n.txt")
    (copy,) = Path(os.environ["PICKGLASS_COPIES"]).glob("*/n.txt")
    put(f"{store}/n.txt", "mine")  # as a command that was killed after it had sent the file
    with local_copies([f"{store}/n.txt"]):
        copy.write_text("mine, and more")
    assert got(f"{store}/n.txt") == "mine, and more"


def test_no_name_of_a_store_leads_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    put("memory://hostile/a.txt", "a")
    for name in ("../outside.txt", "a/../../outside.txt", "..\\outside.txt"):
        monkeypatch.setattr(
            type(memory), "find", lambda self, root, name=name, **_: {f"{root}/{name}": {"size": 1, "created": 0}}
        )
        with pytest.raises(InputError, match="cannot be that of a file here"), local_copies(["memory://hostile"]):
            pass
    assert not [path for path in tmp_path.rglob("outside*")]
    for address in ("memory://", "s3://", "memory://.."):
        with (
            pytest.raises(InputError, match=r"expected a file or a folder in the store|nothing reads"),
            local_copies([address]),
        ):
            pass
    memory.store.clear()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(InputError, match=r"nope://a/b: nothing reads such an address .*s3fs, gcsfs"),
        local_copies(["nope://a/b"]),
    ):
        pass
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "exists", lambda *_: 1 / 0)
    with (
        pytest.raises(DataError, match=r"memory://a/b: cannot be read \(ZeroDivisionError.*the network and the rights"),
        local_copies(["memory://a/b"]),
    ):
        pass
    for name in [name for name in sys.modules if name.partition(".")[0] == "fsspec"]:
        monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(MissingExtra, match=r"address memory://a/b .*pickglass\[cloud\]"),
        local_copies(["memory://a/b"]),
    ):
        pass


# -- commands ----------------------------------------------------------------------------------------------------------


def command(*words: str) -> Any:
    result = CliRunner().invoke(app, [*words, "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.slow
def test_commands_from_the_first_image_to_the_results(store: str, small_dataset: Path) -> None:
    files, root = url_to_fs(f"{store}/bottle")
    files.put(f"{small_dataset}/", f"{root}/", recursive=True)
    least = ("--layers", "stage2", "--size", "32", "--engine", "torch")
    fitted = command("fit", f"{store}/bottle", "-o", f"{store}/models/m.safetensors", *least)
    assert fitted.exit_code == 0
    assert there(f"{store}/models") == ["/m.safetensors"]
    with pytest.raises(InputError, match="exists already"):
        command("fit", f"{store}/bottle", "-o", f"{store}/models/m.safetensors", *least)
    model = f"{store}/models/m.safetensors"
    judged = command("predict", model, f"{store}/bottle/test", "-o", f"{store}/found", "--engine", "torch")
    assert judged.exit_code == 0
    assert "/0001-00.heat.png" in there(f"{store}/found")
    before = got_bytes(model)
    assert command("threshold", model, "--value", "1.5").exit_code == 0
    assert got_bytes(model) != before
    sizes = ("--methods", "patchcore", "--layers", "stage2", "--engine", "torch", "--csv", f"{store}/s.csv")
    for n in (1, 2):
        asked = ("--sizes", ",".join(["32", "48"][:n]), "-o", f"{store}/study.sqlite", *sizes)
        studied = json.loads(command("study", f"{store}/bottle", *asked).stdout)
        assert studied["done"] == n, studied
    assert got(f"{store}/s.csv").count("\n") == 3
    with pytest.raises(PickglassError, match="images that arrive there are not seen"):
        command("watch", model, f"{store}/found", "--once")


def got_bytes(address: str) -> bytes:
    with fsspec.open(address) as file:
        return bytes(file.read())


@pytest.mark.slow
def test_what_ends_with_exit_code_1_is_sent_and_an_error_names_the_copy(store: str, small_dataset: Path) -> None:
    files, root = url_to_fs(f"{store}/data")
    files.put(f"{small_dataset}/train/good/", f"{root}/", recursive=True)
    put(f"{store}/data/broken.png", "no image")
    least = ("--layers", "stage2", "--size", "32", "--engine", "torch")
    command("fit", str(small_dataset), "-o", f"{store}/m.safetensors", *least)
    assert command("predict", f"{store}/m.safetensors", f"{store}/data", "-o", f"{store}/found").exit_code == 1
    assert there(f"{store}/found")
    result = CliRunner().invoke(app, ["predict", f"{store}/n.safetensors", f"{store}/data"])
    assert isinstance(result.exception, PickglassError)
    assert f"note: {store}/n.safetensors was worked on in " in result.output
    assert "PICKGLASS_COPIED" not in os.environ


def fits(task: str) -> Iterator[str]:
    """A task on another machine reads what the command was given, and writes into its folder."""
    data, models = (path for path in Path(os.environ["PICKGLASS_COPIES"]).glob("*/*") if path.is_dir())
    if data.name == "models":
        data, models = models, data
    (models / f"{task}.txt").write_text((data / "a.txt").read_text())
    yield task


def test_tasks_on_other_machines_have_copies_of_their_own(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store.startswith("memory"):
        pytest.skip("no other machine sees it")
    put(f"{store}/data/a.txt", "a")
    with local_copies([f"{store}/data", f"{store}/models", f"{store}/s.sqlite"]) as (_, _, study):
        study.write_text("half")
        here = {name: value for name, value in os.environ.items() if name.startswith("PICKGLASS_")}
        with monkeypatch.context() as worker:  # whose environment is its own
            worker.setattr(os, "environ", {})
            there_too = {**here, "PICKGLASS_COPIES": str(tmp_path / "other machine")}
            assert list(_on_cluster(fits, there_too, "bottle")) == ["bottle"]
        assert there(store) == ["/data/a.txt", "/models/bottle.txt"]  # the study is the asking command's
    assert there(store) == ["/data/a.txt", "/models/bottle.txt", "/s.sqlite"]
