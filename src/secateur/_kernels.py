"""Which kernels of torch compute: settings that hold inside a context and are put back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device | None) -> Iterator[None]:
    """Inside, single precision is single precision: a GPU rounds the factors of convolutions to 10 bits (TF32).

    By default it does so for convolutions, and for matrix products where the user allowed it: relative errors of
    1e-3, where 1e-6 is meant to tell a right result from a wrong one.
    """
    if device is None or device.type != "cuda":
        yield
        return
    settings = _settings()
    before = [getattr(owner, name) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            _set(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            _set(owner, name, value)


def _settings() -> list[tuple[Any, str, Any]]:
    """(owner, name, value that means full precision)."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        _ = products.allow_tf32, cudnn.allow_tf32
    except RuntimeError:  # the user has set them by their newer names, and the two do not mix
        return [(owner, "fp32_precision", "ieee") for owner in (products, cudnn.conv, cudnn.rnn)]  # type: ignore[attr-defined]
    return [(products, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def _set(owner: Any, name: str, value: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TF32.*")  # that there are newer names
        setattr(owner, name, value)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Inside, cuDNN is left out: its recurrent layers have no backward in evaluation mode."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before
