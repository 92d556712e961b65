"""Recoveries: how quality is won back after a cut.

Signature: (model, batches, task, *, teacher, seed, progress) -> model; trains the model in place, which is a copy
that `recover` made. Randomness comes from torch's global generator, which `recover` has seeded.
"""

from secateur.recoveries.chain import Chain as Chain
from secateur.recoveries.chain import chain as chain
from secateur.recoveries.distill import Distill as Distill
from secateur.recoveries.distill import distill as distill
from secateur.recoveries.finetune import Finetune as Finetune
from secateur.recoveries.finetune import finetune as finetune
from secateur.recoveries.recalibrate import Recalibrate as Recalibrate
from secateur.recoveries.recalibrate import has_running_statistics as has_running_statistics
from secateur.recoveries.recalibrate import recalibrate as recalibrate
from secateur.schema.table import table

__all__ = [
    "RECOVERIES",
    "Chain",
    "Distill",
    "Finetune",
    "Recalibrate",
    "chain",
    "distill",
    "finetune",
    "has_running_statistics",
    "recalibrate",
]

RECOVERIES = table(
    ("recalibrate", recalibrate),
    ("finetune", finetune),
    ("distill", distill),
)
