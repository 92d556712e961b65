"""Criteria: one score per unit, computed from named statistics with the unit axis first.

Signature: (options) -> Criterion, whose `compute` takes the statistics of one group and returns [U] tensors: `value`,
and where there are such `error` (standard error over examples), `linear` and `quadratic` (predicted loss at scale
1 - t of the unit: t linear + t^2 quadratic). Higher = keep. The statistics are listed in `secateur/_stats.py`.
"""

from collections.abc import Callable, Mapping

from secateur.criteria.activation import apoz as apoz
from secateur.criteria.activation import fluctuation as fluctuation
from secateur.criteria.activation import mean_activation as mean_activation
from secateur.criteria.bn_scale import bn_scale as bn_scale
from secateur.criteria.fisher import fisher as fisher
from secateur.criteria.geometric_median import geometric_median as geometric_median
from secateur.criteria.hutchinson import hutchinson as hutchinson
from secateur.criteria.lamp import lamp as lamp
from secateur.criteria.magnitude import magnitude as magnitude
from secateur.criteria.obd import obd as obd
from secateur.criteria.random import random as random
from secateur.criteria.snip import snip as snip
from secateur.criteria.taylor import absolute_taylor as absolute_taylor
from secateur.criteria.taylor import mean_absolute_taylor as mean_absolute_taylor
from secateur.criteria.taylor import squared_taylor as squared_taylor
from secateur.criteria.taylor import taylor as taylor
from secateur.criteria.wanda import wanda as wanda
from secateur.schema.members import Criterion
from secateur.schema.table import table

__all__ = [
    "CRITERIA",
    "absolute_taylor",
    "apoz",
    "bn_scale",
    "fisher",
    "fluctuation",
    "geometric_median",
    "hutchinson",
    "lamp",
    "magnitude",
    "mean_absolute_taylor",
    "mean_activation",
    "obd",
    "random",
    "snip",
    "squared_taylor",
    "taylor",
    "wanda",
]

CRITERIA: Mapping[str, Callable[..., Criterion]] = table(
    ("random", random),
    ("magnitude", magnitude),
    ("geometric_median", geometric_median),
    ("lamp", lamp),
    ("bn_scale", bn_scale),
    ("mean_activation", mean_activation),
    ("apoz", apoz),
    ("fluctuation", fluctuation),
    ("wanda", wanda),
    ("snip", snip),
    ("taylor", taylor),
    ("absolute_taylor", absolute_taylor),
    ("squared_taylor", squared_taylor),
    ("mean_absolute_taylor", mean_absolute_taylor),
    ("fisher", fisher),
    ("obd", obd),
    ("hutchinson", hutchinson),
)
