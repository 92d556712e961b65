"""The command `secateur demo`: runs the demo and shows what came out of it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from secateur import _report
from secateur.cli import _options as o
from secateur.cli._commands import latency_table
from secateur.cli._shell import console, errors, guarded, progress, say_json
from secateur.cli.demo import KEPT, MAX_DROP, Outcome, run
from secateur.schema import to_json


class Arch(StrEnum):
    """Networks of the demo."""

    cnn = "cnn"
    lstm = "lstm"
    transformer = "transformer"


@guarded
def demo(
    arch: Annotated[Arch, typer.Option("--arch", help="which network")] = Arch.cnn,
    out: Annotated[Path | None, typer.Option("--out", help="folder; default: secateur-demo/ARCH")] = None,
    seed: o.Seed = 0,
    resume: o.Resume = False,
    json: o.Json = False,
) -> None:
    """Train, prune to half the MACs, certify, save, export and report: handwritten digits, three minutes at most."""
    folder = out or Path("secateur-demo") / arch.value
    say = None if json else (lambda text: errors().print(f"[dim]·[/dim] {escape(text)}"))
    with progress(quiet=json) as tell:
        outcome = run(arch.value, folder, seed=seed, resume=resume, progress=tell, say=say)
    if json:
        say_json(_as_json(outcome))
        return
    _show(outcome)


def _as_json(outcome: Outcome) -> dict[str, object]:
    return {
        "arch": outcome.arch,
        "held_out": {"n": outcome.n_held_out, "dense": outcome.dense, "pruned": outcome.pruned, "drop": outcome.drop},
        "kept_the_drop": outcome.kept_the_drop,
        "same_after_reload": outcome.same_after_reload,
        "onnx_error": outcome.exported["error"],
        "seconds": outcome.seconds,
        "out": str(outcome.folder),
        "page": str(outcome.report),
        "report": to_json(_report.summary(outcome.result)),
    }


def _show(outcome: Outcome) -> None:
    result, n = outcome.result, outcome.n_held_out
    dense, small = result.candidates[0].costs, result.candidates[result.chosen].costs
    table = Table("", "dense", "pruned", "change", title=f"{outcome.arch}: handwritten digits, {n} held out")
    table.add_row(
        "accuracy, held out",
        f"{outcome.dense / n:.2%}",
        f"{outcome.pruned / n:.2%}",
        f"{-100 * outcome.drop:+.2f} points",
    )
    for label, before, after in (
        ("MACs of one image", dense.macs // 2, small.macs // 2),  # the example inputs are two images
        ("parameters", dense.params, small.params),
        ("bytes", dense.memory, small.memory),
    ):
        table.add_row(label, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}")
    for column in table.columns[1:]:
        column.justify = "right"
    out = console()
    out.print(table)
    out.print(latency_table(result.latency))
    for line in _report.verdict(_report.summary(result)):
        out.print(escape(line))
    out.print(f"reloaded into a fresh model: {'the same bits' if outcome.same_after_reload else 'DIFFERENT'}")
    out.print(f"ONNX checked with onnxruntime: relative error {outcome.exported['error']:.1g}")
    if not outcome.kept_the_drop:
        out.print(
            f"[bold red]No model with {KEPT:.0%} of the MACs kept the allowed drop of {MAX_DROP:.0%}[/bold red]: "
            f"{escape(result.state.reason)}; held-out drop {outcome.drop:.2%}."
        )
    threads = torch.get_num_threads()
    out.print(f"{outcome.seconds:.0f} s on {threads} {'thread' if threads == 1 else 'threads'}")
    out.print(f"report: {escape(str(outcome.report.resolve()))}", soft_wrap=True)
