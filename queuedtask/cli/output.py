"""What commands print: rich tables on a terminal, plain aligned text elsewhere, JSON when it is asked for.

Texts of tasks are shown as they are, but never as they want to be: control characters could move the cursor or set
the terminal's title, so they are spelt out.
"""

import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_COLOURS = {
    "done": "green",
    "failed": "red",
    "doing": "cyan",
    "enqueued": "yellow",
    "cancelled": "magenta",
    "stopped": "magenta",
}
_ALARM = "red"
REDACTED = "***"
BAR_WIDTH = 12
LEAST_WIDTH = 30
"""Characters of a table's last column that are worth showing."""


class Alarm(str):
    """A text about what is amiss: in red where there are colours, so it must say so by itself as well."""

    __slots__ = ()


class Bar(str):
    """How far something is: a bar with its percentage on a terminal, the percentage alone elsewhere."""

    __slots__ = ("share",)
    share: float

    def __new__(cls, share: float) -> "Bar":
        """Make one of a share from 0 to 1."""
        # What is not complete is not 100 %; 0.29 * 100 is 28.999….
        made = super().__new__(cls, f"{math.floor(share * 100 + 1e-9)} %")
        made.share = share
        return made

    @classmethod
    def of(cls, share: float | None) -> "Bar | None":
        """Make one where there is a share."""
        return None if share is None else cls(share)

    def drawn(self) -> "Table":
        """Return it for rich."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=BAR_WIDTH)
        grid.add_column(justify="right", min_width=len("100 %"), no_wrap=True)
        grid.add_row(ProgressBar(total=1.0, completed=self.share, width=BAR_WIDTH), Text(self))
        return grid


def is_terminal() -> bool:
    """Tell whether a person looks at stdout."""
    return sys.stdout.isatty()


def console() -> "Console":
    """Return rich's console on stdout; with NO_COLOR it writes no escape sequences for styles at all."""
    from rich.console import Console

    found = Console(highlight=False, emoji=False, markup=False)
    return Console(highlight=False, emoji=False, markup=False, color_system=None) if found.no_color else found


# ------------------------------------------------------------------------------------------------------------- values


def clean(text: str) -> str:
    """Return the text with its control characters spelt out, newlines and tabs excepted."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def moment(time: datetime | None) -> str:
    """Return a time for people: UTC, to the second."""
    return "" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


def iso(time: datetime | None) -> str | None:
    """Return a time for programs: ISO 8601, UTC."""
    return None if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def span(seconds: float | None) -> str:
    """Return a duration for people, in two units at most."""
    if seconds is None:
        return ""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02} h"


def size(count: int) -> str:
    """Return a number of bytes for people."""
    amount = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def decoded(text: str | None) -> Any:
    """Return the value of a jsonb column's text as JSON has it, tags included: what is printed is what is stored."""
    return None if text is None else json.loads(text)


def redacted(kwargs: Any, patterns: Sequence[str]) -> Any:
    """Return keyword arguments with the values masked whose names fit one of the patterns, in any case."""
    if not isinstance(kwargs, dict):
        return kwargs
    lowered = [pattern.lower() for pattern in patterns]
    return {
        name: REDACTED if any(fnmatchcase(name.lower(), pattern) for pattern in lowered) else value
        for name, value in kwargs.items()
    }


# ------------------------------------------------------------------------------------------------------------ printing


def print_json(value: object) -> None:
    """Print a document for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=not _takes_all(), default=_plain))


def print_json_line(value: object) -> None:
    """Print one document of many, each on a line of its own."""
    print(json.dumps(value, ensure_ascii=not _takes_all(), default=_plain), flush=True)


def _takes_all() -> bool:
    # Otherwise what it does not know would be spelt out in a way that JSON does not know.
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Decimal):
        return float(value)
    raise TypeError(f"{type(value).__qualname__} in JSON output")


def print_line(text: str = "") -> None:
    """Print a text of ours or of a task's."""
    print(clean(text))


def print_error(text: str) -> None:
    """Print what is wrong."""
    print(f"queuedtask: error: {clean(text)}", file=sys.stderr)


def print_warning(text: str) -> None:
    """Print what the user may want to know although the command goes on."""
    print(f"queuedtask: warning: {clean(text)}", file=sys.stderr)


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Iterable[str] = (),
    dispensable: Iterable[str] = (),
) -> None:
    """Print a table; ``right`` are columns of numbers, cells that are an :class:`Alarm` stand out.

    A terminal that is too narrow gets it without the ``dispensable`` columns, as many of them as need be, the first
    ones first. The last column is cut to what is left, unless it has numbers.
    """
    texts = [[_cell(cell) for cell in row] for row in rows]
    columns = {header: [row[index] for row in texts] for index, header in enumerate(headers)}
    if is_terminal():
        _draw_table(columns, set(right), list(dispensable))
        return
    aligned = [_aligned(header, column, header in right) for header, column in columns.items()]
    for line in zip(*aligned, strict=True):
        print("  ".join(line).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, Bar):
        return value
    # In a table a text has one line.
    text = clean("" if value is None else str(value)).replace("\n", " ")
    return Alarm(text) if isinstance(value, Alarm) else text


def _width(text: str) -> int:
    return BAR_WIDTH + 1 + len("100 %") if isinstance(text, Bar) else len(text)


def _style(text: str) -> str:
    return _ALARM if isinstance(text, Alarm) else _COLOURS.get(text, "")


def _aligned(header: str, column: Sequence[str], is_right: bool) -> list[str]:
    width = max(map(len, [header, *column]))
    return [text.rjust(width) if is_right else text.ljust(width) for text in [header, *column]]


def _draw_table(columns: dict[str, list[str]], right: set[str], dispensable: list[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    widths = {header: max(map(_width, [header, *column])) + 2 for header, column in columns.items()}
    last = [*columns][-1]
    if last not in right:
        widths[last] = min(widths[last], LEAST_WIDTH)
    for header in dispensable:
        if sum(widths[kept] for kept in columns) > console().width:
            columns.pop(header, None)
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for header in columns:
        justify: Literal["left", "right"] = "right" if header in right else "left"
        width = None if header == last and last not in right else widths[header] - 2
        table.add_column(Text(header), no_wrap=True, overflow="ellipsis", justify=justify, min_width=width)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(text.drawn() if isinstance(text, Bar) else Text(text, style=_style(text)) for text in row))
    # What is still too wide is wrapped by the terminal: nothing of it is lost.
    drawing = console()
    drawing.width = max(drawing.width, sum(widths[kept] for kept in columns))
    drawing.print(table)


@contextmanager
def repeated() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Give what prints something anew each time: in place on a terminal, one below the other elsewhere."""
    if not is_terminal() or console().is_dumb_terminal:

        def print_below(draw: Callable[[], None]) -> None:
            draw()
            print(flush=True)

        yield print_below
        return
    terminal = sys.stdout

    def print_in_place(draw: Callable[[], None]) -> None:
        frame = _Frame()
        with redirect_stdout(frame):
            draw()
        lines = frame.getvalue().splitlines()[: console().height - 1]
        # Written over what stands there, so that nothing flickers; what is left of it is erased.
        terminal.write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        terminal.flush()

    terminal.write("\x1b[?1049h\x1b[?25l")  # the other screen, without a cursor
    try:
        yield print_in_place
    finally:
        terminal.write("\x1b[?25h\x1b[?1049l")
        terminal.flush()


class _Frame(io.StringIO):
    """What is printed here is written to a terminal later."""

    def isatty(self) -> bool:
        return True


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Print names and values, one below the other; what is None or empty is left out."""
    shown = {
        name: value if isinstance(value, Bar) else clean(str(value))
        for name, value in pairs.items()
        if value is not None and value != ""
    }
    width = max(map(len, shown), default=0)
    # The further lines of a text stand below its first one.
    indent = f"\n{' ' * (width + 2)}"
    for name, value in shown.items():
        text = value.replace("\n", indent)
        if is_terminal() and isinstance(value, Bar):
            from rich.table import Table
            from rich.text import Text

            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_row(Text(name.ljust(width), "bold"), value.drawn())
            console().print(grid)
        elif is_terminal():
            from rich.text import Text

            line = Text.assemble((name.ljust(width), "bold"), "  ", (text, _COLOURS.get(text, "")))
            console().print(line, soft_wrap=True)
        else:
            print(f"{name.ljust(width)}  {text}")


def print_heading(text: str) -> None:
    """Print what the lines that follow are about."""
    if is_terminal():
        from rich.text import Text

        style = f"bold {_ALARM}" if isinstance(text, Alarm) else "bold"
        console().print(Text(f"\n{clean(text)}", style))
    else:
        print(f"\n{clean(text)}")
