"""Costs: what a model costs, in numbers that a user can check."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The cost of a model, dense or cut.

    Attributes:
        macs: multiply-accumulates of one forward pass of the example inputs.
        params: elements of all parameters (tied ones once).
        memory: bytes of all parameters and buffers.
    """

    macs: int
    params: int
    memory: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Measured time of one forward pass, over interleaved runs.

    Attributes:
        batch: batch size.  threads: torch threads.  device, runtime: where.
        median, low, high: seconds; low and high bound the median with 95 % confidence (order statistics).
        n: timed runs.
    """

    label: str
    batch: int
    threads: int
    device: str
    runtime: str
    median: float
    low: float
    high: float
    n: int
