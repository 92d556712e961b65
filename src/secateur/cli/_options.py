"""Options that several commands share, and the TOML file that can hold any of them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_HELP = (
    "module:factory, path.py:factory, timm:NAME, torchvision:NAME, or a Hugging Face folder; a factory returns the "
    "model, or (model, example inputs)"
)


def _config(context: typer.Context, value: Path | None) -> Path | None:
    """Read defaults of this command from a TOML file: top-level keys, and those of a table named like the command."""
    if value is None:
        return None
    try:
        content = tomllib.loads(value.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise typer.BadParameter(str(error)) from None
    command = context.info_name or ""
    found: dict[str, Any] = {k: v for k, v in content.items() if not isinstance(v, dict)}
    found |= content.get(command, {})
    named = {k.replace("-", "_"): v for k, v in found.items()}
    known = {p.name for p in context.command.params}
    surplus = sorted(set(content.get(command, {})) - known - {k.replace("_", "-") for k in known if k})
    if surplus:
        raise typer.BadParameter(f"{value}: {command} has no option {', '.join(surplus)}")
    context.default_map = {**(context.default_map or {}), **{k: v for k, v in named.items() if k in known}}
    return value


Model = Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with options of this command", callback=_config, is_eager=True),
]
DataName = Annotated[
    str | None,
    typer.Option("--data", help="module:function returning the loaders: Data, (train, search, held_out), or one"),
]
TaskName = Annotated[str, typer.Option("--task", help="classification, regression, ..., or module:function")]
Inputs = Annotated[str | None, typer.Option("--inputs", help="module:function returning example inputs")]
Shape = Annotated[str | None, typer.Option("--shape", help="shape of one example input tensor: 2x3x224x224")]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="do not load trained weights")]
Out = Annotated[Path | None, typer.Option("--out", help="folder for what is found")]
Seed = Annotated[int, typer.Option("--seed", help="the same seed gives the same result")]
Resume = Annotated[bool, typer.Option("--resume", help="go on from what --out holds")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
CriterionName = Annotated[str, typer.Option("--criterion", help="obd, taylor, fisher, magnitude(p=1), ...")]
CriterionNames = Annotated[
    str,
    typer.Option("--criterion", help="obd, taylor, magnitude(p=1), ...; with --compare several with commas, or `all`"),
]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="where it runs: serial, 'processes(n=2)', 'ray(n=2)', or module:executor")
]
AllocatorName = Annotated[str, typer.Option("--allocator", help="greedy, global_threshold, uniform, ...")]
Macs = Annotated[float | None, typer.Option("--macs", help="fraction of the MACs to keep: 0.5")]
Params = Annotated[float | None, typer.Option("--params", help="fraction of the parameters to keep")]
Memory = Annotated[float | None, typer.Option("--memory", help="fraction of the bytes to keep")]
Freeze = Annotated[list[str] | None, typer.Option("--freeze", help="leave this module or parameter alone (repeatable)")]
Tie = Annotated[
    list[str] | None,
    typer.Option("--tie", help="two parameters that lose the same indices: a.weight=b.weight (repeatable)"),
]
RulesName = Annotated[
    str | None, typer.Option("--rules", help="rules for operations of yours: module (its RULES), module:TABLE")
]
Baked = Annotated[
    str, typer.Option("--baked", help="integers in a forward: freeze what they count, or rewrite that submodule")
]
MaxDrop = Annotated[float | None, typer.Option("--max-drop", help="allowed drop of the score: 0.01 is one point")]
Confidence = Annotated[float, typer.Option("--confidence", help="of the certificate")]
Full = Annotated[
    bool,
    typer.Option("--full", help="scan with all search examples, also where the first of them say enough about a point"),
]
