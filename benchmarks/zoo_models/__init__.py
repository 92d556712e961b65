"""The models of the zoo: one module per set, each with `entries()`. Weights are random, inputs small."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model.

    Attributes:
        name: unique in its set.
        build: makes the model, with random weights.
        inputs: makes what the model takes: a tensor, a tuple of arguments, or a mapping of keyword arguments.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]


SETS = ("nasty", "nn", "transformers", "torchvision", "timm")


def entries(name: str) -> list[Entry]:
    """The models of a set; optional libraries are imported here."""
    module = importlib.import_module(f"zoo_models.{name}_set")
    found: list[Entry] = module.entries()
    names = [entry.name for entry in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two models of set {name} have one name: {sorted(n for n in names if names.count(n) > 1)}")
    return found
