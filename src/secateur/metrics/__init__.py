"""Metrics: how the paired drops of examples become one number that cross-validation can judge.

Signature: (drops [N], weights [N], groups or None) -> (value, standard error); positive = worse.
"""

from secateur.metrics.mean import Mean as Mean
from secateur.metrics.mean import mean as mean
from secateur.metrics.quantile import Quantile as Quantile
from secateur.metrics.quantile import quantile as quantile
from secateur.metrics.worst_group import WorstGroup as WorstGroup
from secateur.metrics.worst_group import worst_group as worst_group
from secateur.schema.table import table

__all__ = ["METRICS", "Mean", "Quantile", "WorstGroup", "mean", "quantile", "worst_group"]

METRICS = table(
    ("mean", mean),
    ("worst_group", worst_group),
    ("quantile", quantile),
)
