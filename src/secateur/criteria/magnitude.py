"""Norm of the weights that produce a unit.  Source: Li et al. 2017, arXiv:1608.08710, section 3.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from secateur.errors import InputError
from secateur.schema.members import Criterion


def magnitude(p: float = 2, *, of: Literal["write", "read", "all"] = "write") -> Criterion:
    """Norm of a unit's weights: score[u] = (sum over elements of |w[u, e]|^p)^(1/p).

    Args:
        p: 1 or 2, or any other norm.
        of: the weights that produce the unit (the paper's filters; biases count), that consume it, or all of them
            with the batch norm's scale and shift.

    Arbitrary units. A dead unit may score high. Differs from source: nothing, for p = 1 and layers without bias.
    """
    if not p > 0:
        raise InputError("a norm needs p > 0", got=p)
    need = f"{of}_weights"

    def compute(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"value": stats[need].abs().pow(p).sum(1).pow(1 / p)}

    return Criterion(
        name=f"magnitude_l{p:g}" + ("" if of == "write" else f"_{of}"),
        needs=(need,),
        unit="a.u.",
        order=0,
        source="Li et al. 2017, arXiv:1608.08710",
        compute=compute,
    )
