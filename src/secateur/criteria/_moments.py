"""Standard errors of means over examples, from raw moments of the gate gradient g: m[u, k] = mean of g^(k+1)."""

from __future__ import annotations

import torch
from torch import Tensor


def of_linear(m: Tensor, n: Tensor) -> Tensor:
    """Standard error of mean g: sqrt(var(g) / n), [U]."""
    return (_variance(m[:, 1], m[:, 0]) / n).sqrt()


def of_half_square(m: Tensor, n: Tensor) -> Tensor:
    """Standard error of mean g^2 / 2, [U]."""
    return (_variance(m[:, 3], m[:, 1]) / n).sqrt() / 2


def of_expansion(m: Tensor, n: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    """Standard error of mean of -g + factor g^2 / 2, [U]: both terms come from the same examples and are correlated."""
    covariance = m[:, 2] - m[:, 0] * m[:, 1]
    variance = _variance(m[:, 1], m[:, 0]) + factor**2 * _variance(m[:, 3], m[:, 1]) / 4 - factor * covariance
    return (variance.clamp(min=0) / n).sqrt()


def _variance(second: Tensor, first: Tensor) -> Tensor:
    return torch.clamp(second - first.square(), min=0)
