"""Literal tables: name -> factory, written out in one place; a duplicate raises instead of winning silently."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def table(*pairs: tuple[K, V]) -> Mapping[K, V]:
    """A read-only mapping of `pairs`.

    Raises:
        ValueError: two pairs with the same key.
    """
    made: dict[K, V] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"{key!r} stands twice in a table")
        made[key] = value
    return MappingProxyType(made)
