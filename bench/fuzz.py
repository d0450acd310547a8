"""Feed damaged and hostile files to every reader of model files, and count what comes of each.

    python -m bench run fuzz [--cases 10000] [--seed 0] [--kind model ...] [--keep FOLDER]

Each case is a file that was written by pickglass and then changed: cut short, bits flipped, stretches replaced; or
well-formed, with a value, a tensor or a graph that nobody expects. It is read, and where it can be read, used: the
model judges an image. A case is sound if it works, or ends in an error of pickglass with a message of one line under
600 characters. It is a fault if it ends in anything else, takes over 10 s, makes the process grow by over 1 GB, or
leaves a file behind. Images, masks and data sets are fuzzed in ``tests/test_fuzz.py`` and
``tests/test_fuzz_layouts.py``.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import signal
import sqlite3
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

import pickglass as pg
from bench import harness
from pickglass.app.info import info
from pickglass.app.models import load
from pickglass.app.study.cells import Cell, Plan
from pickglass.app.study.store import Outcome, StudyStore
from pickglass.app.threshold import ThresholdRequest, threshold
from pickglass.app.watch.journal import Entry, Identity, Journal
from pickglass.data import load_dataset
from pickglass.errors import DataError, PickglassError
from pickglass.runtime.export_file import header_of_export, write_export
from pickglass.testing import textures

__all__ = ["KINDS", "Case", "Fault", "Kind", "cases_of", "run_case"]

SECONDS = 10
GROWTH_MB = 1000
LONGEST = 600  # characters of a message
HUGE = 10**9

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3.5, -1e308, 1e308, float("nan"), float("inf"), 2**40, 2**63, -(2**63), 10**30,
    "", "x", "x" * 5000, "../../../../etc/passwd", "\0", "\udcff", "<script>", [], [[]], {}, {"a": 1}, [None],
    [1, 2, 3], ["x"] * 1000, [[[[[[[[]]]]]]]], [1e308, -1e308], [HUGE, HUGE], [-1, -1], [0, 0], "area:99999999",
)  # fmt: skip
"""What stands in a header where something else is expected."""


class Case(NamedTuple):
    """A file, the way it was changed, and its bytes."""

    kind: str
    change: str
    content: bytes


class Fault(NamedTuple):
    """What a case did that none may do."""

    case: Case
    what: str


class Kind(NamedTuple):
    """A kind of file: its suffix, its sound bytes, those who know its structure, and its reader."""

    suffix: str
    sound: bytes
    changes: Callable[[bytes, np.random.Generator], tuple[str, bytes]]
    read: Callable[[Path], object]


# -- changes that know nothing of the structure ------------------------------------------------------------------------


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Cut short, flip bits, or replace a stretch; half of the changes hit the first kilobytes."""
    reach = len(content) if rng.random() < 0.5 else min(len(content), 4096)
    kind = int(rng.integers(6))
    if kind == 0:
        at = int(rng.integers(reach))
        return f"cut at {at}", content[:at]
    if kind == 1:
        bits = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, reach, int(rng.integers(1, 9)))
        for place in places:
            bits[place] ^= 1 << rng.integers(8)
        return f"bits flipped at {places.tolist()}", bits.tobytes()
    a, b = sorted(rng.integers(0, reach, 2).tolist())
    middle = (rng.bytes(b - a), b"", content[a:b] * 2, b"\0" * (b - a))[kind - 2]
    what = ("noise in", "without", "doubled", "zeros in")[kind - 2]
    return f"{what} {a} to {b}", content[:a] + middle + content[b:]


# -- changes of a header -----------------------------------------------------------------------------------------------


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from paths_of(inner, (*at, key))


def changed_value(header: Any, rng: np.random.Generator) -> tuple[str, Any]:
    """Return the header with one value replaced, left out or added."""
    new = copy.deepcopy(header)
    paths = list(paths_of(new))
    path = paths[int(rng.integers(len(paths)))]
    place = new
    for key in path[:-1]:
        place = place[key]
    name = ".".join(map(str, path))
    if rng.random() < 0.15:
        del place[path[-1]]
        return f"{name} left out", new
    value = VALUES[int(rng.integers(len(VALUES)))]
    if rng.random() < 0.1 and isinstance(place, dict):
        place["unheard_of"] = value
        return f"{name} beside unheard_of={value!r:.60}", new
    place[path[-1]] = value
    return f"{name}={value!r:.60}", new


# -- model files of the lab --------------------------------------------------------------------------------------------

_DTYPES = ("F32", "F16", "BF16", "F64", "I64", "I32", "I8", "U8", "BOOL", "F8_E4M3", "X")


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON header of a safetensors file and its data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    """Make a safetensors file, without a checksum, as a hostile one may have none."""
    about = json.loads(header["__metadata__"]["pickglass"])
    if isinstance(about, dict):
        about.pop("sha256", None)
    header["__metadata__"] = {"pickglass": json.dumps(about)}
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def changed_model(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change a model file by its structure: a value of the header, a tensor's kind, shape, name or numbers."""
    header, data = split(content)
    names = [name for name in header if name != "__metadata__"]
    name = names[int(rng.integers(len(names)))]
    about = header[name]
    kind = int(rng.integers(8))
    if kind < 4:
        what, new = changed_value(json.loads(header["__metadata__"]["pickglass"]), rng)
        header["__metadata__"] = {"pickglass": json.dumps(new)}
        return f"header: {what}", joined(header, data)
    if kind == 4:
        begin, end = about["data_offsets"]
        size = {"F32": 4, "F16": 2, "I64": 8}.get(about["dtype"])
        value = float(rng.choice([float("nan"), float("inf"), -1e38, 0.0]))
        if size is not None and about["dtype"] != "I64":
            form = "<f" if size == 4 else "<e"
            number = struct.pack(form, max(min(value, 6e4), -6e4) if size == 2 and np.isfinite(value) else value)
        else:
            number = (-1).to_bytes(end - begin or 1, "little", signed=True)
            return f"{name}: all bits set", joined(header, data[:begin] + b"\xff" * (end - begin) + data[end:])
        return f"{name}: all {value}", joined(header, data[:begin] + number * ((end - begin) // size) + data[end:])
    if kind == 5:
        about["shape"] = [
            [0],
            [],
            [*about["shape"], 1],
            [1, *about["shape"]],
            about["shape"][::-1],
            [HUGE, HUGE],
            [-1],
        ][int(rng.integers(7))]
        return f"{name}: shape {about['shape']}", joined(header, data)
    if kind == 6:
        about["dtype"] = _DTYPES[int(rng.integers(len(_DTYPES)))]
        return f"{name}: kind {about['dtype']}", joined(header, data)
    if rng.random() < 0.5:
        header[rng.choice(["head.unheard_of", "backbone.x", "x", "reference.x", "naming.x", ""])] = header.pop(name)
        return f"{name}: another name", joined(header, data)
    del header[name]  # its bytes stay: the format forbids gaps
    return f"{name}: left out", joined(header, data)


def used(path: Path) -> object:
    """Load a model, say what it is, judge an image, and set its threshold anew."""
    info(path)
    model = load(path)
    found = model.predict(IMAGES, batch=2, engine="onnxruntime" if path.suffix == ".onnx" else "torch")
    for i in range(len(found)):
        found.verdict(i)
    threshold(path, None, ThresholdRequest("fixed", value=1.0))
    return found.scores


IMAGES = textures(2, 72, seed=3)


# -- exported files ----------------------------------------------------------------------------------------------------


def changed_export(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change an exported file by its structure; its checksum is right, as that of a hostile one would be."""
    header = header_of_export(memoryview(content), "sound")
    if rng.random() < 0.6:
        what, new = changed_value(header, rng)
        return f"header: {what}", _with_header(content, new)
    what, graph = _changed_graph(content, rng)
    return f"graph: {what}", _with_header(graph, header)


def _with_header(graph: bytes, header: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "changed.onnx"
        write_export(target, graph, {key: value for key, value in header.items() if key not in ("format", "sha256")})
        return target.read_bytes()


def _changed_graph(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(content)
    graph = model.graph
    tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
    node = graph.node[int(rng.integers(len(graph.node)))]
    kind = int(rng.integers(12))
    what = "nothing"
    if kind == 0:
        what = f"{tensor.name}: external data"
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        where = ["../../../../../../etc/passwd", "/etc/passwd", "weights.bin", "/dev/zero"][int(rng.integers(4))]
        for key, value in (("location", where), ("offset", "0"), ("length", "16")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
    elif kind == 1:
        what = "a bomb of repeated nodes"
        value = graph.node[0].input[0]
        for i in range(20_000):
            graph.node.append(helper.make_node("Concat", [value, value], [f"bomb{i}"], axis=0))
            value = f"bomb{i}" if i < 60 else value
    elif kind == 2:
        what = "a constant of 4 TB"
        graph.initializer.append(helper.make_tensor("many", TensorProto.INT64, [1], [10**12]))
        graph.node.append(helper.make_node("ConstantOfShape", ["many"], ["bomb"]))
        graph.node.append(helper.make_node("ReduceMax", ["bomb"], ["most"], keepdims=1))
        graph.node.append(helper.make_node("Add", ["most", "most"], ["more"]))
        graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    elif kind == 3:
        what = f"{node.op_type}: an operation that does not exist"
        node.op_type = "Unheard"
    elif kind == 4:
        what = f"{node.op_type}: another domain"
        node.domain = "com.hostile"
    elif kind == 5:
        what = f"{tensor.name}: another shape"
        tensor.dims[:] = [HUGE, HUGE]
    elif kind == 6:
        what = f"{tensor.name}: not a number"
        if tensor.data_type == TensorProto.FLOAT:
            tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()
    elif kind == 7:
        what = "an output less"
        del graph.output[int(rng.integers(len(graph.output)))]
    elif kind == 8:
        what = "an output of another name"
        graph.output[int(rng.integers(len(graph.output)))].name = "unheard_of"
    elif kind == 9:
        what = "the outputs in another order"
        first, second = graph.output[0].name, graph.output[1].name
        graph.output[0].name, graph.output[1].name = second, first
    elif kind == 10:
        what = f"{node.op_type}: without inputs"
        del node.input[:]
    else:
        what = "an endless loop"
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["go_on"])],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            ],
            [helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])],
        )
        graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
        graph.node.append(helper.make_node("Loop", ["", "yes"], [], body=body))
    return what, model.SerializeToString()


# -- tables, journals, masks -------------------------------------------------------------------------------------------


def changed_text(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change a CSV file: a cell, a line, its encoding."""
    lines = content.decode().splitlines()
    at = int(rng.integers(len(lines)))
    cells = lines[at].split(",")
    column = int(rng.integers(len(cells)))
    value = ["", '"', "\0", "x" * 200_000, "nan", "1e999", "=1+1", "../../../etc/passwd", "\udcff", "2"][
        int(rng.integers(10))
    ]
    cells[column] = value
    lines[at] = ",".join(cells)
    return f"line {at}, column {column}: {value!r:.40}", "\n".join(lines).encode("utf-8", "surrogateescape")


def changed_database(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change an SQLite file: a value of another type, a table that is gone or empty or has other columns."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "changed.sqlite"
        file.write_bytes(content)
        with closing(sqlite3.connect(file, isolation_level=None)) as database:
            database.execute("PRAGMA writable_schema = ON")
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            table = names[int(rng.integers(len(names)))]
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            column = columns[int(rng.integers(len(columns)))]
            value = [None, b"\xff\xfe", "x", "{", -1, 1e308, 2**62, "[]"][int(rng.integers(8))]
            changes: list[tuple[str, tuple[Any, ...]]] = [
                (f"UPDATE OR IGNORE {table} SET {column} = ?", (value,)),
                (f"DROP TABLE {table}", ()),
                (f"DELETE FROM {table}", ()),
                (f"ALTER TABLE {table} RENAME COLUMN {column} TO other", ()),
                (f"PRAGMA user_version = {int(rng.integers(100))}", ()),
                ("PRAGMA application_id = 77", ()),
                (f"UPDATE sqlite_master SET sql = 'CREATE TABLE {table} (x)' WHERE name = '{table}'", ()),
            ]
            statement, values = changes[int(rng.integers(len(changes)))]
            with suppress(sqlite3.Error):  # a column that may not be NULL stays as it is
                database.execute(statement, values)
        return f"{statement} {values}", file.read_bytes()


def _table(path: Path) -> object:
    return [row.path for row in load_dataset(path).table]


def _journal(path: Path) -> object:
    with closing(Journal(path, path.parent)) as journal:
        journal.record([_ENTRY])
        return journal.after(0, 100), journal.unsorted("to sort"), journal.last(), journal.output("csv")


def _study(path: Path) -> object:
    store = StudyStore(path, create=False)
    with closing(store.connection):
        rows = store.rows()
        store.export(path.with_name("case.export.csv"))
        store.enter(_PLAN)
        for cell in store.claim([str(row["key"]) for row in rows]):
            store.write(Outcome(cell.key, "failed", {"error": "fuzz"}))
        return rows, store.pictures("a"), store.fields("b")


_ENTRY = Entry(Identity("a.png", 10, 1), {"path": "a.png", "score": 1.0}, "good")
_CELL = Cell("/data", "part", "patchcore", "efficientnet_lite0", ("stage2",), "default", 64, 0)
_PLAN = Plan((_CELL,), {}, (), {("/data", "part"): (10, 5)})


def made_kinds(folder: Path, read_in: Path) -> dict[str, Kind]:
    """Make a sound file of each kind; a journal belongs to the folder in which it is read."""
    detector = pg.PatchCore(size=64, ratio=0.02).fit(textures(12, 72), observers=[pg.DriftSample()])
    model = detector.save(folder / "model.safetensors")
    detector.export(folder / "model.onnx", textures(4, 72))
    tiled = pg.PaDiM(size=64, dims=8).tiled(tile=48, stride=16).fit(textures(12, 72)).save(folder / "tiled.safetensors")
    (folder / "table.csv").write_text("path,label,defect,group\n" + "".join(f"{i}.png,{i % 2},,a\n" for i in range(9)))
    with closing(Journal(folder / "journal.sqlite", read_in)) as journal:
        journal.record([_ENTRY])
    store = StudyStore(folder / "study.sqlite")
    with closing(store.connection):
        store.enter(_PLAN)
    return {
        "model": Kind(".safetensors", model.read_bytes(), changed_model, used),
        "tiled": Kind(".safetensors", tiled.read_bytes(), changed_model, used),
        "export": Kind(".onnx", (folder / "model.onnx").read_bytes(), changed_export, used),
        "table": Kind(".csv", (folder / "table.csv").read_bytes(), changed_text, _table),
        "journal": Kind(".sqlite", (folder / "journal.sqlite").read_bytes(), changed_database, _journal),
        "study": Kind(".sqlite", (folder / "study.sqlite").read_bytes(), changed_database, _study),
    }


KINDS = ("model", "tiled", "export", "table", "journal", "study")


# -- running -----------------------------------------------------------------------------------------------------------


def cases_of(name: str, kind: Kind, n: int, seed: int) -> Iterator[Case]:
    """Yield n cases: one in four knows nothing of the structure."""
    rng = np.random.default_rng([seed, sum(name.encode())])
    for i in range(n):
        change, content = (damaged if i % 4 == 0 else kind.changes)(kind.sound, rng)
        yield Case(name, change, content)


class _TooLong(BaseException):
    pass


def _alarm(_: int, __: FrameType | None) -> None:
    raise _TooLong


def run_case(case: Case, kind: Kind, folder: Path) -> tuple[str, Fault | None]:
    """Read one case: "used", "refused", or what it did that it may not."""
    path = folder / f"case{kind.suffix}"
    path.write_bytes(case.content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome, wrong = "used", None
    signal.signal(signal.SIGPROF, _alarm)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of this process, however busy the machine is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read(path)
    except PickglassError as error:
        outcome, message = "refused", str(error)
        if ("\n" in message and not isinstance(error, DataError)) or len(message) > LONGEST:
            wrong = f"a message of {len(message)} characters: {message[:200]!r}"
    except _TooLong:
        outcome, wrong = "hangs", f"over {SECONDS} s"
    except BaseException as error:  # whatever comes is what this program looks for
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "pickglass" in frame.filename]
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        outcome, wrong = "crashes", f"{where}: {type(error).__name__}: {str(error)[:160]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if growth > GROWTH_MB:
        outcome, wrong = "eats memory", f"{growth:.0f} MB more; {wrong or 'read'}"
    for own in folder.glob("case*"):  # also what SQLite keeps beside its file
        own.unlink()
    if left := [entry.name for entry in folder.iterdir()]:
        outcome, wrong = "leaves files", str(left)
        for name in left:
            (folder / name).unlink()
    return outcome, None if wrong is None else Fault(case, wrong)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", type=int, default=10_000, help="how many, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, help="write the files of faults here")


def fuzzed(name: str, kind: Kind, n: int, read: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Run the cases of one kind, and count the outcomes; faults are told on standard error as they come."""
    outcomes: Counter[str] = Counter()
    faults: list[str] = []
    for case in cases_of(name, kind, n, asked.seed):
        outcome, fault = run_case(case, kind, read)
        outcomes[outcome] += 1
        if fault is not None:
            faults.append(f"{case.change}: {fault.what}")
            print(f"{name}: {faults[-1]}", file=sys.stderr, flush=True)
            if asked.keep is not None:
                asked.keep.mkdir(exist_ok=True)
                (asked.keep / f"{name}{len(faults)}{kind.suffix}").write_bytes(case.content)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"outcomes": outcomes, "faults": faults, "peak_mb": round(peak)}


def bench_cases(given: argparse.Namespace) -> Iterator[harness.Case]:
    # what eats all memory is to fail here, not to take the machine down
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as read:
        kinds = made_kinds(Path(made), Path(read))
        for name in given.kind:
            n = given.cases // len(given.kind)
            found = partial(fuzzed, name, kinds[name], n, Path(read), given)
            yield harness.Case({"kind": name, "cases": n, "seed": given.seed}, found)


def table(rows: list[harness.Record]) -> str:
    """Write a line for each kind of file: what came of its cases."""
    what = {"model": "model", "tiled": "model of tiles", "export": "exported model", "study": "database of a study"}
    cells = [
        [
            what.get(row["kind"], row["kind"]),
            *(f"{n:,}" for n in (row["cases"], row["outcomes"].get("used", 0), row["outcomes"].get("refused", 0))),
            len(row["faults"]),
        ]
        for row in rows
    ]
    return harness.markdown(["kind of file", "cases", "used", "refused", "faults"], cells)


SUITE = harness.Suite(bench_cases, arguments, {"": table})
