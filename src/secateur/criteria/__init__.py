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
from secateur.criteria.grasp import grasp as grasp
from secateur.criteria.hrank import hrank as hrank
from secateur.criteria.hutchinson import hutchinson as hutchinson
from secateur.criteria.lamp import lamp as lamp
from secateur.criteria.magnitude import magnitude as magnitude
from secateur.criteria.mean_replacement import mean_replacement as mean_replacement
from secateur.criteria.obd import obd as obd
from secateur.criteria.obs import obs as obs
from secateur.criteria.random import random as random
from secateur.criteria.snip import snip as snip
from secateur.criteria.synflow import synflow as synflow
from secateur.criteria.taylor import absolute_taylor as absolute_taylor
from secateur.criteria.taylor import mean_absolute_taylor as mean_absolute_taylor
from secateur.criteria.taylor import squared_taylor as squared_taylor
from secateur.criteria.taylor import taylor as taylor
from secateur.criteria.wanda import wanda as wanda
from secateur.criteria.weight_taylor import weight_taylor as weight_taylor
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
    "grasp",
    "hrank",
    "hutchinson",
    "lamp",
    "magnitude",
    "mean_absolute_taylor",
    "mean_activation",
    "mean_replacement",
    "obd",
    "obs",
    "random",
    "snip",
    "squared_taylor",
    "synflow",
    "taylor",
    "wanda",
    "weight_taylor",
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
    ("hrank", hrank),
    ("synflow", synflow),
    ("grasp", grasp),
    ("snip", snip),
    ("weight_taylor", weight_taylor),
    ("mean_replacement", mean_replacement),
    ("taylor", taylor),
    ("absolute_taylor", absolute_taylor),
    ("squared_taylor", squared_taylor),
    ("mean_absolute_taylor", mean_absolute_taylor),
    ("fisher", fisher),
    ("obd", obd),
    ("hutchinson", hutchinson),
    ("obs", obs),
)
