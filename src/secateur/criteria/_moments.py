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


def _variance(second: Tensor, first: Tensor) -> Tensor:
    return torch.clamp(second - first.square(), min=0)
