"""Receipts: applied, composed, and what of a module must tell the truth afterwards."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.nets import NETS, build
from helpers.oracle import gap, run
from helpers.random_plans import keep_all, plan_of, random_plan
from secateur import _surgery
from secateur._couple import couple
from secateur._cut import cut
from secateur._surgery import (
    apply,
    borrow,
    compose,
    duplicate,
    fingerprint_structure,
    fingerprint_weights,
    package_version,
    receipt_for,
    tensors,
)
from secateur._trace import trace
from secateur.errors import CutMismatch, ReceiptMismatch
from secateur.ops.modules import read_attribute, write_attribute
from secateur.schema.graph import Attribute
from secateur.schema.groups import Groups
from secateur.schema.receipt import Receipt

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def prepared(name: str) -> tuple[nn.Module, Any, Groups]:
    model, inputs = build(name)
    return model, inputs, couple(trace(model, inputs))


def slice_by_hand(tensor: Tensor, kept: tuple[tuple[int, ...] | None, ...]) -> Tensor:
    for axis, indices in enumerate(kept):
        if indices is not None:
            tensor = torch.stack([tensor.select(axis, i) for i in indices], axis)
    return tensor


@pytest.mark.parametrize("name", NETS)
def test_every_kept_weight_has_its_dense_value(name: str) -> None:
    model, _, groups = prepared(name)
    receipt = receipt_for(model, groups, random_plan(groups, 0).kept)
    small = {n: t for n, _, t in tensors(apply(model, receipt))}
    for n, canonical, tensor in tensors(model):
        expected = slice_by_hand(tensor.detach(), receipt.kept.get(canonical, (None,) * tensor.dim()))
        assert torch.equal(small[n].detach(), expected), n
        assert small[n].dtype == tensor.dtype
        assert small[n].is_contiguous()


def test_descriptive_integers_of_modules_tell_the_truth() -> None:
    for name in NETS:
        model, _, groups = prepared(name)
        small, _ = cut(model, groups, random_plan(groups, 3), verify=False)
        for path, m in small.named_modules():
            if type(m) is nn.Linear:
                assert (m.out_features, m.in_features) == m.weight.shape, path
            elif type(m) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
                assert (m.out_channels, m.in_channels // m.groups) == m.weight.shape[:2], path
            elif type(m) in (nn.ConvTranspose1d, nn.ConvTranspose2d):
                assert (m.in_channels, m.out_channels // m.groups) == m.weight.shape[:2], path
            elif type(m) in (nn.BatchNorm2d, nn.BatchNorm3d) and m.running_mean is not None:
                assert m.num_features == len(m.running_mean), path
            elif type(m) in (nn.LayerNorm, nn.RMSNorm):
                assert tuple(m.normalized_shape) == m.weight.shape, path
            elif type(m) is nn.GroupNorm:
                assert m.num_channels == len(m.weight), path
                assert m.num_channels % m.num_groups == 0, path
            elif type(m) is nn.Embedding:
                assert (m.num_embeddings, m.embedding_dim) == m.weight.shape, path
            elif isinstance(m, nn.RNNBase):
                gates = {"LSTM": 4, "GRU": 3}.get(m.mode, 1)
                assert m.weight_ih_l0.shape == (gates * m.hidden_size, m.input_size), path
                assert all(a is b for a, b in zip(m._flat_weights, m.parameters(), strict=True)), path
            assert repr(m)


def test_a_fresh_module_of_the_printed_sizes_takes_the_weights() -> None:
    model, inputs, groups = prepared("lstm_two_both_ways")
    small, _ = cut(model, groups, random_plan(groups, 3), verify=False)
    rnn = small.rnn
    fresh = nn.LSTM(rnn.input_size, rnn.hidden_size, 2, bidirectional=True, batch_first=True)
    fresh.load_state_dict(rnn.state_dict())
    assert torch.equal(fresh(inputs[0])[0], rnn(inputs[0])[0])


def test_tied_weights_stay_tied_and_shared_modules_shared() -> None:
    model, _, groups = prepared("tied_lm")
    small, _ = cut(model, groups, random_plan(groups, 0), verify=False)
    assert small.decoder.weight is small.embed.weight
    assert len(list(small.parameters())) == len(list(model.parameters()))
    shared, inputs = build("perceptron")
    shared.alias = shared.a
    groups = couple(trace(shared, inputs))
    small, _ = cut(shared, groups, random_plan(groups, 0))
    assert small.alias is small.a
    assert small.a.out_features < 16


def test_hooks_of_the_user_stay_and_fire_on_the_copy() -> None:
    model, inputs, groups = prepared("perceptron")
    seen: list[int] = []
    model.a.register_forward_hook(lambda m, i, o: seen.append(o.shape[-1]))
    groups = couple(trace(model, inputs))
    small, _ = cut(model, groups, random_plan(groups, 0))
    seen.clear()
    small(inputs)
    assert seen == [small.a.out_features]


def test_memory_format_and_strides_do_not_matter() -> None:
    model, inputs, groups = prepared("residual")
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    plan = random_plan(groups, 0)
    small, _ = cut(last, couple(trace(last, inputs)), plan)
    assert fingerprint_weights(small) == fingerprint_weights(cut(model, groups, plan)[0])


def test_gradients_are_not_carried_along() -> None:
    model, inputs, groups = prepared("perceptron")
    model(inputs).sum().backward()
    small, _ = cut(model, groups, random_plan(groups, 0), verify=False)
    assert all(p.grad is None or p.grad.shape == p.shape for p in small.parameters())
    assert all(p.grad is not None for p in model.parameters())


def test_a_receipt_lists_only_what_was_touched() -> None:
    model, _, groups = prepared("perceptron")
    kept = keep_all(groups)
    kept[0] = [1, 5, 9]
    receipt = receipt_for(model, groups, kept)
    assert receipt.kept == {
        "a.weight": ((1, 5, 9), None),
        "a.bias": ((1, 5, 9),),
        "b.weight": (None, (1, 5, 9)),
    }
    assert receipt.shapes["c.weight"] == (4, 12)
    assert receipt.structure == fingerprint_structure(model)
    assert receipt.version == package_version()


def test_the_order_of_kept_units_does_not_matter() -> None:
    model, _, groups = prepared("perceptron")
    kept = keep_all(groups)
    kept[0] = [9, 1, 5]
    assert receipt_for(model, groups, kept).kept["a.bias"] == ((1, 5, 9),)


@given(st.data())
def test_composing_is_indexing_twice(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    first = tuple(sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))))
    second = tuple(sorted(data.draw(st.sets(st.integers(0, len(first) - 1), min_size=1))))
    one = Receipt(kept={"w": (first, None)}, shapes={"w": (size, 3)}, changes=(), swaps=(), structure="s")
    two = Receipt(kept={"w": (second, (0, 2))}, shapes={"w": (len(first), 3)}, changes=(), swaps=(), structure="t")
    both = compose(one, two)
    rows = torch.arange(size)
    assert both.kept["w"][0] == tuple(rows[list(first)][list(second)].tolist())
    assert both.kept["w"][1] == (0, 2)
    assert (both.shapes, both.structure) == (one.shapes, "s")


def test_composing_receipts_that_do_not_follow_each_other_is_refused() -> None:
    model, _, groups = prepared("perceptron")
    receipt = receipt_for(model, groups, random_plan(groups, 0).kept)
    with pytest.raises(ReceiptMismatch, match="not for the model that the first one made"):
        compose(receipt, receipt)


def test_integers_that_change_twice_remember_the_dense_value() -> None:
    model, inputs, groups = prepared("own_attention")
    kept = keep_all(groups)
    heads = next(g.index for g in groups.groups if g.kind == "head")
    kept[heads] = [0, 2]
    once, first = cut(model, groups, plan_of(groups, kept))
    again = couple(trace(once, inputs))
    kept = keep_all(again)
    kept[next(g.index for g in again.groups if g.kind == "head")] = [1]
    twice, receipt = cut(once, again, plan_of(again, kept), receipt=first)
    (change,) = receipt.changes
    assert (change.attribute.name, change.old, change.new) == ("heads", 3, 1)
    assert receipt.kept["proj.weight"][1] == (8, 9, 10, 11)
    assert fingerprint_weights(apply(model, receipt)) == fingerprint_weights(twice)


def test_swapped_attention_has_the_state_dict_of_the_original_and_computes_the_same() -> None:
    for name in ("multihead", "multihead_weights", "cross_attention", "encoder"):
        model, inputs, groups = prepared(name)
        everything = receipt_for(model, groups, keep_all(groups))
        forced = dataclasses.replace(everything, swaps=groups.swaps)
        swapped = apply(model, forced)
        assert list(swapped.state_dict()) == list(model.state_dict())
        assert gap(run(model, inputs), run(swapped, inputs)) < 1e-12
        assert isinstance(next(m for m in swapped.modules() if "Attention" in type(m).__name__), nn.Module)


class Padded(nn.Module):
    """nn.MultiheadAttention with masks of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Linear(6, 12), nn.MultiheadAttention(12, 3, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None, mask: Tensor | None = None) -> Any:
        y = torch.tanh(self.stem(x))
        return self.head(self.attention(y, y, y, key_padding_mask=padding, attn_mask=mask)[0])


def masks() -> list[tuple[Tensor | None, Tensor | None]]:
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[:, -1] = True
    causal = torch.full((5, 5), float("-inf")).triu(1)
    return [
        (padding, None),
        (None, causal),
        (None, causal == float("-inf")),
        (torch.where(padding, -torch.inf, 0.0), causal),
        (padding, (causal == float("-inf"))),
    ]


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("which", range(5), ids=["padding", "additive", "boolean", "both", "both boolean"])
def test_masks_of_a_pruned_attention_mean_what_they_meant(which: int) -> None:
    torch.manual_seed(0)
    model, inputs = Padded().eval(), (torch.randn(2, 5, 6), *masks()[which])
    groups = couple(trace(model, inputs))
    assert any(g.kind == "head" for g in groups.groups)
    small, receipt = cut(model, groups, random_plan(groups, 0))
    assert receipt.verification is not None
    forced = dataclasses.replace(receipt_for(model, groups, keep_all(groups)), swaps=groups.swaps)
    assert gap(run(model, inputs), run(apply(model, forced), inputs)) < 1e-12
    assert small.attention.num_heads < 3 or small.attention.embed_dim < 12


def test_attributes_are_read_and_written_in_tuples_objects_and_closures() -> None:
    class Settings:
        heads = 3

        def __init__(self) -> None:
            self.width = 8

    def shortcut(planes: int) -> Any:
        return lambda x: x + planes

    model = nn.Module()
    model.shape, model.config, model.call = (4, 8), Settings(), shortcut(5)
    other = copy.deepcopy(model)
    for attribute, old in (
        (Attribute("", "shape", 1), 8),
        (Attribute("", "config.width"), 8),
        (Attribute("", "call.<closure>.planes"), 5),
    ):
        assert read_attribute(model, attribute) == old
        write_attribute(model, attribute, 2)
        assert read_attribute(model, attribute) == 2
        assert read_attribute(other, attribute) == old
    assert model.shape == (4, 2)
    assert model.call(1) == 3
    assert other.call(1) == 6


class RemembersBiases(nn.Module):
    """Attention that keeps what it made of its biases until its mode is set, as LeViT's does."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qk, self.v = nn.Linear(8, 2 * 3 * heads), nn.Linear(8, 5 * heads)
        self.out = nn.Linear(5 * heads, 2)
        self.biases = nn.Parameter(torch.randn(heads, 3))
        self.register_buffer("where", torch.tensor([[0, 1, 2], [1, 0, 2], [2, 2, 0]]), persistent=False)
        self.made: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> RemembersBiases:
        super().train(mode)
        self.made = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and "bias" not in self.made:
            self.made["bias"] = self.biases[:, self.where]
        bias = self.biases[:, self.where] if self.training else self.made["bias"]
        n, length, _ = x.shape
        q, k = self.qk(x).view(n, length, 2, self.heads, 3).permute(2, 0, 3, 1, 4)
        v = self.v(x).view(n, length, self.heads, 5).transpose(1, 2)
        attention = (q @ k.transpose(-2, -1) + bias).softmax(-1)
        return self.out((attention @ v).transpose(1, 2).reshape(n, length, -1))


@pytest.mark.parametrize("inner", [False, True])
def test_what_a_model_forgets_when_its_mode_is_set_is_not_carried_into_a_cut(inner: bool) -> None:
    torch.manual_seed(0)
    module = RemembersBiases().eval()
    model = nn.Sequential(nn.Dropout(0.0), module).eval() if inner else module
    module.requires_grad_(False)
    x = torch.randn(2, 3, 8)
    model(x)  # now it remembers
    model.get_submodule("0" if inner else "qk").train()  # flags of modules are their own
    flags = [m.training for m in model.modules()]
    groups = couple(trace(model, x))
    small, receipt = cut(model, groups, random_plan(groups, 1))
    assert [m.training for m in small.modules()] == flags
    assert module.made["bias"].shape == (4, 3, 3), "the user's model keeps what it remembers"
    small_module = small[1] if inner else small
    assert small_module.heads < 4
    for other in (small, copy.deepcopy(small), apply(model, receipt)):
        with torch.no_grad():
            out = other(x)
        torch.testing.assert_close(out, small.eval()(x))


def test_a_cut_is_verified_in_the_state_in_which_it_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting its mode once more would make it forget, and hide what the user meets."""
    torch.manual_seed(0)
    model, x = RemembersBiases().eval().requires_grad_(False), torch.randn(2, 3, 8)
    model(x)  # now it remembers
    groups = couple(trace(model, x))
    monkeypatch.setattr(_surgery, "_forget", lambda modules: None)
    with pytest.raises(CutMismatch, match="does not run"):
        cut(model, groups, random_plan(groups, 1))


def test_fingerprints_tell_structure_from_weights() -> None:
    model, _ = build("perceptron")
    same, other, tied = copy.deepcopy(model), build("perceptron", seed=1)[0], build("tied_lm")[0]
    assert fingerprint_structure(model) == fingerprint_structure(same) == fingerprint_structure(other)
    assert fingerprint_weights(model) == fingerprint_weights(same) != fingerprint_weights(other)
    untied = copy.deepcopy(tied)
    untied.decoder.weight = nn.Parameter(tied.embed.weight.detach().clone())
    assert fingerprint_structure(tied) != fingerprint_structure(untied)
    with torch.no_grad():
        same.a.weight[0, 0] += 1e-6
    assert fingerprint_weights(same) != fingerprint_weights(model)
    assert fingerprint_weights(model.bfloat16())


@pytest.mark.parametrize("name", NETS)
def test_a_duplicate_is_what_deepcopy_makes(name: str) -> None:
    model, inputs = build(name)
    expected, made = copy.deepcopy(model), duplicate(model)
    for (path, a), (other, b), own in zip(expected.named_modules(), made.named_modules(), model.modules(), strict=True):
        assert path == other
        assert type(a) is type(b)
        assert list(vars(a)) == list(vars(b))
        assert b is not own
        assert b.training == own.training
    assert fingerprint_weights(made) == fingerprint_weights(expected) == fingerprint_weights(model)
    lent = {t.untyped_storage().data_ptr() for _, _, t in tensors(model)}
    assert not lent & {t.untyped_storage().data_ptr() for _, _, t in tensors(made)}
    assert gap(run(made.eval(), inputs), run(model.eval(), inputs)) == 0.0


def test_a_duplicate_respects_what_a_class_says_about_copies() -> None:
    class Counted(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
            return nn.Identity()

    settings = {"width": [3]}
    model = nn.Sequential(Counted(2, 2), nn.Linear(2, 2))
    model.settings = settings  # type: ignore[assignment]
    model[1].owner = settings  # type: ignore[assignment]
    made = duplicate(model)
    assert type(made[0]) is nn.Identity
    assert made.settings is made[1].owner
    assert made.settings is not settings
    assert made.settings["width"] is not settings["width"]


def test_a_borrowed_duplicate_reads_the_memory_of_the_original_through_tensors_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    made = duplicate(model, borrow(model))
    for (_, _, mine), (_, _, theirs) in zip(tensors(made), tensors(model), strict=True):
        assert mine is not theirs
        assert mine.data_ptr() == theirs.data_ptr()
        assert mine.requires_grad == theirs.requires_grad
        assert type(mine) is type(theirs)
