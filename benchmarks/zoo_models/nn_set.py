"""torch.nn's recurrent and transformer modules in all their options, between two linear layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo_models import Entry


class Recurrent(nn.Module):
    """Features -> recurrent layer -> head on every step, or on the final states."""

    def __init__(self, kind: str, *, given: bool = False, final: bool = False, **options: Any) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 10)
        self.rnn: nn.RNNBase = getattr(nn, kind)(10, 16, **options)
        self.given, self.final = given, final
        self.states = self.rnn.num_layers * (2 if self.rnn.bidirectional else 1)
        width = options.get("proj_size") or 16
        self.out = nn.Linear(width * (self.states if final else 2 if self.rnn.bidirectional else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        n = x.shape[0] if self.rnn.batch_first else x.shape[1]
        state: Any = None
        if self.given:
            hidden = x.new_zeros(self.states, n, self.rnn.hidden_size)
            first = x.new_zeros(self.states, n, self.rnn.proj_size) if self.rnn.proj_size else hidden
            state = (first, hidden) if self.rnn.mode == "LSTM" else hidden
        y, last = self.rnn(x, state)
        if not self.final:
            return self.out(y)
        h = last[0] if isinstance(last, tuple) else last
        return self.out(h.transpose(0, 1).flatten(1))


class Block(nn.Module):
    """Linear -> a transformer module -> linear."""

    def __init__(self, inner: nn.Module, *, memory: bool = False, causal: bool = False, padding: bool = False) -> None:
        super().__init__()
        self.inside, self.inner, self.out = nn.Linear(6, 16), inner, nn.Linear(16, 5)
        self.memory = nn.Linear(7, 16) if memory else None
        self.causal, self.padding = causal, padding

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = self.inside(x)
        options: dict[str, Any] = {}
        mask = "tgt_mask" if self.memory is not None else "mask"
        if isinstance(self.inner, nn.TransformerEncoderLayer):
            mask = "src_mask"
        if self.causal:
            steps = x.shape[1] if getattr(self.inner, "batch_first", True) else x.shape[0]
            options[mask] = nn.Transformer.generate_square_subsequent_mask(steps)
        if self.padding:
            hidden = torch.zeros(x.shape[0], x.shape[1], dtype=torch.bool)
            hidden[0, -2:] = True
            options["src_key_padding_mask"] = hidden
        given = (x,) if self.memory is None or y is None else (x, self.memory(y))
        if isinstance(self.inner, nn.Transformer):
            given = given[::-1]
        return self.out(self.inner(*given, **options))


class Attention(nn.Module):
    """nn.MultiheadAttention with its constructor's and its call's options."""

    def __init__(self, call: dict[str, Any], cross: bool = False, **options: Any) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 16)
        self.other = nn.Linear(6, options.get("kdim") or 16) if cross else None
        self.value = nn.Linear(6, options.get("vdim") or 16) if cross else None
        self.att, self.out = nn.MultiheadAttention(16, 4, **options), nn.Linear(16, 5)
        self.call = call

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        h = self.inside(x)
        k, v = (h, h) if self.other is None or self.value is None else (self.other(x), self.value(x))
        y, weights = self.att(h, k, v, **self.call)
        return self.out(h + y), weights


def recurrent() -> list[Entry]:
    """Every kind, depth, direction, layout, projection; states given or not, read or not."""
    found = []
    for kind, layers, both, first in itertools.product(("LSTM", "GRU", "RNN"), (1, 2, 3), (False, True), (False, True)):
        for projected in (False, True) if kind == "LSTM" else (False,):
            given, final = layers == 2, both and first
            options: dict[str, Any] = {"num_layers": layers, "bidirectional": both, "batch_first": first}
            if projected:
                options["proj_size"] = 6
            if layers == 3:
                options["bias"] = False
            if kind == "RNN" and layers == 2:
                options["nonlinearity"] = "relu"
            if layers > 1 and first:
                options["dropout"] = 0.3
            name = f"{kind}-{layers}" + "-both" * both + "-first" * first + "-proj" * projected
            found.append(
                Entry(
                    name=name,
                    build=lambda kind=kind, given=given, final=final, options=options: Recurrent(  # type: ignore[misc]
                        kind, given=given, final=final, **options
                    ),
                    inputs=lambda: torch.randn(4, 5, 6),
                )
            )
    return found


def transformers() -> list[Entry]:
    """Encoder, decoder and both; first or last norm, activation, layout, bias, masks."""
    found = []

    def add(name: str, build: Callable[[], nn.Module], *, memory: bool = False) -> None:
        inputs: Callable[[], Any] = lambda: torch.randn(4, 5, 6)
        if memory:
            inputs = lambda: (torch.randn(4, 5, 6), torch.randn(4, 5, 7))
        found.append(Entry(name=name, build=build, inputs=inputs))

    def encoder(**o: Any) -> nn.TransformerEncoderLayer:
        return nn.TransformerEncoderLayer(16, 4, 24, **o)

    def decoder(**o: Any) -> nn.TransformerDecoderLayer:
        return nn.TransformerDecoderLayer(16, 4, 24, **o)

    for norm_first, activation, batch_first, bias in itertools.product(
        (False, True), ("relu", "gelu"), (False, True), (False, True)
    ):
        o: dict[str, Any] = {
            "norm_first": norm_first,
            "activation": activation,
            "batch_first": batch_first,
            "bias": bias,
        }
        name = f"{activation}" + "-pre" * norm_first + "-first" * batch_first + "-nobias" * (not bias)
        add(f"encoder-{name}", lambda o=o: Block(encoder(**o)))  # type: ignore[misc]
        add(f"decoder-{name}", lambda o=o: Block(decoder(**o), memory=True), memory=True)  # type: ignore[misc]
    first: dict[str, Any] = {"batch_first": True}
    add("encoder-stack", lambda: Block(nn.TransformerEncoder(encoder(**first), 2)))
    add("encoder-stack-norm", lambda: Block(nn.TransformerEncoder(encoder(**first), 2, norm=nn.LayerNorm(16))))
    add("encoder-stack-nested", lambda: Block(nn.TransformerEncoder(encoder(**first), 2), padding=True))
    add(
        "encoder-stack-padding",
        lambda: Block(nn.TransformerEncoder(encoder(**first), 2, enable_nested_tensor=False), padding=True),
    )
    add("encoder-causal", lambda: Block(encoder(**first), causal=True))
    add("encoder-stack-causal", lambda: Block(nn.TransformerEncoder(encoder(**first), 2), causal=True))
    add("decoder-stack", lambda: Block(nn.TransformerDecoder(decoder(**first), 2), memory=True), memory=True)
    add(
        "decoder-causal",
        lambda: Block(nn.TransformerDecoder(decoder(**first), 2), memory=True, causal=True),
        memory=True,
    )
    for batch_first in (False, True):
        add(
            "transformer" + "-first" * batch_first,
            lambda b=batch_first: Block(nn.Transformer(16, 4, 2, 2, 24, batch_first=b), memory=True),  # type: ignore[misc]
            memory=True,
        )
    add(
        "transformer-pre-causal",
        lambda: Block(nn.Transformer(16, 4, 1, 2, 24, batch_first=True, norm_first=True), memory=True, causal=True),
        memory=True,
    )
    return found


def attentions() -> list[Entry]:
    """nn.MultiheadAttention."""
    options: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
        "plain": ({}, {}, False),
        "first": ({"batch_first": True}, {"need_weights": False}, False),
        "cross": ({"batch_first": True}, {"average_attn_weights": False}, True),
        "nobias": ({"bias": False, "batch_first": True}, {}, False),
        "widths": ({"kdim": 12, "vdim": 10, "batch_first": True}, {"need_weights": False}, True),
        "bias_kv": ({"add_bias_kv": True, "batch_first": True}, {"need_weights": False}, False),
        "zero": ({"add_zero_attn": True, "batch_first": True}, {}, False),
        "causal": (
            {"batch_first": True},
            {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "need_weights": False},
            False,
        ),
        "dropout": ({"dropout": 0.2, "batch_first": True}, {}, False),
    }
    return [
        Entry(
            name=f"attention-{name}",
            build=lambda o=o, call=call, cross=cross: Attention(call, cross, **o),  # type: ignore[misc]
            inputs=lambda: torch.randn(4, 5, 6),
        )
        for name, (o, call, cross) in options.items()
    ]


def entries() -> list[Entry]:
    """All of them."""
    return [*recurrent(), *transformers(), *attentions()]
