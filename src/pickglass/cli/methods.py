"""``pickglass methods``: the methods, and all settings of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pickglass.cli.command import run
from pickglass.cli.console import plain, print_table, say
from pickglass.cli.options import Json

if TYPE_CHECKING:
    from pickglass.app.results import MethodsResult

__all__ = ["methods"]


def methods(
    name: Annotated[str | None, typer.Argument(help="Method, e.g. PatchCore: show its settings and presets.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods; with a name, all settings of that method with type, default and meaning."""
    from pickglass.app.methods import list_methods

    run(lambda progress: list_methods(name), _show if name is None else _show_one, as_json)


def _show(result: MethodsResult) -> None:
    for method in result["methods"]:
        say(f"{method['method']}: {method['paper']}")
        say(f"  {_sentence(method['idea'])}")
    say("\nAll settings of one: pickglass methods NAME")


def _show_one(result: MethodsResult) -> None:
    (method,) = result["methods"]
    say(f"{method['method']}: {method['paper']}")
    say(_sentence(method["idea"]))
    say("\nSettings, for --set NAME=VALUE and for the constructor in Python:\n")
    rows = [
        [entry["name"], entry["type"], _default(entry["default"]), entry["meaning"]] for entry in method["settings"]
    ]
    print_table(["setting", "type", "default", "meaning"], rows, text=("type", "default", "meaning"))
    for preset, values in method["presets"].items():
        settings = ", ".join(f"{key} {plain(value)}" for key, value in values.items())
        say(f"\n--preset {preset}: {settings or 'the defaults'}")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _default(value: Any) -> str:
    return "None" if value is None else plain(value)
