"""Budget: how much of each cost may be kept."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.errors import InputError


@dataclass(frozen=True, slots=True)
class Budget:
    """Fractions that are *kept* of a cost: `Budget(macs=0.5)` means half the MACs remain.

    Attributes:
        macs: multiply-accumulates of the example inputs.  params: elements of all parameters.
        memory: bytes of all parameters and buffers.
    """

    macs: float | None = None
    params: float | None = None
    memory: float | None = None

    def __post_init__(self) -> None:
        named = {"macs": self.macs, "params": self.params, "memory": self.memory}
        if all(v is None for v in named.values()):
            raise InputError("an empty budget", todo="name at least one cost: Budget(macs=0.5)")
        for name, kept in named.items():
            if kept is not None and not 0.0 < kept <= 1.0:
                raise InputError(
                    "a budget is the fraction that is kept of a cost",
                    where=f"Budget({name}=...)",
                    expected="a number in (0, 1]",
                    got=kept,
                    todo="to remove 30 % of the MACs write Budget(macs=0.7)",
                )
