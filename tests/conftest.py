"""Settings for all tests."""

from __future__ import annotations

import os

import hypothesis
import pytest
import torch

from helpers.compiled_ops import declare_torchvision_ops

# No deadline: the first example of a test pays for lazy imports. Derandomised in CI: a red run can be repeated.
hypothesis.settings.register_profile("local", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# transformers and timm import torchvision where they find it: in whichever test that happens first, in any order.
declare_torchvision_ops()


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Whoever forgets a generator still gets the same numbers every time, alone or in any order."""
    torch.manual_seed(0)
