"""Measured time of a forward pass: several models side by side, in turns, so that a busy machine is unfair to none."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from secateur._evaluate import Progress, device_of, mode, to_device
from secateur._units import call
from secateur.errors import InputError
from secateur.schema.costs import Latency


def measure(
    models: Mapping[str, nn.Module],
    inputs_by_batch: Mapping[int, Any],
    *,
    threads: int | None = None,
    repeats: int = 50,
    warmup: int = 5,
    progress: Progress | None = None,
) -> tuple[Latency, ...]:
    """Median time of one forward pass of each model at each batch size, with 95 % intervals.

    The runs are interleaved (one of each model per round, the first one rotating): whatever else the machine does
    falls on all models alike. Eval mode, no gradients; modes and the number of threads are restored.

    Args:
        models: label -> model.
        inputs_by_batch: batch size -> inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        threads: torch threads of the CPU; None = as set now. Stated in the result.
        repeats: timed runs of each, at least 6 (fewer have no 95 % interval of the median).
        warmup: untimed runs of each before.

    Returns:
        One `Latency` per batch size and model, in the given order; seconds.

    Raises:
        InputError: no model, no inputs, or a number out of range.
    """
    if not models or not inputs_by_batch:
        raise InputError("nothing to measure", expected="at least one model and one input")
    if repeats < 6 or warmup < 0 or (threads is not None and threads < 1):
        raise InputError(
            "a setting of measure cannot be used",
            expected="repeats >= 6, warmup >= 0, threads >= 1",
            got=f"repeats={repeats}, warmup={warmup}, threads={threads}",
        )
    before = torch.get_num_threads()
    measured: list[Latency] = []
    with ExitStack() as stack:
        if threads is not None:
            stack.callback(torch.set_num_threads, before)
            torch.set_num_threads(threads)
        for model in models.values():
            stack.enter_context(mode(model))
        stack.enter_context(torch.inference_mode())
        for position, (batch, inputs) in enumerate(inputs_by_batch.items()):
            prepared = {label: to_device(inputs, device_of(model)) for label, model in models.items()}
            times: dict[str, list[float]] = {label: [] for label in models}
            order = list(models)
            for turn in range(warmup + repeats):
                for label in (*order[turn % len(order) :], *order[: turn % len(order)]):
                    seconds = _time(models[label], prepared[label])
                    if turn >= warmup:
                        times[label].append(seconds)
                if progress is not None:
                    rounds = warmup + repeats
                    progress("latency", position * rounds + turn + 1, len(inputs_by_batch) * rounds)
            for label, model in models.items():
                median, low, high = median_interval(times[label])
                measured.append(
                    Latency(
                        label=label,
                        batch=batch,
                        threads=torch.get_num_threads(),
                        device=str(device_of(model) or "cpu"),
                        runtime=f"torch {torch.__version__}",
                        median=median,
                        low=low,
                        high=high,
                        n=repeats,
                    )
                )
    return tuple(measured)


def _time(model: nn.Module, inputs: Any) -> float:
    device = device_of(model)
    on_gpu = device is not None and device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call(model, inputs)
    if on_gpu:  # a launch returns before its work is done
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(median, low, high): the median, and the order statistics that enclose the true one.

    The number of values below the true median is binomial(n, 1/2), whatever the distribution: with l the largest
    rank for which P(B < l) <= (1 - confidence) / 2, the interval [x_(l), x_(n + 1 - l)] covers it with at least
    `confidence`.

    Raises:
        InputError: too few values for that confidence.
    Source: David & Nagaraja 2003, Order Statistics, section 7.1.
    """
    n = len(values)
    below, rank = 0.0, 0
    while below + math.comb(n, rank) / 2**n <= (1.0 - confidence) / 2.0:
        below += math.comb(n, rank) / 2**n
        rank += 1
    if rank == 0:
        raise InputError("too few values for an interval of the median", got=n, expected="at least 6 for 95 %")
    ordered = sorted(values)
    middle = ordered[n // 2] if n % 2 else 0.5 * (ordered[n // 2 - 1] + ordered[n // 2])
    return middle, ordered[rank - 1], ordered[n - rank]
