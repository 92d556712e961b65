"""Standard errors of means over examples, from means of products.

Those of the gate gradient g alone are raw moments: m[u, k] = mean of g^(k+1).
"""

from __future__ import annotations

import torch
from torch import Tensor


def of_linear(m: Tensor, n: Tensor) -> Tensor:
    """Standard error of mean g: sqrt(var(g) / n), [U]."""
    return (_variance(m[:, 1], m[:, 0]) / n).sqrt()


def of_half_square(m: Tensor, n: Tensor) -> Tensor:
    """Standard error of mean g^2 / 2, [U]."""
    return (_variance(m[:, 3], m[:, 1]) / n).sqrt() / 2


def of_sum(factors: Tensor, means: Tensor, products: Tensor, n: Tensor) -> Tensor:
    """Standard error of the mean of sum over i of factors[i] x[n, u, i], [U]; the x of one example are correlated.

    Args:
        factors: [k].  means: [U, k] of x.  products: [U, k, k], means of x[i] x[j].
    """
    covariance = products - means.unsqueeze(2) * means.unsqueeze(1)
    variance = torch.einsum("i,uij,j->u", factors, covariance, factors)
    return (variance.clamp(min=0) / n).sqrt()


def signal(mean: Tensor, error: Tensor) -> Tensor:
    """The share of the spread of means over units that is not noise of the examples: max(0, 1 - 1 / mean z^2), [].

    z = mean / its standard error. The positive-part James-Stein estimate (Stein 1961; Efron & Morris 1973) for
    means whose true size is in proportion to their noise. 1 where nothing is noisy.
    """
    noisy = error > 0
    z2 = (mean[noisy] / error[noisy]).square()
    return mean.new_ones(()) if len(z2) == 0 else (1 - 1 / z2.mean().clamp(min=1e-300)).clamp(min=0)


def _variance(second: Tensor, first: Tensor) -> Tensor:
    return torch.clamp(second - first.square(), min=0)
