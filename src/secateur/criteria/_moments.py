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


def of_expansion(m: Tensor, n: Tensor, factor: Tensor | float = 1.0, share: Tensor | float = 1.0) -> Tensor:
    """Standard error of mean of -share g + factor g^2 / 2, [U]: both terms come from the same, correlated, examples."""
    covariance = m[:, 2] - m[:, 0] * m[:, 1]
    first, second = _variance(m[:, 1], m[:, 0]), _variance(m[:, 3], m[:, 1])
    variance = share**2 * first + factor**2 * second / 4 - share * factor * covariance
    return (variance.clamp(min=0) / n).sqrt()


def signal(m: Tensor, n: Tensor) -> Tensor:
    """The share of the spread of mean g over units that is not noise of the examples: max(0, 1 - 1 / mean z^2), [].

    z = mean g / its standard error. The positive-part James-Stein estimate (Stein 1961; Efron & Morris 1973) for
    means whose true size is in proportion to their noise.
    """
    error = of_linear(m, n)
    alive = error > 0
    z2 = (m[alive, 0] / error[alive]).square()
    return m.new_ones(()) if len(z2) == 0 else (1 - 1 / z2.mean().clamp(min=1e-300)).clamp(min=0)


def _variance(second: Tensor, first: Tensor) -> Tensor:
    return torch.clamp(second - first.square(), min=0)
