"""Tasks: what a network is for. Each is made by a call and gives one loss (nats) and one score per example.

Signature: (options) -> Task. `match_output(teacher)`, `from_mean(loss)` and `from_losses(forward)` (detection: a
dictionary of losses per image) need an argument; all others have defaults. Whatever else has losses of its own: write
`sc.Task(forward=..., losses=...)`.
"""

from secateur.schema.table import table
from secateur.tasks.classification import classification as classification
from secateur.tasks.from_losses import from_losses as from_losses
from secateur.tasks.from_mean import from_mean as from_mean
from secateur.tasks.match_output import match_output as match_output
from secateur.tasks.multi_label import multi_label as multi_label
from secateur.tasks.regression import regression as regression
from secateur.tasks.tokens import language_modeling as language_modeling
from secateur.tasks.tokens import segmentation as segmentation
from secateur.tasks.tokens import token_classification as token_classification

__all__ = [
    "TASKS",
    "classification",
    "from_losses",
    "from_mean",
    "language_modeling",
    "match_output",
    "multi_label",
    "regression",
    "segmentation",
    "token_classification",
]

TASKS = table(
    ("classification", classification),
    ("language_modeling", language_modeling),
    ("multi_label", multi_label),
    ("regression", regression),
    ("segmentation", segmentation),
    ("token_classification", token_classification),
)
