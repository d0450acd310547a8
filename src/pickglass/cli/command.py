"""How every command runs: a use case under a progress bar, its result as a table or as JSON, and an exit code.

While a use case runs, stdout belongs to its result alone: whatever pickglass or a library prints meanwhile, also from
C and C++, goes to stderr. Exit codes: 0 done, 1 found wanting or partly failed, 2 bad input.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TextIO, TypeVar, get_type_hints

import typer

from pickglass.errors import InputError, PickglassError

__all__ = ["Progress", "run", "stdout_reserved", "with_groups"]

Progress = Callable[[str, int, int], None]
"""A use case calls it with (stage, done, total)."""

Result = TypeVar("Result", bound=Mapping[str, Any])


def run(
    use_case: Callable[[Progress | None], Result],
    show: Callable[[Result], None],
    as_json: bool,
    *,
    wanting: Callable[[Result], bool] | None = None,
    notes: Callable[[Result], Sequence[str]] | None = None,
) -> None:
    """Run a use case, print its result, and end the command with exit code 1 where the result asks for it.

    Args:
        use_case: is called with the progress to report to, None where stderr is no terminal.
        show: prints the result for people.
        as_json: print the result as one JSON object instead.
        wanting: whether the result is a finding that exit code 1 stands for. Entries under the result's key
            ``failed`` always are; images that are listed there are named on stderr.
        notes: sentences about the result, for stderr.
    """
    with stdout_reserved(), progress_bar() as progress:
        result = use_case(progress)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        show(result)
    for note in notes(result) if notes else ():
        typer.echo(note, err=True)
    failed = result.get("failed")
    for item in failed if isinstance(failed, list) else ():
        typer.echo(f"failed: {item['path']}: {item['error']}", err=True)
    if failed or (wanting is not None and wanting(result)):
        raise typer.Exit(1)


# -- stdout, warnings, progress ----------------------------------------------------------------------------------------


@contextmanager
def stdout_reserved() -> Iterator[None]:
    """Send to stderr whatever is written to stdout meanwhile, by Python or to file descriptor 1."""
    original = sys.stdout
    original.flush()
    sys.stdout = sys.stderr
    saved = _point_stdout_at_stderr()
    try:
        yield
    finally:
        original.flush()  # of a library that kept the stream from before
        sys.stdout = original
        if saved is not None:
            _flush_c_streams()
            os.dup2(saved, 1)
            os.close(saved)


def _point_stdout_at_stderr() -> int | None:
    """Return a duplicate of file descriptor 1, which is then the same as 2; None where a process has no stdout."""
    try:
        saved = os.dup(1)
    except OSError:
        return None
    os.dup2(2, 1)
    return saved


def _flush_c_streams() -> None:
    """What C code printed may still wait in its buffer, and would come out after the result."""
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    library.fflush(None)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Print each warning for users as one line, without the place in the code it comes from."""
    original = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if category is UserWarning:
            typer.echo(f"warning: {message}", err=True)
        else:
            original(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Show a bar with the time left for each stage on stderr; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield advance


# -- addresses of object stores ----------------------------------------------------------------------------------------

_LIVE = {"watch": "folder", "serve": "watch"}  # what is looked at again and again


def _paths(given: Mapping[str, Any]) -> list[Path]:
    """List the paths among the arguments of a command."""
    values = [value if isinstance(value, list) else [value] for value in given.values()]
    return [path for several in values for path in several if isinstance(path, Path)]


@contextmanager
def _at_copies(command: str, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the arguments of a command with copies on this machine in place of addresses; what is written is sent.

    Also what a command leaves that ends with exit code 1; after an error the copies stay, and nothing is sent.
    """
    from pickglass.data.copies import address_of, local_copies

    live = given.get(_LIVE.get(command, ""))
    if live is not None and address_of(live) is not None:
        raise InputError(f"{address_of(live)}: images that arrive there are not seen: mount it, and name the folder")
    paths = _paths(given)
    exit_code: typer.Exit | None = None
    with local_copies(paths) as copies:
        at = dict(zip(paths, copies, strict=True))
        try:
            yield {
                name: [at.get(one, one) for one in value]
                if isinstance(value, list)
                else at.get(value, value)
                if isinstance(value, Path)
                else value
                for name, value in given.items()
            }
        except typer.Exit as error:
            exit_code = error
        except PickglassError:
            for place, copy in at.items():
                if place != copy:
                    typer.echo(f"note: {address_of(place)} was worked on in {copy}; nothing was sent", err=True)
            raise
    if exit_code is not None:
        raise exit_code


# -- groups of options -------------------------------------------------------------------------------------------------


def with_groups(function: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is a group of options by the options of the group.

    Args:
        function: a command; a group is a dataclass whose fields are annotated as typer's options are.

    Returns:
        What typer takes: it has the single options as parameters and calls the command with the groups.
    """
    # not get_type_hints: before Python 3.11 it hides typer's annotation where the default is None
    signature = inspect.signature(function, eval_str=True)
    groups = {name: given.annotation for name, given in signature.parameters.items() if is_dataclass(given.annotation)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            options = get_type_hints(groups[name], include_extras=True)
            parameters += [
                inspect.Parameter(
                    field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=options[field.name]
                )
                for field in fields(groups[name])
            ]
        else:
            parameters.append(parameter)

    @wraps(function)
    def command(**given: Any) -> None:
        if any(":" in str(path) for path in _paths(given)):
            with _at_copies(function.__name__, given) as local:
                single(**local)
        else:
            single(**given)

    def single(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})  # type: ignore[operator]
            for name, group in groups.items()
        }
        with short_warnings():
            function(**given, **made)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
