"""What do commands say when the disk is full, when it is read-only, and when an image vanishes meanwhile?

    python -m bench.faults [COMMAND ...]

Runs the commands of :mod:`bench.kills` in a folder on a small file system in memory (it has to be allowed to mount
one). ``full``: nothing but some kilobytes are free, a few more for each try, so that the disk is full at another step.
``read-only``: nothing can be written. ``vanished``: an image is deleted when the one before it is read; the data are
on a file system with room. A try is sound if the command ends well, or says in one line of under 500 characters what
is wrong (exit code 1 or 2), and if what was there before is unchanged and nothing is left beside it. Prints a JSON line
for each command; the exit code is 1 where a try is not sound.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.kills import COMMANDS, Command, Ended, Materials, left, run, warm

__all__ = ["fault_of", "full", "mounted", "read_only", "vanished"]

LONGEST = 500  # characters of what is said
FREE_KB = (8, 40, 200, 1000)
OLD = b"what was there before"


@contextmanager
def mounted(folder: Path, kilobytes: int) -> Iterator[None]:
    """Mount an empty file system of some kilobytes in a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fault_of(ended: Ended, before: Mapping[str, Any], after: Mapping[str, Any], partly: bool) -> str | None:
    """Say what is wrong with the end of a command; None: nothing.

    Args:
        ended: the command.
        before, after: what lay in its folder.
        partly: it may have written something new, each file whole.
    """
    if "Traceback" in ended.output:
        return f"a traceback: {ended.output.strip().splitlines()[-1][:200]}"
    if ended.code not in (0, 1, 2):
        return f"exit code {ended.code}: {ended.output.strip()[-200:]}"
    said = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    if ended.code == 2 and (len(said) != 1 or len(said[0]) > LONGEST):
        return f"not one short line: {ended.output.strip()[-300:]}"
    changed = [name for name, value in before.items() if name in after and after[name] != value]
    names = {Path(name).name for name in after}  # also of files that were moved, as they are to be
    gone = [name for name in before if Path(name).name not in names]
    if gone or (changed and ended.code == 2 and not partly):
        return f"changed: {changed}, gone: {gone}"
    new = sorted(set(after) - set(before))
    hidden = [name for name in new if "pickglass-tmp" in name or name.startswith("tmp/")]
    if hidden:
        return f"left: {hidden}"
    return f"half written: {new}" if new and ended.code == 2 and not partly else None


def _kept(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in left(folder).items() if not name.startswith("ballast")}


def full(given: Materials, command: Command, free_kb: int) -> tuple[int, str | None]:
    """Run a command on a disk with so much room; returns its exit code and the fault."""
    with tempfile.TemporaryDirectory(dir=given.folder) as outer:
        folder = Path(outer) / "run"
        folder.mkdir()
        with mounted(folder, 40_000):
            _begin(given, command, folder)
            free = shutil.disk_usage(folder).free
            (folder / "ballast").write_bytes(b"\0" * max(0, free - free_kb * 1024))
            before = _kept(folder)
            ended = run(command.argv(given), folder, setup=command.setup(given))
            (folder / "ballast").unlink(missing_ok=True)  # a database may need room to be read
            partly = _goes_on(command)
            return ended.code, fault_of(ended, before, _kept(folder), partly)


def read_only(given: Materials, command: Command) -> tuple[int, str | None]:
    """Run a command in a folder that nobody can write; returns its exit code and the fault."""
    with tempfile.TemporaryDirectory(dir=given.folder) as outer:
        folder = Path(outer) / "run"
        folder.mkdir()
        with mounted(folder, 40_000):
            _begin(given, command, folder)
            before = _kept(folder)
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            ended = run(command.argv(given), folder, setup=command.setup(given))
            return ended.code, fault_of(ended, before, _kept(folder), False)


def vanished(given: Materials, command: Command) -> tuple[int, str | None]:
    """Run a command while one of its images is deleted; returns its exit code and the fault."""
    with tempfile.TemporaryDirectory(dir=given.folder) as outer:
        folder = Path(outer) / "run"
        (folder / "tmp").mkdir(parents=True)
        command.begin(given, folder)
        moved = {place: folder / "in" / place for place in ("data", "more", "root", "photos")}
        argv = command.argv(given)
        for place, copy in moved.items():
            if any(part.startswith(str(given.folder / place)) for part in argv):
                shutil.copytree(given.folder / place, copy)
                argv = [part.replace(str(given.folder / place), str(copy)) for part in argv]
        setup = f"{command.setup(given)}\n{_VANISHES}"
        before = {name: value for name, value in left(folder).items() if not name.endswith("3.png")}
        ended = run(argv, folder, setup=setup)
        return ended.code, fault_of(ended, before, left(folder), True)


_VANISHES = """
import os, sys
def vanish(event, args):
    if event == "open" and str(args[0]).endswith("2.png"):
        other = str(args[0])[:-5] + "3.png"
        if os.path.exists(other):
            os.remove(other)
sys.addaudithook(vanish)
"""


def _begin(given: Materials, command: Command, folder: Path) -> None:
    (folder / "tmp").mkdir()
    command.begin(given, folder)
    argv = command.argv(given)
    if "-o" in argv and argv[0] not in ("study", "convert", "predict"):
        name = argv[argv.index("-o") + 1]
        if "." in name:
            (folder / name).write_bytes(OLD)


def _goes_on(command: Command) -> bool:
    """Say whether a command leaves what is done, to go on with it, when it cannot do all."""
    return (
        command.text.split()[0] in ("study", "watch", "weights", "predict", "distill", "test")
        or "--method" in command.text
    )


def forced(command: Command) -> Command:
    """Let a command replace what is there, where it would refuse to."""
    replaces = command.text.split()[0] in ("fit", "distill", "export", "update")
    return Command(f"{command.text} --force", command.begin, command.setup) if replaces else command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", choices=[*COMMANDS, []], default=[])
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    warm()
    wrong = False
    with tempfile.TemporaryDirectory() as made:
        given = Materials(Path(made))
        for name in asked.commands or COMMANDS:
            command = forced(COMMANDS[name])
            tries = {f"full {free} kB": full(given, command, free) for free in FREE_KB}
            tries |= {"read-only": read_only(given, command), "vanished": vanished(given, command)}
            faults = {what: fault for what, (_, fault) in tries.items() if fault is not None}
            codes = {what: code for what, (code, _) in tries.items()}
            wrong |= bool(faults)
            print(json.dumps({"command": name, "codes": codes, "faults": faults}), flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
