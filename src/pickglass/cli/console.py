"""Tables and sentences on the terminal: as wide as it is, and whole where the output goes to a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["as_latex", "as_markdown", "duration", "percent", "plain", "print_metrics", "print_table", "say"]

_ENDLESS = 100_000  # columns: nothing wraps


def console() -> Console:
    """Return a console for stdout."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _ENDLESS)


def say(text: str = "") -> None:
    """Print a line as it is; terminals wrap it, pipes get it whole."""
    console().print(text, markup=False, soft_wrap=True)


def print_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text: Collection[str] = (),
    title: str | None = None,
    bold: Collection[int] = (),
) -> None:
    """Print a table that fits the terminal: cells that are too wide go on in the next line.

    Args:
        heads: names of the columns; on a narrow terminal they break at spaces.
        rows: the cells of each row.
        text: the columns that hold text and stand left; numbers stand right. The first column is always text.
        title: a line above the table.
        bold: numbers of rows in bold.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for i, head in enumerate(heads):
        left = i == 0 or head in text
        table.add_column(Text(head), justify="left" if left else "right", overflow="fold", vertical="bottom")
    for i, row in enumerate(rows):
        table.add_row(*map(Text, row), style="bold" if i in bold else None)
    if title is not None:
        say(title)
    printer = console()
    with printer.capture() as printed:
        printer.print(table)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def as_markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table as Markdown.

    >>> print(as_markdown(["method", "AUROC"], [["padim", "95.3"]]))
    | method | AUROC |
    |---|---|
    | padim | 95.3 |
    """
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def as_latex(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Write a table as a tabular of LaTeX with the rules of booktabs; the first column stands left, the others right.

    >>> print(as_latex(["method", "share"], [["stfpm_a", "5 %"]]))
    \begin{tabular}{lr}
    \toprule
    method & share \\
    \midrule
    stfpm\_a & 5 \% \\
    \bottomrule
    \end{tabular}
    """
    escapes = {**{sign: f"\\{sign}" for sign in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    escapes |= {"^": r"\textasciicircum{}", "–": "--", "−": "$-$", "±": r"$\pm$"}
    lines = [
        " & ".join("".join(escapes.get(c, c) for c in cell) for cell in cells) + r" \\" for cells in (heads, *rows)
    ]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}"
    return "\n".join([begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"])


def print_metrics(
    name: str, sets: Mapping[str, Mapping[str, Any]], keys: Sequence[str], *, title: str | None = None
) -> None:
    """Print a row of metrics for each of some sets of images or models, with a dash where a metric is missing.

    Args:
        name: head of the first column.
        sets: first cell -> its metrics; shares stand as two counts where these are known.
        keys: the metrics to show, as in :data:`pickglass.metrics.catalogue.METRICS`.
        title: a line above the table.
    """
    from pickglass.metrics.catalogue import shown

    metrics = shown(keys, sets.values())
    rows = [[row, *(metric.cell(values) or "–" for metric in metrics)] for row, values in sets.items()]
    print_table([name, *(metric.short for metric in metrics)], rows, title=title)


def plain(value: Any) -> str:
    """Write a value of a result for people: few digits, at most six entries of a list.

    >>> plain(0.123456), plain(None), plain([1, 2, 3, 4, 5, 6, 7])
    ('0.1235', '–', '1, 2, 3, 4, 5, 6, ... (7)')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        listed = ", ".join(plain(entry) for entry in value[:6])
        return listed if len(value) <= 6 else f"{listed}, ... ({len(value)})"
    return "–" if value is None else str(value)


def percent(share: float) -> str:
    """Write a share in per cent.

    >>> percent(0.125), percent(0.01)
    ('12.5 %', '1 %')
    """
    return f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    """Write a time in the unit that fits.

    >>> duration(12), duration(600), duration(7200)
    ('12.0 s', '10 min', '2.0 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
