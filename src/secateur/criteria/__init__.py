"""Criteria: one score per unit, computed from named statistics with the unit axis first.

Signature: (options) -> Criterion, whose `compute` takes the statistics of one group and returns [U] tensors: `value`,
and where there are such `error` (standard error over examples), `linear` and `quadratic` (predicted loss at scale
1 - t of the unit: t linear + t^2 quadratic). Higher = keep. The statistics are listed in `secateur/_stats.py`.
"""

from secateur.criteria.fisher import fisher as fisher
from secateur.criteria.hutchinson import hutchinson as hutchinson
from secateur.criteria.magnitude import magnitude as magnitude
from secateur.criteria.obd import obd as obd
from secateur.criteria.random import random as random
from secateur.criteria.taylor import absolute_taylor as absolute_taylor
from secateur.criteria.taylor import mean_absolute_taylor as mean_absolute_taylor
from secateur.criteria.taylor import squared_taylor as squared_taylor
from secateur.criteria.taylor import taylor as taylor
from secateur.schema.table import table

__all__ = [
    "CRITERIA",
    "absolute_taylor",
    "fisher",
    "hutchinson",
    "magnitude",
    "mean_absolute_taylor",
    "obd",
    "random",
    "squared_taylor",
    "taylor",
]

CRITERIA = table(
    ("random", random),
    ("magnitude", magnitude),
    ("taylor", taylor),
    ("absolute_taylor", absolute_taylor),
    ("squared_taylor", squared_taylor),
    ("mean_absolute_taylor", mean_absolute_taylor),
    ("fisher", fisher),
    ("obd", obd),
    ("hutchinson", hutchinson),
)
