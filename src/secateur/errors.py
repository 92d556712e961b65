"""Every error that Secateur raises on purpose.

    SecateurError
    ├── InputError                  what the user passed cannot be used
    │   ├── OneShotIterable         data that can be iterated only once
    │   ├── EmptyData               no batch, or no example
    │   ├── TaskShapeError          a task returned a scalar, or a wrong length
    │   ├── NonFinite               NaN or infinity in a loss, score, gradient or weight
    │   ├── SplitOverlap            held-out data that stands in the search or train data
    │   ├── BudgetUnreachable       the budget is below the least reachable cost (`.least`)
    │   ├── UnknownName             no member, model or group of that name
    │   └── NotInstalled            an optional package is missing
    ├── TraceError                  the model could not be run or recorded
    ├── UnsupportedModel            a kind of model that is refused by name (quantised, ...)
    ├── CoupleError                 an op rule contradicted the recording
    │   └── Unsatisfiable           count equations without a solution
    ├── MissingStatistic            a criterion needs what was not, or cannot be, collected
    ├── IncomparableScores          scores in arbitrary units compared across groups
    ├── CutError                    the cut could not be made
    │   ├── NothingToCut            everything is frozen (the reasons are listed)
    │   ├── CutMismatch             the cut model differs from the masked oracle (`.node`)
    │   └── RewrittenForward        a forward that was written again is used in another way than recorded
    ├── StaleArtifact               a noun made for another model, data set or version
    │   └── ReceiptMismatch         a receipt for another model
    ├── FileCorrupt                 a truncated, tampered or unknown file
    ├── ExportMismatch              an exported model computes something else
    └── CertificateError            a certificate that cannot honestly be given

Each message says what failed, where, what was expected and got, and what to do.
"""

from __future__ import annotations

__all__ = [
    "BudgetUnreachable",
    "CertificateError",
    "CoupleError",
    "CutError",
    "CutMismatch",
    "EmptyData",
    "ExportMismatch",
    "FileCorrupt",
    "IncomparableScores",
    "InputError",
    "MissingStatistic",
    "NonFinite",
    "NotInstalled",
    "NothingToCut",
    "OneShotIterable",
    "ReceiptMismatch",
    "RewrittenForward",
    "SecateurError",
    "SplitOverlap",
    "StaleArtifact",
    "TaskShapeError",
    "TraceError",
    "UnknownName",
    "Unsatisfiable",
    "UnsupportedModel",
]


class SecateurError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: one sentence saying what failed.
        where: module path, parameter, node or file.
        expected: what would have been right.
        got: what was found.
        todo: what the user can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: object = None,
        got: object = None,
        todo: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.got, self.todo = what, where, expected, got, todo
        lines = [what]
        lines += [f"  where:    {where}"] if where is not None else []
        lines += [f"  expected: {expected}"] if expected is not None else []
        lines += [f"  got:      {got}"] if got is not None else []
        lines += [f"  do this:  {todo}"] if todo is not None else []
        super().__init__("\n".join(lines))


class InputError(SecateurError, ValueError):
    """What the user passed cannot be used."""


class OneShotIterable(InputError):
    """The data can be iterated only once; every stage iterates it again."""


class EmptyData(InputError):
    """No batch, or batches without examples."""


class TaskShapeError(InputError):
    """A task returned something else than one value per example."""


class NonFinite(InputError):
    """NaN or infinity where a finite number belongs."""


class SplitOverlap(InputError):
    """Held-out examples that also stand in the data used for choosing."""


class BudgetUnreachable(InputError):
    """The budget lies below the least reachable cost.

    Attributes:
        least: the least reachable fraction kept, per cost that the budget names.
    """

    def __init__(self, what: str, *, least: dict[str, float], **details: object) -> None:
        self.least = least
        super().__init__(what, **details)  # type: ignore[arg-type]


class UnknownName(InputError):
    """No member, model or group of that name."""


class NotInstalled(SecateurError, ImportError):
    """An optional package is missing."""


class TraceError(SecateurError):
    """The model could not be run or recorded on the example inputs."""


class UnsupportedModel(SecateurError):
    """A kind of model that is refused by name."""


class CoupleError(SecateurError):
    """An op rule contradicted the recording; a bug of the rule, never of the model."""


class Unsatisfiable(CoupleError):
    """Count equations without an integer solution."""


class MissingStatistic(SecateurError):
    """A criterion needs a statistic that was not, or cannot be, collected."""


class IncomparableScores(SecateurError):
    """Scores in arbitrary units were to be compared across groups."""


class CutError(SecateurError):
    """The cut could not be made; the user's model is untouched."""


class NothingToCut(CutError):
    """Everything is frozen."""


class CutMismatch(CutError):
    """The cut model differs from the masked oracle.

    Attributes:
        node: the first recorded operation where the two part, if it could be found.
        error: the relative error seen.
    """

    def __init__(self, what: str, *, node: str | None = None, error: float | None = None, **details: object) -> None:
        self.node, self.error = node, error
        super().__init__(what, **details)  # type: ignore[arg-type]


class RewrittenForward(CutError):
    """A forward that was written again from its recording meets a mode or an argument that was not recorded."""


class StaleArtifact(SecateurError):
    """A noun made for another model, data set or version."""


class ReceiptMismatch(StaleArtifact):
    """A receipt for another model."""


class FileCorrupt(SecateurError):
    """A truncated, tampered or unknown file."""


class ExportMismatch(SecateurError):
    """An exported model computes something else than the PyTorch model."""


class CertificateError(SecateurError):
    """A certificate that cannot honestly be given."""
