"""The command `secateur`: one thin command per verb. Exit codes stand in `secateur.cli._shell`."""

from __future__ import annotations

import typer

from secateur.cli import _commands, _demo_command

__all__ = ["app", "main"]

app = typer.Typer(
    name="secateur",
    help="Sensitivity-based structured pruning for PyTorch: measure, cut, retrain, certify.",
    epilog="Exit codes: 0 done, 2 wrong usage, 3 refused (the message says what to do), 4 not certifiable, "
    "130 interrupted (go on with --resume).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
app.command("demo")(_demo_command.demo)
app.command("trace")(_commands.trace)
app.command("score")(_commands.score)
app.command("scan")(_commands.scan)
app.command("plan")(_commands.plan)
app.command("cut")(_commands.cut)
app.command("prune")(_commands.prune)
app.command("certify")(_commands.certify)
app.command("report")(_commands.report)
app.command("export")(_commands.export)
app.command("bench")(_commands.bench)


def main() -> None:
    """Entry point of the console script."""
    app()
