"""Tables on the terminal: columns aligned by spaces, coloured on a terminal and plain in a file or a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from heavytail.errors import printable

VERDICT_COLOURS = {"reproduced": "green", "not reproduced": "red", "undecided": "yellow", "not run": "yellow"}


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    colours: Mapping[str, str] = VERDICT_COLOURS,
    numeric: Sequence[int] = (),
) -> None:
    """Print a table; no cell is cut or wrapped. NO_COLOR takes the colours away, FORCE_COLOR colours a pipe, too.

    Args:
        columns: headings; none for a table without a header.
        rows: cells, one per column.
        colours: of cells, by their text.
        numeric: indices of right-aligned columns.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    body = [tuple(map(printable, row)) for row in rows]
    lines = [*([tuple(columns)] if columns else []), *body]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        text = Text()
        for index, (cell, width) in enumerate(zip(line, widths, strict=True)):
            aligned = cell.rjust(width) if index in numeric else cell.ljust(width)
            text.append(aligned, "bold" if columns and number == 0 else colours.get(cell, "")).append("  ")
        text.rstrip()
        console.print(text, soft_wrap=True)
