"""What every command shares: consoles, progress, exit codes, JSON.

Exit codes:
    0    done
    1    a bug: a Python traceback; please report it
    2    wrong usage of the command line
    3    refused: a `SecateurError`, printed with what to do
    4    `certify`: no candidate could be certified; `certify --verify`: the certificate does not hold
    130  interrupted by Ctrl-C; what `--out` holds can be resumed with `--resume`
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from secateur.errors import SecateurError

REFUSED, NOT_CERTIFIED, INTERRUPTED = 3, 4, 130
# A bar that comes and goes within this many seconds is only a flicker.
QUIET_SECONDS = 2.0
Args = ParamSpec("Args")
Report = Callable[[str, int, int], None]


def console() -> Console:
    """Results go to standard output."""
    return Console(highlight=False)


def errors() -> Console:
    """Progress and errors go to standard error, so that `--json` can be piped."""
    return Console(stderr=True, highlight=False)


def guarded(command: Callable[Args, None]) -> Callable[Args, None]:
    """A command that prints a `SecateurError` as a panel, and takes Ctrl-C as a wish to go on later."""

    @functools.wraps(command)
    def run(*args: Args.args, **kwargs: Args.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SecateurError as error:
            errors().print(panel(error))
            raise typer.Exit(REFUSED) from None
        except KeyboardInterrupt:
            out = kwargs.get("out")
            hint = (
                f"What was done so far is in {out}; the same command with --resume goes on from there." if out else ""
            )
            errors().print(f"\n[bold]Interrupted.[/bold] {escape(hint)}")
            raise typer.Exit(INTERRUPTED) from None

    return run


def panel(error: SecateurError) -> Panel:
    """What failed, where, what was expected and found, and what to do."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    rows = (("where", error.where), ("expected", error.expected), ("found", error.got), ("do this", error.todo))
    for label, value in rows:
        if value is not None:
            grid.add_row(label, escape(str(value)))
    body = Table.grid(padding=(0, 0))
    body.add_row(f"[bold]{escape(error.what)}[/bold]")
    body.add_row(grid)
    return Panel(body, title=type(error).__name__, title_align="left", border_style="red", expand=False)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Report | None]:
    """A callback for `progress=`: bars on standard error for whatever takes longer than two seconds."""
    if quiet:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    display = Progress(*columns, console=errors(), transient=True)
    tasks: dict[str, Any] = {}
    begun: dict[str, float] = {}

    def tell(label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - begun.setdefault(label, now) < QUIET_SECONDS and label not in tasks:
            return
        if label not in tasks:
            for other in tasks.values():
                display.update(other, visible=False)
            tasks[label] = display.add_task(escape(label), total=total or None)
        display.update(tasks[label], completed=done, total=total or None)
        if total and done >= total:
            display.update(tasks.pop(label), visible=False)
            begun.pop(label, None)

    with display:
        yield tell


def say_json(content: Mapping[str, Any]) -> None:
    """One JSON object on standard output, not wrapped or coloured."""
    print(json.dumps(content, allow_nan=False))


def need_out(out: Path | None, why: str) -> Path:
    """The folder of `--out`, which this command cannot do without."""
    if out is None:
        raise typer.BadParameter(f"--out DIR is needed: {why}")
    return out
