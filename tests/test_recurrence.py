"""Recurrent layers taken apart: what they compute, forth and back, is what torch's fused calls do."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur._recurrence import RECURRENT, Watch, unrolled

KINDS: list[tuple[type[nn.RNNBase], dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.LSTM, {"bias": False}),
    (nn.LSTM, {"proj_size": 3}),
    (nn.GRU, {}),
    (nn.GRU, {"bias": False}),
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu"}),
]


def both(model: nn.Module, *inputs: Any) -> tuple[Any, Any]:
    """(what the fused calls return, what the unrolled ones do)."""

    class Unrolling(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in RECURRENT:
                return unrolled(RECURRENT[func], F.linear, Watch(lambda weight, x: None, None), *args)
            return func(*args, **(kwargs or {}))

    plain = model(*inputs)
    with Unrolling():
        return plain, model(*inputs)


def made(kind: type[nn.RNNBase], options: dict[str, Any], **more: Any) -> tuple[nn.RNNBase, Tensor, Any]:
    """Two layers in float64, an input of six steps of three examples, and a state to start from."""
    torch.manual_seed(5)
    model = kind(4, 5, 2, **options, **more).double()
    x = torch.randn((3, 6, 4) if more.get("batch_first") else (6, 3, 4), dtype=torch.float64)
    layers = 4 if more.get("bidirectional") else 2
    h, c = (torch.randn(layers, 3, n, dtype=torch.float64) for n in (options.get("proj_size", 5), 5))
    return (
        model,
        x.requires_grad_(),
        (h.requires_grad_(), c.requires_grad_()) if kind is nn.LSTM else h.requires_grad_(),
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("used", ["output", "two steps", "states", "everything"])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_an_unrolled_network_computes_what_the_fused_one_does(
    kind: type[nn.RNNBase], options: dict[str, Any], used: str, bidirectional: bool, batch_first: bool
) -> None:
    """And so do its ways back, to the input, the first states and all parameters, twice over."""
    model, x, state = made(kind, options, bidirectional=bidirectional, batch_first=batch_first)
    results = both(model, x, state)
    torch.testing.assert_close(*results)
    asked = [x, *([*state] if isinstance(state, tuple) else [state]), *model.parameters()]
    found = []
    for out, states in results:
        parts = {
            "output": [out],
            "two steps": [out.narrow(int(batch_first), 0, 2)],
            "states": [*states] if isinstance(states, tuple) else [states],
        }
        chosen = parts.get(used) or [*parts["output"], *parts["states"]]
        loss = torch.stack([(v.sin() * torch.arange(v.numel()).view_as(v)).sum() for v in chosen]).sum()
        for _ in range(2):
            grads = torch.autograd.grad(loss, asked, retain_graph=True, allow_unused=True)
            found.append([torch.zeros_like(a) if g is None else g for a, g in zip(asked, grads, strict=True)])
    assert len(found) == 4
    for other in found[1:]:
        torch.testing.assert_close(found[0], other)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_an_unrolled_network_hands_out_may_be_changed_in_place(
    kind: type[nn.RNNBase], options: dict[str, Any]
) -> None:
    model, x, state = made(kind, options)

    def gradients(*, spoil: bool) -> tuple[Tensor, ...]:
        _, (out, states) = both(model, x, state)
        parts = [out, *(states if isinstance(states, tuple) else [states])]
        loss = torch.stack([v.sum() for v in parts]).sum()
        for v in parts if spoil else []:
            v.detach().zero_()
        return torch.autograd.grad(loss, (x, *model.parameters()))

    torch.testing.assert_close(gradients(spoil=False), gradients(spoil=True))


def test_an_unrolled_network_is_freed_with_its_output() -> None:
    model, x, state = made(nn.LSTM, {})
    _, (out, _) = both(model, x, state)
    node = weakref.ref(out.grad_fn)
    gc.disable()
    try:
        del out, _
        assert node() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("kind", "options"), [k for k in KINDS if "proj_size" not in k[1]])
def test_an_unrolled_network_takes_mixed_precision(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    torch.manual_seed(6)
    model = kind(4, 5, 2, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, (out, _) = both(model, torch.randn(6, 3, 4))
    torch.testing.assert_close(plain[0].float(), out.float(), rtol=0.05, atol=0.02)
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
