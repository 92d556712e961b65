"""Serial: here, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Serial:
    """Runs the work in this process, in the order of the items; each result is handed over before the next starts."""

    name: str = "serial"

    def __call__(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(index of the item, result), lazily."""
        for index, item in enumerate(items):
            yield index, work(item)


def serial() -> Serial:
    """This process, one item after the other."""
    return Serial()
