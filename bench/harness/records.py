"""Records: one line of JSON a case, with the commit, the date, the machine, the versions and the weights behind it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
MEASURED = "measured"

Record = dict[str, Any]
"""What a case is (its key), what was found, and under ``measured`` what it was measured with."""


def read(file: Path) -> list[Record]:
    """Return the records of a file, in their order; a last line that a killed run left unfinished is left out."""
    if not file.exists():
        return []
    records = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if not line.endswith("\n"):
                continue
            raise SystemExit(f"{file}, line {number}: no JSON: {line[:60]!r}") from error
    return records


def append(file: Path, record: Record) -> None:
    """Add a record as a line of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = file.read_bytes() if file.exists() else b""
    if content and not content.endswith(b"\n"):
        file.write_bytes(content[: content.rfind(b"\n") + 1])  # what a killed run left
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def find(records: Sequence[Record], key: Mapping[str, Any]) -> Record | None:
    """Return the record of a case, None if there is none."""
    wanted = json.loads(json.dumps(key))
    return next((row for row in records if all(row.get(name) == value for name, value in wanted.items())), None)


def stamp(weights: Sequence[str], arguments: Mapping[str, Any], took_s: float) -> Record:
    """Tell what a case was measured with; nothing of it names a host, a user or a folder.

    Args:
        weights: names of the backbones whose default weights were used.
        arguments: as given to the suite; of a path its last part is kept.
        took_s: seconds of the whole case.
    """
    from pickglass.app.bench.machine import about_machine

    machine = about_machine()
    return {
        "commit": commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu": machine["cpu"],
        "cores": machine["cores"],
        "threads": machine["threads"],
        "load": machine["load"],  # of others, too: above 0.5 times are worth little, ratios of one run more
        "python": machine["python"],
        "versions": machine["versions"],
        "weights": {name: digest for name in weights if (digest := weights_hash(name)) is not None},
        "arguments": {name: _without_folders(value) for name, value in arguments.items() if value is not None},
        "took_s": round(took_s, 1),
    }


def commit() -> str:
    """Return the commit of the working tree, with ``+`` where src or bench differ from it; "" outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "src", "bench/*.py", "bench/harness", "bench/peer")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def weights_hash(backbone: str) -> str | None:
    """Return the first 16 digits of the SHA-256 of a backbone's default weights, None where they are not here."""
    from pickglass.errors import WeightsMissing
    from pickglass.features.backbones.registry import find_backbone
    from pickglass.features.backbones.weights import find_weights

    try:
        return hashlib.sha256(find_weights(find_backbone(backbone)).read_bytes()).hexdigest()[:16]
    except WeightsMissing:
        return None


def _without_folders(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_without_folders(one) for one in value]
    return value
