"""Fourier transforms: the transformed axes are mixed and cannot shrink, all others pass."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.ops._kernel import Kernel, Label
from secateur.ops._rule import Operation, bare


def fourier(k: Kernel, op: Operation) -> Label:
    """_fft_r2c, _fft_c2c, _fft_c2r(x, dims, ...): lengths along `dims` may change."""
    x = k.only(op.args[0], list(op.args[1]), "a Fourier transform mixes this axis")
    return k.label(op.shape, x.slots)


def windows(k: Kernel, op: Operation) -> Sequence[Label | None]:
    """stft, istft: time is cut into windows, so nothing of a signal can go."""
    for label in op.labels:
        k.freeze_label(label, "a Fourier transform mixes this axis")
    return [bare(shape) for shape in op.shapes]


RULES = (
    ("_fft_r2c", fourier),
    ("_fft_c2c", fourier),
    ("_fft_c2r", fourier),
    ("stft", windows),
    ("istft", windows),
)
