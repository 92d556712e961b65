"""The models that must be cut without a hint, each as its own class, equal to the masked model.

torchvision's, transformers' and our demonstration's, with randomised statistics, uneven random ratios, several seeds.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import cifar
from helpers.compiled_ops import ensure_torchvision
from helpers.nets import Recurrent, TiedLM, randomise, sequence, tokens
from helpers.oracle import assert_equal_to_silenced, exact_only, flat
from helpers.random_plans import random_plan
from secateur._cost import cost, full_counts
from secateur._couple import couple
from secateur._cut import cut
from secateur._surgery import apply, fingerprint_weights
from secateur._trace import trace
from secateur._units import call
from secateur.cli.demo_models import PatchTransformer, ResidualCNN, RowLSTM
from secateur.schema.groups import Groups

Built = tuple[nn.Module, Any]


def picture(size: int, n: int = 1, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def torchvision(name: str, size: int, **options: Any) -> Callable[[], Built]:
    def make() -> Built:
        ensure_torchvision()
        import torchvision.models as models

        return getattr(models, name)(weights=None, **options), picture(size)

    return make


def small_vision_transformer() -> Built:
    ensure_torchvision()
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=10
    )
    nn.init.normal_(model.heads[0].weight)  # zeros at first: then every cut would look right
    return model, picture(32)


def bert() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    ids = tokens(50, 7)
    return transformers.BertForSequenceClassification(config), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def llama() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens(50, 7)}


def googlenet() -> Built:
    model, inputs = torchvision("googlenet", 64, aux_logits=True, init_weights=False, num_classes=10)()
    return model, inputs


ZOO: dict[str, Callable[[], Built]] = {
    "demo_cnn": lambda: (ResidualCNN(), picture(8, 2, 1)),
    "demo_lstm": lambda: (RowLSTM(), picture(8, 2, 1)),
    "demo_transformer": lambda: (PatchTransformer(), picture(8, 2, 1)),
    "cifar_resnet20": lambda: (cifar.ResNet20(), picture(16, 2)),
    "resnet18": torchvision("resnet18", 64),
    "mobilenet_v2": torchvision("mobilenet_v2", 64),
    "googlenet": googlenet,
    "vision_transformer": small_vision_transformer,
    "bert": bert,
    "llama": llama,
    "lstm": lambda: (Recurrent(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True), (sequence(5),)),
    "gru": lambda: (Recurrent(nn.GRU, num_layers=2, bidirectional=True, batch_first=True), (sequence(5),)),
    "tied_lm": lambda: (TiedLM(40, 24), tokens(40)),
}
# computed in single precision by the model itself
SINGLE = {"llama"}
every_model = pytest.mark.parametrize("name", ZOO)


@functools.cache
def prepared(name: str) -> tuple[nn.Module, Any, Groups]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = ZOO[name]()
    randomise(model)
    return model, inputs, couple(trace(model, inputs))


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@every_model
def test_cut_equals_mask_under_uneven_random_ratios(name: str) -> None:
    model, _, groups = prepared(name)
    before, full = fingerprint_weights(model), cost(groups.costs, full_counts(groups))
    assert full.params == n_parameters(model)
    for seed in range(3):
        plan = random_plan(groups, seed)
        small, receipt = cut(model, groups, plan)
        check = receipt.verification
        assert check is not None
        assert check.error <= (1e-4 if name in SINGLE else 1e-9)
        assert check.distance > 1e-3
        after = cost(groups.costs, [len(k) for k in plan.kept])
        assert after.params == n_parameters(small) < 0.8 * full.params
        assert after.macs < 0.9 * full.macs
        assert isinstance(small, type(model))
    assert fingerprint_weights(model) == before


@every_model
def test_cut_equals_the_model_silenced_by_hand(name: str) -> None:
    model, inputs, groups = prepared(name)
    plan = random_plan(groups, 7, may_go=exact_only)
    assert any(len(k) < g.n_units for k, g in zip(plan.kept, groups.groups, strict=True))
    small, _ = cut(model, groups, plan, verify=False)
    distance = assert_equal_to_silenced(model, small, groups, plan, inputs, 1e-4 if name in SINGLE else 1e-9)
    assert distance > 1e-3


@every_model
def test_cut_model_trains_copies_saves_and_loads(name: str, tmp_path: Path) -> None:
    model, inputs, groups = prepared(name)
    small, receipt = cut(model, groups, random_plan(groups, 1), verify=False)
    assert gradients(copy.deepcopy(small).train(), inputs) == gradients(copy.deepcopy(model).train(), inputs)
    small.eval()
    torch.save(small.state_dict(), tmp_path / "small.pt")
    fresh, _ = ZOO[name]()
    loaded = apply(fresh, receipt).eval()
    loaded.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))
    with torch.no_grad():
        expected = tensors(call(small, inputs))
        for other in (loaded, copy.deepcopy(small)):
            assert all(torch.equal(a, b) for a, b in zip(expected, tensors(call(other, inputs)), strict=True))


def tensors(out: Any) -> list[Tensor]:
    return [t for t in flat(out) if t.is_floating_point()]


def gradients(model: nn.Module, inputs: Any) -> set[str]:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()  # one picture at 1 x 1 has no batch statistics
    sum(t.square().sum() for t in tensors(call(model, inputs))).backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.isfinite().all())}


@pytest.mark.parametrize("name", [n for n in ZOO if "lstm" not in n and n not in ("gru", "tied_lm")])
def test_macs_of_the_groups_are_half_the_flops_that_torch_counts(name: str) -> None:
    model, inputs, groups = prepared(name)
    plan = random_plan(groups, 2)
    small, _ = cut(model, groups, plan, verify=False)
    assert 2 * cost(groups.costs, full_counts(groups)).macs == flops(model, inputs)
    assert 2 * cost(groups.costs, [len(k) for k in plan.kept]).macs == flops(small, inputs)


def flops(model: nn.Module, inputs: Any) -> int:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # the fused kernel of the CPU has no formula in torch's counter; the plain one is made of matrix products
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call(copy.deepcopy(model).eval(), inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def test_auxiliary_heads_that_run_in_training_only_are_cut_too() -> None:
    model, _, groups = prepared("googlenet")
    assert {o.mode for o in groups.outlines} == {"eval", "train"}
    assert any(m.param.startswith("aux1") for g in groups.groups for m in g.members)
    small, _ = cut(model, groups, random_plan(groups, 0))
    small.train()
    out = small(picture(64, 2))
    assert out.logits.shape == out.aux_logits1.shape == out.aux_logits2.shape == (2, 10)


def test_attention_loses_heads_and_the_residual_width_independently() -> None:
    model, _, groups = prepared("vision_transformer")
    assert {g.kind for g in groups.groups} >= {"head", "neuron"}
    assert any(not g.exact and "layer norm" in g.inexact_because for g in groups.groups)
    small, receipt = cut(model, groups, random_plan(groups, 11))
    assert receipt.swaps
    attention = small.encoder.layers[0].self_attention
    assert isinstance(attention, nn.MultiheadAttention)
    assert attention.num_heads * attention.head_dim != attention.embed_dim
    assert attention.in_proj_weight.shape == (3 * attention.num_heads * attention.head_dim, attention.embed_dim)


def test_generation_with_a_cache_equals_generation_without() -> None:
    model, inputs, groups = prepared("llama")
    small, _ = cut(model, groups, random_plan(groups, 3))
    small.eval()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ids = inputs["input_ids"]
    with torch.no_grad():
        fast, slow = (small.generate(ids, use_cache=use, **options) for use in (True, False))
    assert fast.shape[1] == ids.shape[1] + 6
    assert torch.equal(fast, slow)


@pytest.mark.slow
def test_vit_b_16_is_cut_as_it_is() -> None:
    model, inputs = torchvision("vit_b_16", 224)()
    nn.init.normal_(model.heads[0].weight, std=0.05)
    groups = couple(trace(model, inputs))
    plan = random_plan(groups, 0)
    small, receipt = cut(model, groups, plan)
    assert receipt.verification is not None
    assert receipt.verification.error <= 1e-4
    assert receipt.verification.distance > 1e-3
    assert n_parameters(small) < 0.7 * n_parameters(model)
    assert 2 * cost(groups.costs, [len(k) for k in plan.kept]).macs == flops(small, inputs)


EXPORTED = ("demo_cnn", "vision_transformer", "demo_lstm", "llama")


@pytest.mark.parametrize("name", EXPORTED)
def test_cut_model_exports_to_onnx(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs, groups = prepared(name)
    small, _ = cut(model, groups, random_plan(groups, 1), verify=False)
    small.eval()
    path = tmp_path / "small.onnx"
    arguments = tuple(inputs.values()) if isinstance(inputs, dict) else (inputs,)
    if name == "llama":
        small.config.use_cache = False
    export(small, arguments, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), arguments, strict=True)}
    (got, *_) = session.run(None, feeds)
    with torch.no_grad():
        (expected, *_) = tensors(small(*arguments))
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-3, atol=1e-4)


def export(model: nn.Module, arguments: tuple[Tensor, ...], path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        torch.onnx.export(model, arguments, str(path), dynamo=True, verbose=False)
