"""Synaptic flow through a unit, without data.  Source: Tanaka et al. 2020 (SynFlow), arXiv:2006.05467."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.schema.members import Criterion


def synflow() -> Criterion:
    """Flow through the weights that produce a unit: score[u] = sum over e of |w[u, e]| dR/d|w[u, e]|.

    R is the sum of the outputs of the network with absolute weights and buffers, in eval mode, for an input of ones.
    In a network of linear maps and ReLU it is the sum over all paths of the products of their weights, and the score
    the part of it that passes through the unit.

    Arbitrary units. Of the data only the shape of an input matters; token ids are refused. With softmax, layer norm or
    saturating activations R is no sum over paths any more: the number can be had, its meaning is gone. Differs from
    source: one round. The paper removes in 100; `prune(steps=...)` scores anew before each cut.
    """

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": stats["write_flow"].sum(1)}

    return Criterion(
        name="synflow",
        needs=("write_flow",),
        unit="a.u.",
        order=0,
        source="Tanaka et al. 2020, arXiv:2006.05467, eq. 1 and algorithm 1",
        compute=compute,
    )
