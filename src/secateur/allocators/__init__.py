"""Allocators: how many units each group keeps.

Signature: problem -> kept counts, [group]. Deterministic; the budget is never exceeded and nothing more fits into
it; every count equation holds. Raises `BudgetUnreachable` and `Unsatisfiable`; those that compare losses across
groups refuse arbitrary units (`IncomparableScores`) unless told how to normalise.
"""

from secateur.allocators.equal_loss import EqualLoss as EqualLoss
from secateur.allocators.equal_loss import equal_loss as equal_loss
from secateur.allocators.global_threshold import GlobalThreshold as GlobalThreshold
from secateur.allocators.global_threshold import global_threshold as global_threshold
from secateur.allocators.greedy import Greedy as Greedy
from secateur.allocators.greedy import greedy as greedy
from secateur.allocators.knapsack import Knapsack as Knapsack
from secateur.allocators.knapsack import knapsack as knapsack
from secateur.allocators.uniform import Uniform as Uniform
from secateur.allocators.uniform import uniform as uniform
from secateur.schema.table import table

__all__ = [
    "ALLOCATORS",
    "EqualLoss",
    "GlobalThreshold",
    "Greedy",
    "Knapsack",
    "Uniform",
    "equal_loss",
    "global_threshold",
    "greedy",
    "knapsack",
    "uniform",
]

ALLOCATORS = table(
    ("uniform", uniform),
    ("equal_loss", equal_loss),
    ("global_threshold", global_threshold),
    ("greedy", greedy),
    ("knapsack", knapsack),
)
