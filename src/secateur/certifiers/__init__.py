"""Certifiers: is the mean drop shown to be within a margin?

Signature: (drops: Drops, *, margin, level) -> Outcome, beside limit() and needed() of the same signature;
see `secateur.schema.members.Certifier`. A certifier is chosen before held-out data is read.
"""

from secateur.certifiers.betting import Betting as Betting
from secateur.certifiers.betting import betting as betting
from secateur.certifiers.exact import Exact as Exact
from secateur.certifiers.exact import exact as exact
from secateur.schema.table import table

__all__ = ["CERTIFIERS", "Betting", "Exact", "betting", "exact"]

CERTIFIERS = table(
    ("exact", exact),
    ("betting", betting),
)
