"""The mean drop of the group that suffers most.  Source: Sagawa et al. 2020, arXiv:1911.08731."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstGroup:
    """See `worst_group`."""

    least: int
    name: str = "worst_group"

    def __call__(self, drops: Tensor, weights: Tensor, groups: Sequence[object] | None) -> tuple[float, float]:
        """(largest mean drop of a group, standard error of that group's mean)."""
        if groups is None:
            raise InputError(
                "the worst group needs groups, and the task gives none",
                where="metrics.worst_group",
                todo="give sc.Task(groups=...), for example the class or the site of each example",
            )
        worst: tuple[float, float] | None = None
        for key in dict.fromkeys(groups):
            mine = torch.tensor([k == key for k in groups])
            d, w = drops[mine], weights[mine]
            if len(d) < self.least or float(w.sum()) <= 0:
                continue
            share = w / w.sum()
            centre = (share * d).sum()
            correction = len(d) / (len(d) - 1) if len(d) > 1 else 1.0
            found = (float(centre), float(((share * (d - centre)).square().sum() * correction).sqrt()))
            worst = found if worst is None or found[0] > worst[0] else worst
        if worst is None:
            raise InputError(
                "no group has enough examples to be judged", where="metrics.worst_group", expected=f">= {self.least}"
            )
        return worst


def worst_group(*, least: int = 10) -> WorstGroup:
    """Max over groups of the mean drop, with the standard error of that group's mean.

    Args:
        least: groups with fewer examples are left out: a maximum over tiny groups is noise.
    """
    return WorstGroup(least=least)
