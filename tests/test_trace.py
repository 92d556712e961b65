"""trace: what is recorded of a forward, with which origins of integers, and that the user's model only was read."""

from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import NETS, build
from helpers.random_plans import random_plan
from secateur._couple import couple
from secateur._cut import cut
from secateur._surgery import fingerprint_structure, fingerprint_weights
from secateur._trace import trace
from secateur._units import call
from secateur.schema.graph import Attribute, Call, Integer, Op, Size

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def calls(graph: Any, function: str) -> list[Call]:
    return [c for c in graph.runs[0].calls if c.function == function]


def integers(item: Any) -> list[Integer]:
    if isinstance(item, Integer):
        return [item]
    return [i for part in item for i in integers(part)] if isinstance(item, tuple) else []


@pytest.mark.parametrize("name", NETS)
def test_tracing_leaves_model_inputs_and_random_numbers_as_they_were(name: str) -> None:
    model, inputs = build(name)
    model.train()
    weights, kept = fingerprint_weights(model), copy.deepcopy(inputs)
    hooks = {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()}
    state = torch.random.get_rng_state()
    graph = trace(model, inputs)
    assert torch.equal(state, torch.random.get_rng_state())
    assert fingerprint_weights(model) == weights
    assert graph.structure == fingerprint_structure(model)
    assert all(m.training for m in model.modules())
    assert {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()} == hooks
    flat = list(kept.values()) if isinstance(kept, dict) else list(kept) if isinstance(kept, tuple) else [kept]
    now = list(inputs.values()) if isinstance(inputs, dict) else list(inputs) if isinstance(inputs, tuple) else [inputs]
    assert all(torch.equal(a, b) for a, b in zip(flat, now, strict=True))
    attributes = [v for m in model.modules() for v in vars(m).values()]
    assert all(type(v) is int for v in attributes if isinstance(v, int) and not isinstance(v, bool))


def test_recorded_shapes_are_those_of_the_forward() -> None:
    model, inputs = build("residual")
    seen: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))
    call(model, inputs)
    run = trace(build("residual")[0], inputs).runs[0]
    recorded = [run.values[n.outputs[0]].shape for n in run.nodes if "convolution" in n.op]
    assert recorded == seen


def test_nodes_name_their_module_and_the_line_of_the_forward() -> None:
    model, inputs = build("residual")
    run = trace(model, inputs).runs[0]
    convolutions = [n.module for n in run.nodes if "convolution" in n.op]
    assert convolutions[:3] == ["stem", "body.0.conv1", "body.0.conv2"]
    assert all("nets.py:" in n.source for n in run.nodes)


def test_parameters_and_buffers_are_named_under_every_name() -> None:
    model, inputs = build("tied_lm")
    graph = trace(model, inputs)
    names = {p.name: p.canonical for p in graph.parameters}
    assert names["decoder.weight"] == "embed.weight" == names["embed.weight"]
    run = graph.runs[0]
    assert {v.name for v in run.values if v.param == "embed.weight"} == {"embed.weight", "decoder.weight"}
    kinds = {p.name: p.kind for p in trace(*build("buffers")).parameters}
    assert kinds["shift"] == "buffer"
    assert kinds["a.weight"] == "parameter"


def test_whole_operations_are_one_node() -> None:
    ops = {n.op for n in trace(*build("own_attention")).runs[0].nodes}
    assert "scaled_dot_product_attention" in ops
    assert "lstm" in {n.op for n in trace(*build("lstm")).runs[0].nodes}
    assert "einsum" in {n.op for n in trace(*build("einsum_attention")).runs[0].nodes}


def test_integers_remember_the_attribute_they_came_from() -> None:
    graph = trace(*build("own_attention"))
    (split, *_) = calls(graph, "reshape")
    origins = [i.origin for i in integers(split.args)]
    assert Attribute("", "heads") in origins
    assert Attribute("", "head_dim") in origins
    assert any(isinstance(o, Size) for o in origins)
    joined = calls(graph, "reshape")[-1]
    product = integers(joined.args)[-1].origin
    assert product == Op("mul", Attribute("", "heads"), Attribute("", "head_dim"))


def test_integers_remember_arithmetic_on_shapes() -> None:
    graph = trace(*build("shuffle"))
    halves = [i.origin for c in calls(graph, "view") for i in integers(c.args)]
    assert any(isinstance(o, Op) and o.operator == "floordiv" and o.right == 2 for o in halves)


def test_an_integer_that_becomes_a_float_is_noted() -> None:
    graph = trace(*build("explicit_attention"))
    assert graph.runs[0].escapes, "math.sqrt(size)"


def test_closures_and_settings_objects_are_looked_into() -> None:
    graph = trace(*build("pad_lambda"))
    assert (Attribute("shortcut", "call.<closure>.planes"), 16) in graph.attributes

    class Settings:
        def __init__(self) -> None:
            self.width = 8

    class Configured(nn.Module):
        def __init__(self, config: Settings) -> None:
            super().__init__()
            self.config = config
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)).view(x.shape[0], self.config.width))

    config = Settings()
    model = Configured(config).eval()
    graph = trace(model, torch.randn(3, 6))
    assert (Attribute("", "config.width"), 8) in graph.attributes
    assert type(config.width) is int
    groups = couple(graph)
    small, _ = cut(model, groups, random_plan(groups, 0))
    assert small.config.width == small.a.out_features < 8
    assert config.width == 8


def test_a_model_without_weights_may_ask_where_a_tensor_lies() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + torch.arange(4, device=x.device)

    with torch.device("meta"):
        model = Moves()
    here = trace(Moves(), torch.randn(2, 4)).runs[0].nodes
    assert [n.op for n in trace(model, torch.empty(2, 4, device="meta")).runs[0].nodes] == [n.op for n in here]


def test_training_is_recorded_only_where_the_forward_asks_for_it() -> None:
    class Asks(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.training else super().forward(x + 1)

    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)]
    x = torch.randn(3, 4)
    assert [r.mode for r in trace(nn.Sequential(*layers), x).runs] == ["eval"]
    assert [r.mode for r in trace(Asks(*layers), x).runs] == ["eval", "train"]
    assert "training" not in vars(nn.Module)


def test_a_class_with_its_own_train_method_is_recorded_in_both_modes() -> None:
    class Folds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scaled = nn.Linear(4, 4), True

        def train(self, mode: bool = True) -> Folds:
            self.scaled = mode
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).tanh() if self.scaled else self.layer(x)

    assert [r.mode for r in trace(Folds(), torch.randn(3, 4)).runs] == ["eval", "train"]


@pytest.mark.parametrize("swallow", [False, True])
def test_a_forward_that_writes_its_own_weights_writes_those_of_a_copy(swallow: bool) -> None:
    class Clamps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            try:
                self.first.weight.data[:2].clamp_(-0.01, 0.01)
            except Exception:
                if not swallow:
                    raise
            return self.last(self.first(x))

    model = Clamps()
    before = fingerprint_weights(model)
    graph = trace(model, torch.randn(3, 4))
    assert fingerprint_weights(model) == before
    assert any("clamp" in n.op for n in graph.runs[0].nodes)
    assert any(n.op.startswith("aten.add_") for n in graph.runs[0].nodes)


def test_training_is_recorded_where_it_differs() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head, self.aux = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Any:
            y = torch.relu(self.a(x))
            return (self.head(y), self.aux(y)) if self.training else self.head(y)

    model = Auxiliary().eval()
    graph = trace(model, torch.randn(2, 6))
    assert {r.mode for r in graph.runs} == {"eval", "train"}
    assert graph.unexecuted == ()
    groups = couple(graph)
    small, receipt = cut(model, groups, random_plan(groups, 0))
    assert receipt.verification is not None
    assert any("train" in c for c in receipt.verification.checks)
    out, aux = small.train()(torch.randn(2, 6))
    assert (out.shape, aux.shape) == ((2, 2), (2, 3))


def test_dropout_does_not_blur_the_recording() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Dropout1d(0.3), nn.Linear(8, 2))
    groups = couple(trace(model, torch.randn(3, 6)))
    _, receipt = cut(model, groups, random_plan(groups, 0))
    assert receipt.verification is not None
    assert receipt.verification.error < 1e-12


def test_a_cache_made_in_the_first_forward_is_not_cut_stale() -> None:
    """A forward before tracing must not hide a parameter behind a constant, nor leave a stale cache in the result."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
            self.bias = nn.Parameter(torch.randn(8))
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if "bias" not in self.cache:
                self.cache["bias"] = self.bias.exp()
            return self.b(torch.relu(self.a(x)) + self.cache["bias"])

    model = Cached().eval()
    groups = couple(trace(model, torch.randn(2, 6)))
    assert model.cache == {}
    assert [g.n_units for g in groups.groups] == [8]
    small, _ = cut(model, groups, random_plan(groups, 0))
    assert small(torch.randn(2, 6)).shape == (2, 2)


@pytest.mark.parametrize("wrap", ["parallel", "compiled"])
def test_wrappers_are_looked_through(wrap: str) -> None:
    model, inputs = build("perceptron")
    outer = nn.DataParallel(model) if wrap == "parallel" else torch.compile(model, backend="eager")
    assert trace(outer, inputs) == trace(model, inputs)


def test_every_form_of_example_inputs_is_the_same_recording() -> None:
    model, inputs = build("perceptron")
    runs = trace(model, inputs).runs
    assert trace(model, (inputs,)).runs == runs
    assert trace(model, {"x": inputs}).runs == runs
    assert trace(model, [inputs]).runs == runs
    assert len(trace(model, [inputs, inputs[:1]]).runs) >= 2


def test_tracing_in_another_thread_is_the_same() -> None:
    model, inputs = build("own_attention")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(trace(model, inputs)))
    thread.start()
    thread.join()
    assert found == [trace(model, inputs)]


@pytest.mark.parametrize("name", ["residual", "own_attention", "cell_loop", "weight_norm", "unet", "packed"])
def test_gradients_and_inference_mode_around_do_not_matter(name: str) -> None:
    model, inputs = build(name)
    expected = couple(trace(model, inputs))
    with torch.no_grad():
        assert couple(trace(model, inputs)).groups == expected.groups
    with torch.inference_mode():
        groups = couple(trace(model, inputs))
        assert groups.groups == expected.groups
        assert groups.equations == expected.equations
        cut(model, groups, random_plan(groups, 0))


def test_a_parametrised_or_frozen_model_is_recorded_too() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 2)).eval()
    for p in model.parameters():
        p.requires_grad_(False)
    groups = couple(trace(model, torch.randn(2, 6)))
    assert trace(model, torch.randn(2, 6)).unexecuted == ()
    if groups.groups:
        small, _ = cut(model, groups, random_plan(groups, 0))
        assert not any(p.requires_grad for p in small.parameters())


class Double(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(
        self, x: Tensor, scale: float = 1.0, mask: Tensor | None = None, flags: dict[str, Any] | None = None
    ) -> Any:
        y = F.relu(self.a(x)) * scale
        if mask is not None:
            y = y * mask
        return {"out": self.b(y), "flags": flags}


def test_arguments_of_every_kind_are_passed_on() -> None:
    model = Double().eval()
    x = torch.randn(2, 6)
    for inputs in (
        (x, 2.0),
        (x, 0.5, torch.ones(2, 1)),
        {"x": x, "flags": {"k": [torch.ones(1), 3]}},
        {"x": x, "mask": None, "scale": 3.0},
    ):
        groups = couple(trace(model, inputs))
        assert [g.n_units for g in groups.groups] == [8]
        cut(model, groups, random_plan(groups, 0))


def test_a_recording_does_not_depend_on_when_garbage_is_collected() -> None:
    inputs = torch.rand(2, 3, 8)
    model = nn.LSTM(8, 6, batch_first=True)
    before, recorded = gc.get_threshold(), []
    try:
        for threshold in (0, *[1] * 10):  # 0: never
            gc.set_threshold(threshold)
            recorded.append(trace(model, inputs).runs)
    finally:
        gc.set_threshold(*before)
    assert all(runs == recorded[0] for runs in recorded)
    assert gc.isenabled()


class Ranges(nn.Module):
    """Replaces a buffer in every forward, as observers of quantisation do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("highest", torch.zeros(1))
        self.register_buffer("lowest", torch.zeros(1))
        self.register_buffer("seen", torch.zeros(1))
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        for layer in self.layers:
            x = layer(x).relu()
            self.highest = torch.maximum(self.highest, x.detach().max())
            self.lowest = torch.minimum(self.lowest, x.detach().min())
            x = x * (self.highest - self.lowest)
        return x


def test_a_buffer_that_the_forward_replaces_does_not_hand_on_its_name() -> None:
    graph = trace(Ranges(), torch.randn(2, 6))
    shapes = {p.name: p.shape for p in graph.parameters}
    for run in graph.runs:
        for value in run.values:
            assert value.name is None or value.shape == shapes[value.name], value
        named = [v.name for v in run.values if v.name not in (None, "seen")]  # that one is written
        assert len(named) == len(set(named)) == len(shapes) - 1
