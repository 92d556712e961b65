"""Schedules: how far a gradual run has come after each step.

Signature: (step, steps) -> fraction of the way to the target, in (0, 1]; steps count from 1; 1 at the last one.
The fraction is of what is to be removed of the *original* cost: the base never drifts.
"""

from secateur.schedules.cubic import Cubic as Cubic
from secateur.schedules.cubic import cubic as cubic
from secateur.schedules.linear import Linear as Linear
from secateur.schedules.linear import linear as linear
from secateur.schedules.one_shot import OneShot as OneShot
from secateur.schedules.one_shot import one_shot as one_shot
from secateur.schema.table import table

__all__ = ["SCHEDULES", "Cubic", "Linear", "OneShot", "cubic", "linear", "one_shot"]

SCHEDULES = table(
    ("one_shot", one_shot),
    ("linear", linear),
    ("cubic", cubic),
)
