"""An interval for corpus metrics, which is not a certificate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur import _evaluate
from secateur.errors import EmptyData, InputError
from secateur.schema.certificate import BootstrapInterval
from secateur.schema.task import Batch, Batches, Task


def bootstrap_interval(
    model: nn.Module,
    candidate: nn.Module,
    held_out: Batches,
    task: Task,
    *,
    records: Callable[[Any, Batch], Sequence[Any]],
    metric: Callable[[Sequence[Any]], float],
    metric_name: str,
    name: str = "candidate",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> BootstrapInterval:
    """A percentile bootstrap interval for the drop of a corpus metric. Not a certificate.

    F1, mAP or BLEU are no means over examples, so no finite-sample bound of `certify` applies; the interval is
    right only as the number of units grows. Whole units (examples, or groups of the task) are resampled, the same ones
    for both models.

    Args:
        records: (out, batch) -> N records, one per example: whatever the metric needs of it.
        metric: (records of the examples) -> the metric of this corpus.

    Source: Efron 1979; Koehn 2004 (paired bootstrap for BLEU).
    """
    if not 0 < confidence < 1 or resamples < 100:
        raise InputError("0 < confidence < 1 and at least 100 resamples are needed", got=(confidence, resamples))
    _evaluate.check_batches(held_out)
    pairs: list[tuple[Any, Any]] = []
    units: dict[object, list[int]] = {}
    for index, batch in enumerate(held_out):
        both = []
        for judged in (model, candidate):
            where = _evaluate.device_of(judged) if device is None else torch.device(device)
            moved = _evaluate.to_device(batch, where)
            with _evaluate.mode(judged), torch.no_grad():
                both.append(list(records(task.forward(judged, moved), moved)))
        n = len(both[0])
        if len(both[1]) != n:
            raise InputError(
                "the two models gave different numbers of records", where=f"batch {index}", got=(n, len(both[1]))
            )
        keys = _evaluate.groups_of(task, batch, n, where=f"batch {index}")
        for i, pair in enumerate(zip(*both, strict=True)):
            units.setdefault(len(pairs) if keys is None else ("group", keys[i]), []).append(len(pairs))
            pairs.append(pair)
    if not pairs:
        raise EmptyData("the held-out data holds no example", where="held_out")
    members = list(units.values())
    generator = np.random.default_rng(seed)

    def values(chosen: Iterable[int]) -> tuple[float, float]:
        rows = [pairs[i] for u in chosen for i in members[u]]
        return float(metric([r[0] for r in rows])), float(metric([r[1] for r in rows]))

    dense, pruned = values(range(len(members)))
    drops = []
    for _ in range(resamples):
        d, p = values(generator.integers(len(members), size=len(members)).tolist())
        drops.append(d - p)
    if not np.isfinite([dense, pruned, *drops]).all():
        raise InputError(f"the metric {metric_name!r} is not finite on some resample", todo="define it for any corpus")
    low, high = np.quantile(drops, [(1 - confidence) / 2, (1 + confidence) / 2])
    return BootstrapInterval(
        metric=metric_name, name=name, dense=dense, pruned=pruned, drop=dense - pruned, low=float(low),
        high=float(high), confidence=confidence, resamples=resamples, n_units=len(members), seed=seed,
    )  # fmt: skip
