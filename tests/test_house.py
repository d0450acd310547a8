"""The structure: imports go down only, public names exist and are listed, start-up stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pickglass
from source_trees import nodes_of, tree_of

SOURCE = Path(pickglass.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# A module may import from its own row and from rows below it. Within the bottom row: errors < data < metrics <
# calibration < result.
ROWS = [
    "errors",
    "data",
    "metrics",
    "calibration",
    "result",
    "runtime",
    "nn",
    "features",
    "detectors",
    "methods",
    "app",
    "testing",
    "web",
    "cli",
]
ALONE = {"app": {"testing"}, "testing": {"app"}, "web": {"testing"}}  # neighbours that do not know each other


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    rooms = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            rooms.add("<relative import>")
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        rooms |= {name.split(".")[1] for name in names if name.startswith("pickglass.")}
    return rooms


@pytest.mark.slow
def test_imports_go_down_only() -> None:
    wrong = []
    for path in FILES:
        own = room(path)
        if own in ("__init__", "__main__"):
            continue  # the public names, loaded lazily, and the way in
        for other in sorted(imported(tree_of(path))):
            if other not in ROWS:
                wrong.append(f"{path} imports pickglass.{other}, which has no row")
            elif ROWS.index(other) > ROWS.index(own):
                wrong.append(f"{path} imports upward: pickglass.{other}")
            elif other in ALONE.get(own, set()):
                wrong.append(f"{path} imports its neighbour pickglass.{other}")
    assert not wrong, "\n".join(wrong)


def test_no_import_cycles() -> None:
    modules = {".".join(("pickglass", *p.relative_to(SOURCE).with_suffix("").parts)): p for p in FILES}
    modules = {name.removesuffix(".__init__"): p for name, p in modules.items() if name != "pickglass.__init__"}

    def needs(name: str) -> set[str]:
        found = set()
        for node in nodes_of(modules[name]):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                submodules = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= (submodules & set(modules)) or {node.module}
        return found - {name}

    graph = {name: needs(name) for name in modules}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"import cycle: {' -> '.join((*above, name))}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_runtimes_are_imported_in_one_place() -> None:
    wrong = []
    for path in FILES:
        for node in nodes_of(path):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path}: {name}" for name in names if name.split(".")[0] in ("onnxruntime", "openvino")]
    assert not wrong, "by pickglass.runtime.session.import_runtime, which lets them report nothing: " + "\n".join(wrong)


def test_public_names_exist_and_are_listed() -> None:
    assert set(pickglass.__all__) == set(pickglass._HOMES)
    for name in pickglass.__all__:
        assert getattr(pickglass, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pickglass.nonsense


def is_route(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a function answers a request of the page; browsers call it, modules do not."""
    return any(ast.unparse(decorator).startswith("router.") for decorator in node.decorator_list)


def test_every_module_lists_its_names() -> None:
    wrong = []
    for path in FILES:
        tree = tree_of(path)
        defined = {n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not is_route(n)}
        if not defined or room(path) == "cli":
            continue
        lists = [n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
        if not lists:
            wrong.append(f"{path} has no __all__")
            continue
        public = {name for name in defined if not name.startswith("_")}
        if missing := public - set(ast.literal_eval(lists[0].value)):
            wrong.append(f"{path}: public but not listed: {sorted(missing)}")
    assert not wrong, "\n".join(wrong)


def loaded(code: str) -> set[str]:
    listing = f"{code}\nimport sys\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stdout.split()
    )


def test_start_up_loads_nothing_heavy() -> None:
    modules = loaded("import pickglass, pickglass.cli.main")
    assert not modules & {"torch", "timm", "numpy", "PIL", "matplotlib", "openvino", "rich.progress"}


def test_the_decoder_needs_no_torch() -> None:
    modules = loaded("import pickglass.data.images.decoder")
    assert not modules & {"torch", "timm", "scipy", "matplotlib", "openvino"}
