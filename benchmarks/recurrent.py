# ruff: noqa: E402  the number of threads is fixed before torch is imported
"""How much faster is a recurrent network when half of its hidden units are gone?

LSTM, GRU and RNN with 1 to 3 layers, one or both directions, projections (LSTM), whole or packed sequences. Each is cut
by the library without a hint, verified against the masked network, and timed beside the dense one: the two take turns,
so that a machine which others use slows both. The ratio is that of the CPU time of one thread.

    make bench-recurrent                     48 networks: some minutes on one core
    make bench-recurrent ARGS="--quick"      one layer each, fewer passes: does it run?
    make bench-recurrent ARGS="--json"       the results as JSON on the last line as well
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "src")]

import secateur as sc
from secateur.schema.groups import Groups

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
INPUT, HIDDEN, PROJECTED, STEPS, EXAMPLES = 64, 256, 64, 32, 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One network."""

    kind: str
    layers: int
    both: bool
    projected: bool
    packed: bool

    @property
    def name(self) -> str:
        """In words."""
        parts = [f"{self.layers} layer{'s' * (self.layers > 1)}", "both directions" * self.both]
        parts += [f"projected to {PROJECTED}" * self.projected, "packed" * self.packed]
        return f"{self.kind}, {', '.join(filter(None, parts))}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came out.

    Attributes:
        hidden: units per layer and direction, dense and cut.  removed: fraction of the parameters.
        error, tolerance: relative, against the masked network.  macs: dense over cut, of all operations.
        dense: median CPU seconds of a pass.  faster: dense over cut, median of the pairs, and their quartiles.
    """

    name: str
    hidden: tuple[int, int]
    removed: float
    error: float
    tolerance: float
    macs: float
    dense: float
    faster: tuple[float, float, float]


class Tagger(nn.Module):
    """Features of every step -> recurrent layers -> classes of every step."""

    def __init__(self, setting: Setting, hidden: int = HIDDEN) -> None:
        super().__init__()
        options: dict[str, Any] = {"num_layers": setting.layers, "bidirectional": setting.both, "batch_first": True}
        if setting.projected:
            options["proj_size"] = PROJECTED
        self.rnn: nn.RNNBase = KINDS[setting.kind](INPUT, hidden, **options)
        self.out = nn.Linear((PROJECTED if setting.projected else hidden) * (2 if setting.both else 1), 10)
        self.packed = setting.packed

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Scores [example, step, class] of x [example, step, feature]."""
        if not self.packed:
            return self.out(self.rnn(x)[0])
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.out(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0])


def main(arguments: list[str] | None = None) -> int:
    """Measures all networks and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one layer, fewer passes")
    parser.add_argument("--pairs", type=int, default=40, help="timed passes of each network")
    parser.add_argument("--json", action="store_true", help="the results as JSON on the last line")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
    rows = []
    print(HEAD)
    for setting in settings((1,) if args.quick else (1, 2, 3)):
        rows.append(measure(setting, 5 if args.quick else args.pairs))
        print(line(rows[-1]), flush=True)
    ratios = [row.faster[0] for row in rows]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} times as fast, median {statistics.median(ratios):.2f}"
    print(f"\n{len(rows)} networks: {spread}.")
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
    return 0


def settings(layers: Sequence[int]) -> list[Setting]:
    """All that exist: torch projects LSTMs only."""
    return [
        Setting(kind=kind, layers=n, both=both, projected=projected, packed=packed)
        for kind, n, both, packed in itertools.product(KINDS, layers, (False, True), (False, True))
        for projected in ((False, True) if kind == "LSTM" else (False,))
    ]


def measure(setting: Setting, pairs: int, hidden: int = HIDDEN) -> Row:
    """Cut one network to half of its hidden units, verify, and time it beside the dense one."""
    torch.manual_seed(0)
    model = Tagger(setting, hidden).eval()
    lengths = torch.linspace(STEPS, STEPS // 2, EXAMPLES).long()
    inputs = (torch.randn(EXAMPLES, STEPS, INPUT), lengths)
    groups = sc.couple(sc.trace(model, inputs))
    small, receipt = sc.cut(model, groups, halved(groups))
    assert receipt.verification is not None
    dense, cut = _count(model), _count(small)
    before, after = (_macs(groups, plan) for plan in (whole(groups), halved(groups)))
    times = alternate(model, small.eval(), inputs, pairs)
    ratios = [a / b for a, b in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Row(
        name=setting.name,
        hidden=(hidden, small.get_parameter("rnn.weight_hh_l0").shape[0] // GATES[setting.kind]),
        removed=1 - cut / dense,
        error=receipt.verification.error,
        tolerance=receipt.verification.tolerance,
        macs=before / after,
        dense=statistics.median(a for a, _ in times),
        faster=(middle, low, high),
    )


def halved(groups: Groups) -> sc.Plan:
    """Every other hidden unit of every layer and direction; projections and whatever else there is stay whole."""
    return _plan(groups, [2 if _is_hidden(g.name) else 1 for g in groups.groups])


def whole(groups: Groups) -> sc.Plan:
    """Everything stays."""
    return _plan(groups, [1] * len(groups.groups))


def _plan(groups: Groups, steps: Sequence[int]) -> sc.Plan:
    kept = tuple(tuple(range(0, g.n_units, step)) for g, step in zip(groups.groups, steps, strict=True))
    names, sizes = tuple(g.name for g in groups.groups), tuple(g.n_units for g in groups.groups)
    return sc.Plan(kept=kept, names=names, n_units=sizes)


def _is_hidden(name: str) -> bool:
    return name.startswith("rnn.weight_ih")


def _macs(groups: Groups, plan: sc.Plan) -> int:
    from secateur._cost import cost

    return cost(groups.costs, [len(k) for k in plan.kept]).macs


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def alternate(first: nn.Module, second: nn.Module, inputs: tuple[Any, ...], pairs: int) -> list[tuple[float, float]]:
    """CPU seconds of one pass of each, in turns, whoever comes first changing every time."""
    found = []
    with torch.no_grad():
        for model in (first, second) * 3:
            model(*inputs)
        for i in range(pairs):
            seconds: dict[int, float] = {}
            for model in (first, second) if i % 2 == 0 else (second, first):
                started = time.process_time()
                model(*inputs)
                seconds[id(model)] = time.process_time() - started
            found.append((seconds[id(first)], seconds[id(second)]))
    return found


HEAD = (
    "| network | hidden | parameters gone | error (allowed) | MACs | dense, ms | times as fast (quartiles) |\n"
    "|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    """A row of the table."""
    middle, low, high = row.faster
    cells = (
        row.name,
        f"{row.hidden[0]} → {row.hidden[1]}",
        f"{row.removed:.1%}",
        f"{row.error:.0e} ({row.tolerance:.0e})",
        f"1/{row.macs:.2f}",
        f"{1e3 * row.dense:.2f}",
        f"**{middle:.2f}** ({low:.2f} to {high:.2f})",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
