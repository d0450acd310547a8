"""List weights of backbones, fetch them, and carry them to a machine without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pickglass.app.results import WeightsResult, WeightsRow
from pickglass.data.files import alone, remove_leftovers, written_whole
from pickglass.errors import DataError, InputError
from pickglass.features.backbones.fetching import agrees, fetch, home, pinned, sha256
from pickglass.features.backbones.registry import Published, catalogue, published_as
from pickglass.features.backbones.weights import lookup

__all__ = ["Action", "weights"]

Action = Literal["list", "get", "pack", "import"]
Progress = Callable[[str, int, int], None]

_MANIFEST = "pickglass-weights.json"


def weights(
    action: Action,
    names: Sequence[str] = (),
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> WeightsResult:
    """Do what ``pickglass weights ACTION`` does.

    Args:
        action: ``"list"`` says what is here and what can be fetched; ``"get"`` fetches what is not here; ``"pack"``
            copies what is here into a folder; ``"import"`` takes over the files of such a folder.
        names: ``BACKBONE`` or ``BACKBONE:WEIGHTS`` of each file; of ``"list"`` none means all of the table, of
            ``"import"`` all of the folder.
        folder: that of ``"pack"``, to write, and of ``"import"``, to read.
        progress: called with (stage, done, total).

    Raises:
        UnknownName: no such backbone.
        InputError: no such weights, what stands in the way of fetching them, or files that are not what they were.
        DataError: the folder to import does not hold what ``"pack"`` wrote.
    """
    if action not in get_args(Action):
        raise InputError(f"action={action!r}: expected one of {', '.join(get_args(Action))}")
    if action in ("get", "pack") and not names:
        raise InputError(
            f"name the weights to {action}, e.g. resnet18 or resnet50:swav; 'pickglass weights list' has all"
        )
    if (folder is None) == (action in ("pack", "import")):
        raise InputError(f"folder={folder!r}: 'pack' and 'import' take a folder, and no other action does")
    if action == "import":
        return _imported(Path(str(folder)), names)
    wanted = list(catalogue()) if not names else [published_as(name) for name in names]
    if action == "list":
        return {"action": action, "weights": [_row(one, lookup(one)) for one in wanted], "folder": None}
    if action == "get":
        remove_leftovers(home())
        return {"action": action, "weights": [_got(one, progress) for one in wanted], "folder": None}
    return _packed(wanted, Path(str(folder)))


def _row(one: Published, path: Path | None, whole: str | None = None, verified: bool | None = None) -> WeightsRow:
    noted = pinned(one.name).get("sha256")
    return {
        "name": one.name,
        "file": one.file,
        "path": None if path is None else str(path),
        "fetchable": one.fetchable,
        "megabytes": one.megabytes if path is None else round(path.stat().st_size / 1e6, 1),
        "licence": one.licence,
        "source": one.source,
        "digest": one.digest or (None if noted is None else f"sha256:{noted}"),
        "sha256": whole,
        "verified": verified,
    }


def _got(one: Published, progress: Progress | None) -> WeightsRow:
    path = lookup(one)
    if path is None:
        fetched = fetch(one, progress)
        return _row(one, fetched.path, fetched.sha256, fetched.verified)
    known = one.digest is not None
    if known and not agrees(path, str(one.digest)):
        raise InputError(
            f"weights {one.name}: {path} is there, but is not what {one.source} publishes ({one.digest}): "
            "delete it, and fetch it again"
        )
    return _row(one, path, sha256(path), known)


def _packed(wanted: Iterable[Published], folder: Path) -> WeightsResult:
    found = [(one, lookup(one)) for one in wanted]
    absent = [one.name for one, path in found if path is None]
    if absent:
        raise InputError(f"not here: {', '.join(absent)}. First: pickglass weights get {' '.join(absent)}")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / _MANIFEST):
        rows, manifest = [], _manifest(folder) if (folder / _MANIFEST).is_file() else {}
        for one, path in found:
            if path is None:
                continue
            whole = _copied(path, folder / one.file)
            manifest[one.name] = {"file": one.file, "sha256": whole, "licence": one.licence, "source": one.source}
            rows.append(_row(one, folder / one.file, whole, None if one.digest is None else agrees(path, one.digest)))
        with written_whole(folder / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return {"action": "pack", "weights": rows, "folder": str(folder)}


def _imported(folder: Path, names: Sequence[str]) -> WeightsResult:
    manifest = _manifest(folder)
    missing = [name for name in names if name not in manifest]
    if missing:
        raise InputError(f"{folder} does not hold {', '.join(missing)}; it holds {', '.join(manifest)}")
    chosen = list(names or manifest)
    for name in chosen:  # nothing is taken over before all of it is known to be sound
        file = folder / manifest[name]["file"]
        if not file.is_file() or sha256(file) != manifest[name]["sha256"]:
            what = "is not what was packed" if file.is_file() else "is missing"
            raise DataError(f"{file} {what}: copy the folder again")
    target = home()
    rows = []
    for name in chosen:
        one, file = published_as(name), folder / manifest[name]["file"]
        if one.digest is not None and not agrees(file, one.digest):
            raise DataError(f"{file} is not what {one.source} publishes ({one.digest}): get it anew")
        try:
            target.mkdir(parents=True, exist_ok=True)
            whole = _copied(file, target / one.file)
        except OSError as error:
            raise InputError(
                f"weights {name}: cannot write to {target} ({error.strerror}): set PICKGLASS_WEIGHTS to a folder that "
                "you can write"
            ) from error
        rows.append(_row(one, target / one.file, whole, one.digest is not None))
    return {"action": "import", "weights": rows, "folder": str(target)}


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / _MANIFEST
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return {
            # a name alone, so that nothing outside of the folder is read
            str(name): {**row, "file": Path(row["file"]).name, "sha256": str(row["sha256"])}
            for name, row in stored.items()
        }
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no {_MANIFEST}: expected a folder that 'pickglass weights pack' wrote"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__}): copy the folder again") from error


def _copied(source: Path, target: Path) -> str:
    """Copy a file whole or not at all; return its SHA-256."""
    if source.resolve() != target.resolve():
        with written_whole(target) as temporary:
            shutil.copyfile(source, temporary)
    return sha256(target)
