"""couple: which indices go together, what is frozen and why, which counts are tied, what follows a cut."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import NETS, PadLambda, PadShortcut, build
from helpers.random_plans import keep_all, plan_of, random_plan
from secateur import _couple
from secateur._couple import couple
from secateur._cut import cut
from secateur._trace import trace
from secateur.errors import CoupleError, UnknownName
from secateur.ops import RULES, Kernel, Label, Operation
from secateur.schema._record import from_json, to_json
from secateur.schema.graph import Graph
from secateur.schema.groups import Group, Groups


def groups_of(model: nn.Module, inputs: Any, **wishes: Any) -> Groups:
    return couple(trace(model.eval(), inputs), **wishes)


def units(group: Group) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(m.param, m.axis): m.units for m in group.members}


def reasons(groups: Groups, param: str, axis: int) -> str:
    return "; ".join(f.reason for f in groups.frozen if (f.param, f.axis) == (param, axis))


# -- units -----------------------------------------------------------------------------------------------------------


def test_a_neuron_is_its_row_its_bias_and_its_column() -> None:
    model, inputs = build("perceptron")
    groups = groups_of(model, inputs)
    first, second = groups.groups
    line = tuple(range(16))
    assert units(first) == {("a.weight", 0): line, ("a.bias", 0): line, ("b.weight", 1): line}
    assert {m.param: m.role for m in first.members} == {"a.weight": "write", "a.bias": "write", "b.weight": "read"}
    assert first.kind == "neuron"
    assert first.n_units == 16
    assert second.n_units == 12
    assert first.exact
    assert first.gated


def test_a_residual_stream_is_one_group_over_all_that_write_and_read_it() -> None:
    model, inputs = build("residual")
    groups = groups_of(model, inputs)
    stream = next(g for g in groups.groups if ("stem.weight", 0) in units(g))
    members = units(stream)
    assert ("body.0.conv2.weight", 0) in members
    assert ("body.0.conv1.weight", 1) in members
    assert ("body.1.short.0.weight", 1) in members
    assert {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"} <= {p for p, _ in members}
    assert {m.role for m in stream.members if m.param.startswith("bn.")} == {"scale"}


def test_parts_of_a_cat_keep_their_offsets() -> None:
    model, inputs = build("dense")
    groups = groups_of(model, inputs)
    stem = next(g for g in groups.groups if ("stem.weight", 0) in units(g))
    first = next(g for g in groups.groups if ("convs.0.weight", 0) in units(g))
    assert units(stem)["head.weight", 1] == (*range(6), *[-1] * 12)
    assert units(first)["head.weight", 1] == (*[-1] * 6, *range(4), *[-1] * 8)


def test_a_head_owns_its_rows_in_q_k_and_v_and_its_columns_in_the_projection() -> None:
    model, inputs = build("own_attention")
    groups = groups_of(model, inputs)
    head = next(g for g in groups.groups if g.kind == "head")
    assert head.n_units == 3
    one = tuple(u for u in range(3) for _ in range(4))
    assert units(head)["qkv.weight", 0] == one * 3
    assert units(head)["proj.weight", 1] == one
    assert head.exact


def test_query_heads_go_with_the_key_value_head_that_they_share() -> None:
    model, inputs = build("grouped_query")
    groups = groups_of(model, inputs)
    head = next(g for g in groups.groups if ("k.weight", 0) in units(g))
    assert units(head)["k.weight", 0] == (0, 0, 0, 1, 1, 1)
    assert units(head)["q.weight", 0] == (0,) * 6 + (1,) * 6


def test_a_depthwise_convolution_follows_its_input_and_multiplies_units() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    (group,) = groups_of(model, torch.randn(1, 3, 5, 5)).groups
    assert units(group)["0.weight", 0] == (0, 1, 2, 3)
    assert units(group)["1.weight", 0] == (0, 0, 1, 1, 2, 2, 3, 3)
    assert units(group)["2.weight", 1] == (0, 0, 1, 1, 2, 2, 3, 3)


def test_few_large_groups_of_a_convolution_lose_the_same_index_in_every_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    first, second = groups_of(model, torch.randn(1, 3, 5, 5)).groups
    assert units(first)["0.weight", 0] == (0, 1, 2, 3, 0, 1, 2, 3)
    assert units(first)["1.weight", 1] == (0, 1, 2, 3)
    assert units(second)["1.weight", 0] == (0, 1, 2, 3, 0, 1, 2, 3)


def test_units_of_a_grouped_convolution_that_go_by_index_are_one_group() -> None:
    """Rows of channels were counted as groups of the convolution even where a row does not go as a whole."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 20, 3, groups=2), nn.Conv2d(20, 2, 1))
    assert [g.n_units for g in groups_of(model, torch.randn(1, 3, 5, 5)).groups] == [8, 10]


def test_flattening_an_image_gives_every_channel_a_block_of_columns() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    (group,) = groups_of(model, torch.randn(2, 1, 2, 2)).groups
    assert units(group)["2.weight", 1] == (0,) * 4 + (1,) * 4 + (2,) * 4


def test_a_hidden_unit_of_an_lstm_owns_its_row_in_all_four_gates() -> None:
    model, inputs = build("lstm")
    (group,) = groups_of(model, inputs).groups
    assert group.kind == "hidden"
    assert units(group)["rnn.weight_ih_l0", 0] == tuple(range(6)) * 4
    assert units(group)["rnn.weight_hh_l0", 0] == tuple(range(6)) * 4
    assert units(group)["rnn.weight_hh_l0", 1] == tuple(range(6))
    assert units(group)["head.weight", 1] == tuple(range(6))


def test_tied_weights_are_one_parameter_with_both_roles() -> None:
    model, inputs = build("tied_lm")
    groups = groups_of(model, inputs)
    width = next(g for g in groups.groups if ("embed.weight", 1) in units(g))
    tied = next(m for m in width.members if m.param == "embed.weight")
    assert tied.role == "both"
    assert tied.readers == ("decoder.weight",)
    assert all("decoder.weight" not in p for g in groups.groups for p, _ in units(g))


def test_a_module_called_twice_ties_its_input_to_its_output() -> None:
    model, inputs = build("shared")
    (group,) = groups_of(model, inputs).groups
    assert {("twice.weight", 0), ("twice.weight", 1), ("a.weight", 0), ("head.weight", 1)} <= set(units(group))


# -- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "param", "says"),
    [
        ("layer_norm", "a.weight", "layer norm"),
        ("rms_norm", "a.weight", "mean"),
        ("own_rms_norm", "a.weight", "mean"),
        ("group_norm_one", "a.weight", "group norm"),
        ("group_norm_inside", "a.weight", "group norm"),
        ("channels_last", "stem.weight", "layer norm"),
    ],
)
def test_a_statistic_over_the_cut_axis_makes_the_group_inexact(name: str, param: str, says: str) -> None:
    model, inputs = build(name)
    group = next(g for g in groups_of(model, inputs).groups if (param, 0) in units(g))
    assert not group.exact
    assert says in group.inexact_because


@pytest.mark.parametrize("name", ["group_norm_whole", "instance_norm", "residual", "own_attention", "weight_norm"])
def test_statistics_beside_the_cut_axis_leave_it_exact(name: str) -> None:
    model, inputs = build(name)
    groups = groups_of(model, inputs)
    assert [g for g in groups.groups if g.exact and g.kind != "residual"]
    if name != "own_attention":
        assert all(g.exact for g in groups.groups)


def test_an_attention_scale_made_from_the_head_size_makes_head_dimensions_inexact() -> None:
    model, inputs = build("einsum_attention")
    assert any(not g.gated for g in groups_of(model, inputs).groups), "query and key are contracted with each other"


# -- what cannot go ----------------------------------------------------------------------------------------------------


def test_outputs_inputs_vocabulary_and_kernels_are_frozen_with_the_reason() -> None:
    model, inputs = build("tied_lm")
    groups = groups_of(model, inputs)
    assert "vocabulary" in reasons(groups, "embed.weight", 0)
    model, inputs = build("residual")
    groups = groups_of(model, inputs)
    assert "output" in reasons(groups, "head.weight", 0)
    assert "fixed size" in reasons(groups, "stem.weight", 1)
    assert "slides" in reasons(groups, "stem.weight", 2)


def test_a_frozen_part_names_the_line_of_the_forward() -> None:
    model, inputs = build("inplace_slice")
    groups = groups_of(model, inputs)
    assert any("nets.py:" in f.source or "nets.py:" in f.reason for f in groups.frozen if f.param == "a.weight")


def test_a_branch_not_taken_freezes_what_it_could_touch_by_name() -> None:
    model, inputs = build("branching")
    graph = trace(model, inputs)
    groups = couple(graph)
    assert graph.unexecuted == ("no.weight", "no.bias")
    assert "no recorded run executes it" in reasons(groups, "no.weight", 0)
    assert "no.weight" in reasons(groups, "yes.weight", 0)
    assert [g.name for g in groups.groups] == ["free"]


class Chosen(nn.Module):
    """A branch that the input chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.yes, self.no, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(8, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.c(torch.relu(self.yes(y) if float(x.detach().sum()) > 0 else self.no(y)))


def test_several_example_inputs_are_joined() -> None:
    model = Chosen().eval()
    up, down = torch.ones(2, 6), -torch.ones(2, 6)
    alone, both = groups_of(model, up), groups_of(model, [up, down])
    assert not alone.groups
    assert [g.n_units for g in both.groups] == [8, 7]
    assert {("yes.weight", 0), ("no.weight", 0), ("c.weight", 1)} <= set(units(both.groups[1]))
    small, receipt = cut(model, both, random_plan(both, 0))
    assert receipt.verification is not None
    assert len(receipt.verification.checks) >= 2
    assert small(down).shape == (2, 2)


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).sort(-1).values)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.b(self.a(x)))
        return self.c(torch.linalg.matrix_exp(y.unsqueeze(-1) * y.unsqueeze(-2)).mean(-1))


def test_an_axis_that_is_ordered_is_frozen() -> None:
    groups = groups_of(Sorted(), torch.randn(2, 6))
    assert not groups.groups
    assert "sort orders this axis" in reasons(groups, "a.weight", 0)


def test_an_operation_without_a_rule_is_a_barrier_and_is_named() -> None:
    groups = groups_of(Unknown(), torch.randn(2, 6))
    assert [g.name for g in groups.groups] == ["a"]
    assert "matrix_exp" in reasons(groups, "b.weight", 0)


def test_a_rule_of_the_user_opens_the_barrier() -> None:
    def matrix_exp(k: Kernel, op: Operation) -> Label:
        x: Label = op.args[0]
        k.freeze_label(x, "the exponential mixes all entries")
        return Label(op.shape)

    rules = {**RULES, "linalg_matrix_exp": matrix_exp}
    groups = groups_of(Unknown(), torch.randn(2, 6), rules=rules)
    assert "mixes all entries" in reasons(groups, "b.weight", 0)


def test_an_operator_of_the_user_passes_units_by_a_rule_of_the_user_and_the_cut_is_exact() -> None:
    def gated(x: Tensor, scale: Tensor) -> Tensor:
        return x * torch.sigmoid(scale * x)

    library = torch.library.Library("secateur_test", "FRAGMENT")
    library.define("gated(Tensor x, Tensor scale) -> Tensor")
    library.impl("gated", gated, "CompositeExplicitAutograd")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(6, 8), nn.Linear(8, 2), nn.Parameter(torch.rand(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.ops.secateur_test.gated(self.a(x), self.scale))

    def rule(k: Kernel, op: Operation) -> Label:
        return k.along(op.args[0], [op.args[1]], -1)

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 6)
    graph = trace(model, x)
    assert any("no rule for secateur_test.gated" in f.reason for f in couple(graph).frozen)
    groups = couple(graph, rules=RULES | {"secateur_test::gated": rule})
    assert {(m.param, m.axis) for m in groups.groups[0].members} >= {("a.weight", 0), ("scale", 0), ("b.weight", 1)}
    small, receipt = cut(model, groups, random_plan(groups, 0))
    assert receipt.verification is not None
    assert small.scale.shape[0] < 8


class SizedHeads(nn.Module):
    """A width that only a comparison mentions: `width // heads` must stay the size of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.heads = 12, 3
        self.a, self.gate, self.b = nn.Linear(6, 12), nn.Linear(6, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x)).view(x.shape[0], self.heads, -1) * self.gate(x)[..., None]
        if y.shape != (x.shape[0], self.heads, self.width // self.heads):
            raise ValueError("these are no heads")
        return self.b(y.flatten(1))


def test_a_width_that_is_only_compared_follows_the_heads() -> None:
    torch.manual_seed(0)
    model = SizedHeads()
    groups = groups_of(model, torch.randn(2, 6))
    assert [(g.kind, g.n_units) for g in groups.groups] == [("head", 3)]
    kept = keep_all(groups)
    kept[0] = [0, 2]
    small, receipt = cut(model, groups, plan_of(groups, kept))
    assert receipt.verification is not None
    assert (small.width, small.heads) == (8, 2)


def test_a_rule_that_returns_the_wrong_shape_is_named() -> None:
    rules = {**RULES, "relu": lambda k, op: Label((1, 2, 3))}
    with pytest.raises(CoupleError, match=r"rule for aten\.relu\.default gave a label of the wrong shape"):
        groups_of(Unknown(), torch.randn(2, 6), rules=rules)


# -- wishes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["a.weight", "a", "a.*"])
def test_freeze_by_name_keeps_a_layer_whole(pattern: str) -> None:
    model, inputs = build("perceptron")
    groups = groups_of(model, inputs, freeze=(pattern,))
    assert [g.name for g in groups.groups] == ["b"]
    assert "request" in reasons(groups, "a.weight", 0)


def test_tie_by_name_makes_one_group_of_two() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    groups = groups_of(model, torch.randn(2, 4), tie=(("0.weight", "2.weight"),))
    (group,) = groups.groups
    assert {("0.weight", 0), ("2.weight", 0), ("2.weight", 1), ("4.weight", 1)} <= set(units(group))


def test_wishes_about_unknown_names_are_refused() -> None:
    model, inputs = build("perceptron")
    with pytest.raises(UnknownName, match="freeze"):
        groups_of(model, inputs, freeze=("nowhere",))
    with pytest.raises(UnknownName, match="tie"):
        groups_of(model, inputs, tie=(("a.weight", "nowhere"),))
    with pytest.raises(CoupleError, match="one length"):
        groups_of(model, inputs, tie=(("a.weight", "b.weight"),))


# -- counts that are tied --------------------------------------------------------------------------------------------


def test_halves_of_a_chunk_keep_equal_counts_but_not_equal_indices() -> None:
    model, inputs = build("shuffle")
    groups = groups_of(model, inputs)
    assert any("equal parts" in e.reason for e in groups.equations)


def test_layers_and_directions_of_one_recurrent_module_keep_one_hidden_size() -> None:
    model, inputs = build("lstm_two_both_ways")
    groups = groups_of(model, inputs)
    assert len(groups.groups) == 4
    assert sum("hidden_size" in e.reason for e in groups.equations) == 3
    plan = random_plan(groups, 0)
    assert len({len(k) for k in plan.kept}) == 1
    assert len(set(plan.kept)) > 1


def test_integers_of_modules_follow_the_counts() -> None:
    model, inputs = build("own_attention")
    groups = groups_of(model, inputs)
    heads = next(g for g in groups.groups if g.kind == "head")
    kept = keep_all(groups)
    kept[heads.index] = [1]
    small, receipt = cut(model, groups, plan_of(groups, kept))
    assert (small.heads, small.head_dim) == (1, 4)
    assert [(c.attribute.name, c.old, c.new) for c in receipt.changes] == [("heads", 3, 1)]


def test_a_closure_may_hold_the_integer() -> None:
    model = PadShortcut(PadLambda(16)).eval()
    groups = groups_of(model, torch.randn(2, 3, 8, 8))
    assert groups.equations, "planes // 4 on both sides: front and back padding keep one count"
    _, receipt = cut(model, groups, random_plan(groups, 1))
    assert any("<closure>" in c.attribute.name for c in receipt.changes)
    assert model.shortcut.call.__closure__[0].cell_contents == 16


def test_a_literal_in_the_forward_freezes_what_it_counts_and_says_where() -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)).view(2, 8))

    groups = groups_of(Literal(), torch.randn(2, 6))
    assert not groups.groups
    assert "an integer of view is fixed in the forward" in reasons(groups, "a.weight", 0)
    assert "test_couple.py" in reasons(groups, "a.weight", 0)


def test_an_assertion_about_a_width_follows_the_cut() -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 8
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            assert y.shape[-1] == self.width
            return self.b(y)

    model = Checked().eval()
    groups = groups_of(model, torch.randn(2, 6))
    small, _ = cut(model, groups, random_plan(groups, 0))
    assert small.width == small.a.out_features < 8


def test_a_square_root_of_a_width_keeps_its_dense_value_or_makes_the_group_inexact() -> None:
    model, inputs = build("explicit_attention")
    groups = groups_of(model, inputs)
    _, receipt = cut(model, groups, random_plan(groups, 0))
    assert receipt.verification is not None
    assert receipt.verification.error < 1e-12


# -- nouns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "own_attention", "lstm_two_both_ways", "pad_lambda", "dict_output"])
def test_groups_survive_json_and_can_be_cut_without_their_model_of_origin(name: str) -> None:
    model, inputs = build(name)
    groups = groups_of(model, inputs)
    read = from_json(Groups, to_json(groups))
    assert read == groups
    plan = random_plan(groups, 0)
    _, receipt = cut(build(name)[0], read, plan, example_inputs=inputs)
    assert receipt == cut(model, groups, plan)[1]


def test_graphs_survive_json() -> None:
    model, inputs = build("own_attention")
    graph = trace(model, inputs)
    assert from_json(Graph, to_json(graph)) == graph
    assert couple(from_json(Graph, to_json(graph))) == couple(graph)


def test_names_of_groups_are_unique() -> None:
    for name in ("residual", "encoder", "lstm_two_both_ways", "grouped"):
        groups = groups_of(*build(name))
        assert len({g.name for g in groups.groups}) == len(groups.groups)
        assert [g.index for g in groups.groups] == list(range(len(groups.groups)))


# -- integers that follow ------------------------------------------------------------------------------------------


class TwoIntegers(nn.Module):
    """`self.shared != self.heads` is false on the dense model; after a cut it must stay so."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shared = 4, 4
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x)).view(x.shape[0], self.heads, -1)
        if self.shared != self.heads:
            y = y.repeat_interleave(self.heads // self.shared, 1)
        return self.b(y.flatten(1))


def test_two_integers_that_are_compared_follow_each_other() -> None:
    model = TwoIntegers().eval()
    groups = groups_of(model, torch.randn(2, 6))
    cut(model, groups, random_plan(groups, 0))


class MultiQuery(nn.Module):
    """All query heads share one key-value head, spread by repeat_interleave."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.times = 2, 4
        self.q, self.k, self.v, self.o = nn.Linear(6, 8), nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, -1, self.size).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (y.repeat_interleave(self.times, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return self.o(y.transpose(1, 2).reshape(n, t, -1))


def test_heads_that_share_one_key_value_head_by_repeat_interleave() -> None:
    model = MultiQuery().eval()
    groups = groups_of(model, torch.randn(2, 5, 6))
    cut(model, groups, random_plan(groups, 0))


class Table(nn.Module):
    """A table of positions that is longer than any recorded input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.positions = nn.Parameter(torch.randn(1, 20, 8))

    def forward(self, x: Tensor) -> Tensor:
        middle = self.positions.shape[1] // 2
        return self.b(torch.tanh(self.a(x) + self.positions[:, middle : middle + x.shape[1]]))


def test_entries_that_no_recorded_input_reaches_stay() -> None:
    model = Table().eval()
    groups = groups_of(model, torch.randn(2, 5, 6))
    assert [(g.name, g.n_units) for g in groups.groups] == [("a", 8)]
    small, _ = cut(model, groups, random_plan(groups, 0))
    assert small.positions.shape[1] == 20
    longer = torch.randn(2, 9, 6)
    assert small(longer).shape == model(longer).shape


class Packed(nn.Module):
    """Sequences of different lengths, both directions, and the final states of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 10)
        self.rnn = nn.LSTM(10, 8, 2, batch_first=True, bidirectional=True)
        self.out, self.final = nn.Linear(16, 2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([5, 6, 3])
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
        out, (h, _) = self.rnn(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        return self.out(padded), self.final(torch.cat([h[-1], h[-2]], -1))


def test_packed_sequences_keep_the_units_of_each_layer_and_direction_apart() -> None:
    model = Packed().eval()
    groups = groups_of(model, torch.randn(3, 6, 4))
    assert [g.n_units for g in groups.groups] == [10, 8, 8, 8, 8]
    assert len(groups.equations) == 3
    for seed in range(3):
        cut(model, groups, random_plan(groups, seed))


class Averages(nn.Module):
    """Means written out, with sizes as numbers: `x.sum(-1) / x.shape[-1]`, `torch.tensor(self.width)`."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 8
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.a(x)).view(x.shape[0], self.width)
        mean = y.sum(-1, keepdim=True) / y.shape[-1]
        return self.b(y - mean) / torch.sqrt(torch.tensor(self.width).to(y.dtype))


def test_sizes_that_are_computed_with_make_a_group_inexact_and_follow() -> None:
    model = Averages().eval()
    groups = groups_of(model, torch.randn(2, 6))
    assert [(g.n_units, g.exact) for g in groups.groups] == [(8, False)]
    for seed in range(3):
        cut(model, groups, random_plan(groups, seed))


def test_a_quotient_inside_a_whole_number_is_whole_itself() -> None:
    """2 * (width // 4) can be any even number; what the forward makes of a width between two quarters is less."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.a = 16, nn.Linear(6, 16)
            self.left, self.right = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            n = 2 * (self.width // 4)
            return self.left(y[..., :n]) + self.right(y[..., n:])

    model = Halves()
    groups = couple(trace(model, torch.randn(2, 6)))
    assert any("quotient" in eq.reason for eq in groups.equations)
    widths = set()
    for seed in range(8):
        small, receipt = cut(model, groups, random_plan(groups, seed))
        assert receipt.verification is not None
        widths.add(small.left.in_features)
    assert len(widths) > 1
    assert all(n % 2 == 0 for n in widths)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", NETS)
def test_what_a_rule_gave_in_one_mode_stands_for_the_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for every operation of both modes, the rules say the same."""
    graph = trace(*build(name))
    first = graph.runs[0]
    graph = dataclasses.replace(graph, runs=(first, dataclasses.replace(first, mode="train")))
    groups = couple(graph)
    monkeypatch.setattr(_couple._Applied, "results", lambda self, operation, rule: rule())
    assert couple(graph) == groups
