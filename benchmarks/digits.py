"""The networks of the demo, trained as the demo trains them."""

from __future__ import annotations

import torch
from torch import nn

import secateur as sc
from secateur.cli import demo, demo_data


def demo_network(arch: str, *, quick: bool) -> tuple[nn.Module, sc.Data]:
    """(the network in eval mode, its digits). The same seed gives the same network; two epochs if `quick`."""
    torch.manual_seed(0)
    recipe, data = demo.RECIPES[arch], demo_data.splits()
    model = recipe.make()
    demo.train(model, data, epochs=2 if quick else recipe.epochs, lr=recipe.lr)
    return model.eval(), data
