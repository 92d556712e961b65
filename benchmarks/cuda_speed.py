# ruff: noqa: E402  the sources are found before they are imported
"""On a GPU: how much faster is a network with half of its multiplications gone, and what does `round_to` add?

Networks of torchvision with random weights (the clock does not read them), half precision, `channels_last` for images;
every group loses the same, down to half of the MACs. Dense and cut models take turns. Kernels of a GPU want widths
that are multiples of 8 or more; `round_to` asks for them.

    make bench-cuda-speed                       needs a GPU; two minutes
    make bench-cuda-speed ARGS="--batch 16 --json"
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "src")]

import secateur as sc

GPU = torch.device("cuda")
MACS, MULTIPLES = 0.5, (1, 8, 32)


def vision(name: str) -> Callable[[int], tuple[nn.Module, Tensor]]:
    """A model of torchvision and a batch of images."""

    def build(batch: int) -> tuple[nn.Module, Tensor]:
        import torchvision

        model = torchvision.models.get_model(name, weights=None)
        return model, torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)

    return build


class Recurrent(nn.Module):
    """Two layers of an LSTM and a classifier."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(256, width, num_layers=2, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, 256] -> [n, 10]."""
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


NETWORKS: dict[str, Callable[[int], tuple[nn.Module, Tensor]]] = {
    **{name: vision(name) for name in ("resnet50", "convnext_tiny", "vit_b_16", "mobilenet_v3_large")},
    "lstm": lambda batch: (Recurrent(), torch.randn(batch, 128, 256)),
}


def row(name: str, batch: int) -> dict[str, Any]:
    """Milliseconds of one network, dense and cut at each multiple."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name](batch)
    groups = sc.couple(sc.trace(model.eval(), inputs[:2]))
    scores = sc.score(model, groups, [inputs[:2]], sc.tasks.regression(), criterion=sc.criteria.magnitude())
    models = {"dense": model}
    for multiple in MULTIPLES:
        plan = sc.plan(groups, scores, sc.Budget(macs=MACS), allocator=sc.allocators.uniform(), round_to=multiple)
        models[f"round_to={multiple}"], _ = sc.cut(model, groups, plan, verify=multiple == 8)
    layout = torch.channels_last if inputs.ndim == 4 else torch.contiguous_format
    ready = {key: m.to(GPU, torch.float16).to(memory_format=layout) for key, m in models.items()}  # type: ignore[call-overload]
    times = sc.measure(ready, {batch: inputs.to(GPU, torch.float16)}, repeats=50, warmup=10)
    return {"network": name, "batch": batch, "ms": {t.label: 1e3 * t.median for t in times}}


def main() -> int:
    """Prints a table; with --json, one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--network", action="append", choices=NETWORKS, help="repeatable; default: all")
    parser.add_argument("--json", action="store_true", help="the rows as JSON on the last line")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, float16, batch {options.batch}")
    print(f"{'network':20}{'dense, ms':>10}" + "".join(f"{f'round_to={m}':>16}" for m in MULTIPLES))
    rows = []
    for name in options.network or NETWORKS:
        rows.append(row(name, options.batch))
        dense, *others = rows[-1]["ms"].values()
        print(f"{name:20}{dense:10.2f}" + "".join(f"{t:9.2f}{dense / t:6.2f}x" for t in others), flush=True)
    if options.json:
        print(json.dumps({"rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
