"""Integers that stand in a forward: with `baked="submodule"` that forward is written again, on the copy."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import secateur as sc
from helpers.nasty import NASTY
from helpers.nets import randomise
from helpers.oracle import assert_equal_to_silenced, exact_only, run
from helpers.random_plans import keep_all, plan_of, random_plan
from secateur import _store
from secateur._couple import couple
from secateur._cut import cut
from secateur._export import load, save
from secateur._trace import trace
from secateur.cli import app
from secateur.errors import CutError, FileCorrupt, RewrittenForward
from secateur.schema._record import from_json, to_json
from secateur.schema.graph import Graph
from secateur.schema.receipt import Receipt


class Heads(nn.Module):
    """Four heads of four, by literals; dropout in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return F.dropout(self.out(y.transpose(1, 2).reshape(b, t, 16)), 0.5, self.training)


class Pieces(nn.Module):
    """Slices, a split, groups and a shape, all by literals; an assertion besides."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(16))
        self.register_buffer("shift", torch.linspace(-1, 1, 16))
        self.left = nn.Conv2d(6, 8, 1)
        self.right = nn.Conv2d(10, 8, 1)
        self.gates = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(x)
        assert y.shape[1] == 16
        y = torch.relu(y * self.scale[:, None, None] + self.shift.view(16, 1, 1))
        a, b = self.left(y[:, :6]), self.right(y[:, 6:])
        z = torch.cat([a, b], 1)
        z = torch.zeros(x.shape[0], 16, *x.shape[2:], dtype=x.dtype, device=x.device) + z
        a, b = z.split([8, 8], 1)
        return torch.tanh(a + b) * torch.sigmoid(self.gates(a.mean((2, 3)))).view(-1, 8, 1, 1)


class Padded(nn.Module):
    """A shortcut that pads channels by a number from a closure, and a sum of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Conv2d(8, 12, 3, padding=1)
        pads = (0, 0, 0, 0, 2, 2)
        self.pad = {"shortcut": lambda x: F.pad(x, pads)}

    def forward(self, x: Tensor) -> Tensor:
        return sum([torch.relu(self.more(x)), self.pad["shortcut"](x)])


class Sized(nn.Module):
    """Height and width are handed in as integers that were measured outside."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(12, 12, 3, padding=1, groups=12)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        x = tokens.transpose(1, 2).view(-1, 12, height, width)
        return F.group_norm(self.mix(x), 3).flatten(2).transpose(1, 2)


class Written(nn.Module):
    """Two parts written into one tensor at places given by literals; a child returns tuples inside tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 5), nn.Linear(12, 7)
        self.rnn = nn.LSTM(12, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(x.shape[0], x.shape[1], 12)
        y[:, :, :5] = self.a(x).relu_()
        y[:, :, 5:] = self.b(x)
        out, (h, _) = self.rnn(y)
        return torch.relu_(out + h.transpose(0, 1))


class Around(nn.Module):
    """An image goes through the part under test between two layers that could shrink."""

    def __init__(self, part: nn.Module, width_in: int, width_out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width_in, 1)
        self.part = part
        self.last = nn.Linear(width_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.part(self.first(x)).mean((2, 3)))


class AroundTokens(Around):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.part(tokens, x.shape[2], x.shape[3]) if isinstance(self.part, Sized) else self.part(tokens)
        return self.last(tokens.mean(1))


IMAGE = torch.linspace(-1, 1, 2 * 3 * 5 * 6).sin().view(2, 3, 5, 6)
NETS = {
    "heads": lambda: AroundTokens(Heads(), 16, 16),
    "pieces": lambda: Around(Pieces(), 3, 8),
    "padded": lambda: Around(Padded(), 8, 12),
    "written": lambda: AroundTokens(Written(), 12, 12),
    "sized": lambda: AroundTokens(Sized(), 12, 12),
}


@pytest.mark.parametrize("name", NETS)
def test_a_rewritten_forward_computes_what_the_masked_model_computes(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(NETS[name]())
    graph = trace(model, IMAGE)
    assert any("fixed in the forward" in f.reason for f in couple(graph).frozen)
    groups = couple(graph, baked="submodule")
    assert {r.module for r in groups.rewrites} == {"part"}
    assert sum(g.n_units for g in groups.groups) > sum(g.n_units for g in couple(graph).groups)
    for seed in range(3):
        plan = random_plan(groups, seed)
        small, receipt = cut(model, groups, plan)
        assert receipt.verification is not None
        assert receipt.verification.error < 1e-9
        assert any(c.attribute.name == "baked" for c in receipt.changes)
        assert isinstance(small.part, type(model.part))
        assert type(model.part) in (Heads, Pieces, Padded, Sized, Written)
        assert type(small) is type(model)
        assert list(small.state_dict()) == list(model.state_dict())
        plan = random_plan(groups, seed, may_go=exact_only)
        small, _ = cut(model, groups, plan)
        assert_equal_to_silenced(model, small, groups, plan, IMAGE.repeat(2, 1, 1, 1)[:3])


def test_what_was_frozen_in_a_network_of_capsules_goes() -> None:
    torch.manual_seed(0)
    kind, inputs = NASTY["Capsule"]
    model = randomise(kind())
    groups = couple(trace(model, inputs), baked="submodule")
    assert groups.groups
    small, receipt = cut(model, groups, random_plan(groups, 1))
    assert receipt.verification is not None
    assert receipt.verification.distance > 1e-3
    assert isinstance(small, kind)


@pytest.fixture(scope="module")
def pruned() -> tuple[nn.Module, nn.Module, Receipt]:
    torch.manual_seed(0)
    model = randomise(NETS["heads"]())
    groups = couple(trace(model, IMAGE), baked="submodule")
    small, receipt = cut(model, groups, random_plan(groups, 0))
    return model, small, receipt


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layer", [False, True])
def test_what_stays_and_what_is_dropped_are_told_apart_in_training(layer: bool, inplace: bool) -> None:
    """In evaluation a dropout hands back the very tensor that it was given."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.drop, self.last = nn.Linear(16, 16), nn.Dropout(0.5, inplace), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.wide(x).view(-1, 4, 4).flatten(1)
            kept = y + 0 if inplace else y
            return self.last(kept + (self.drop(y) if layer else F.dropout(y, 0.5, self.training, inplace)))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), Residual(), nn.Linear(16, 2))
    x = torch.randn(3, 4)
    groups = couple(trace(model, x), baked="submodule")
    same, receipt = cut(model, groups, plan_of(groups, keep_all(groups)))
    assert [r.module for r in receipt.rewrites] == ["1"]
    for mode in (True, False):
        outputs = []
        for net in (model, same):
            torch.manual_seed(1)
            outputs.append(net.train(mode)(x))
        torch.testing.assert_close(*outputs)


def test_both_modes_are_written_again(pruned: tuple[nn.Module, nn.Module, Receipt]) -> None:
    _, small, receipt = pruned
    assert receipt.verification is not None
    assert "train, as in evaluation" in receipt.verification.checks
    torch.manual_seed(0)
    a, b = small.train()(IMAGE), small(IMAGE)
    assert not torch.allclose(a, b)  # dropout is at work
    small.eval()
    assert torch.equal(small(IMAGE), small(IMAGE))
    small.train()(IMAGE).sum().backward()
    assert all(p.grad is not None for p in small.part.parameters())
    small.zero_grad(set_to_none=True)
    small.eval()


def test_a_rewritten_model_is_saved_and_loaded_without_pickle(
    pruned: tuple[nn.Module, nn.Module, Receipt], tmp_path: Path
) -> None:
    _, small, receipt = pruned
    save(small, tmp_path, receipt=receipt)
    fresh = NETS["heads"]()
    loaded = load(tmp_path, model=fresh)
    assert type(fresh.part) is Heads
    for a, b in zip(run(small, IMAGE), run(loaded, IMAGE), strict=True):
        assert torch.equal(a, b)


def test_a_receipt_that_calls_something_else_than_torch_is_refused(
    pruned: tuple[nn.Module, nn.Module, Receipt], tmp_path: Path
) -> None:
    model, small, receipt = pruned
    save(small, tmp_path, receipt=receipt)
    content = json.loads((tmp_path / "receipt.json").read_text())
    text = json.dumps({k: v for k, v in content.items() if k != "sha256"})
    assert "torch.Tensor.permute" in text
    _store.write_json(tmp_path / "receipt.json", json.loads(text.replace("torch.Tensor.permute", "os.system")))
    with pytest.raises(FileCorrupt, match="no function of torch"):
        load(tmp_path, model=copy.deepcopy(model))


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ('"out"', 'out") if exec("raise SystemExit") else getattr(self, "out'),
        ('"scaled_dot_product_attention"', None),
        ('"attn_mask"', "attn_mask=exec('raise SystemExit'), scale"),
    ],
    ids=["path", "function", "keyword"],
)
def test_a_receipt_cannot_smuggle_code_into_a_forward(
    pruned: tuple[nn.Module, nn.Module, Receipt], tmp_path: Path, written: str, instead: str | None
) -> None:
    model, small, receipt = pruned
    save(small, tmp_path, receipt=receipt)
    content = json.loads((tmp_path / "receipt.json").read_text())
    text = json.dumps({k: v for k, v in content.items() if k != "sha256"})
    if instead is None:
        written, instead = '"torch.nn.functional.scaled_dot_product_attention"', "torch.from_file"
    assert written in text
    _store.write_json(tmp_path / "receipt.json", json.loads(text.replace(written, json.dumps(instead))))
    with pytest.raises(FileCorrupt):
        load(tmp_path, model=copy.deepcopy(model))(IMAGE)


def test_rewritten_modules_are_copied_pickled_and_exported(pruned: tuple[nn.Module, nn.Module, Receipt]) -> None:
    _, small, _ = pruned
    expected = small(IMAGE)
    assert torch.equal(copy.deepcopy(small)(IMAGE), expected)
    assert torch.equal(pickle.loads(pickle.dumps(small))(IMAGE), expected)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(small, (IMAGE,), dynamic_shapes=shapes).module()
    more = IMAGE.repeat(2, 1, 1, 1)
    assert torch.allclose(program(more), small(more), atol=1e-6)


def test_a_cut_model_is_cut_again_and_the_receipts_compose(pruned: tuple[nn.Module, nn.Module, Receipt]) -> None:
    model, small, receipt = pruned
    groups = couple(trace(small, IMAGE), baked="submodule")
    assert not groups.rewrites  # the integers are attributes now
    kept = keep_all(groups)
    widest = max(groups.groups, key=lambda g: g.n_units)
    kept[widest.index].pop()
    smaller, both = cut(small, groups, plan_of(groups, kept), receipt=receipt)
    assert len(both.rewrites) == 1
    from secateur._surgery import apply

    again = apply(model, both)
    assert torch.allclose(again.eval()(IMAGE), smaller.eval()(IMAGE))


def test_graphs_and_receipts_with_programs_are_read_back(pruned: tuple[nn.Module, nn.Module, Receipt]) -> None:
    model, _, receipt = pruned
    graph = trace(model, IMAGE)
    assert from_json(Graph, json.loads(json.dumps(to_json(graph)))) == graph
    assert from_json(Receipt, json.loads(json.dumps(to_json(receipt)))) == receipt


def test_an_argument_that_was_not_recorded_is_refused(pruned: tuple[nn.Module, nn.Module, Receipt]) -> None:
    _, small, _ = pruned
    tokens = torch.zeros(1, 4, small.part.qkv.in_features)
    with pytest.raises(RewrittenForward, match="mask"):
        small.part(tokens, torch.zeros(4, 4))


class Peeks(Heads):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x) if x.sum().item() < 1e9 else x


class Loops(Heads):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.stack([super(Loops, self).forward(x[i : i + 1])[0] for i in range(int(x.shape[0]))])


def test_a_forward_that_depends_on_data_is_frozen_and_says_so() -> None:
    model = randomise(AroundTokens(Peeks(), 16, 16))
    groups = couple(trace(model, IMAGE), baked="submodule")
    assert not groups.rewrites
    assert any("cannot be written again: item takes values out of tensors" in f.reason for f in groups.frozen)


def test_a_loop_over_examples_is_refused_by_name() -> None:
    model = randomise(AroundTokens(Loops(), 16, 16))
    groups = couple(trace(model, IMAGE), baked="submodule")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CutError, match="more or less for more examples") as caught:
        cut(model, groups, random_plan(groups, 0))
    assert caught.value.where == "part"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 2)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)).view(-1, 3, 4).softmax(1).flatten(1))
"""


@pytest.mark.parametrize(("word", "units"), [("freeze", 0), ("submodule", 4)])
def test_the_command_line_says_what_to_do_about_integers(word: str, units: int, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(NET)
    arguments = ["trace", f"{path}:Net", "--shape", "2x6", "--baked", word]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert f"{units} units" in result.output


def test_another_word_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    result = CliRunner().invoke(app, ["trace", f"{tmp_path / 'net.py'}:Net", "--shape", "2x6", "--baked", "both"])
    assert result.exit_code != 0


@pytest.mark.parametrize("seed", range(4))
def test_a_loop_over_heads_is_cut_exactly(seed: int) -> None:
    """Where each head starts and ends stands in a product with a quotient: `(i + 1) * (16 // self.heads)`."""

    class HeadLoop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out, self.heads = nn.Linear(6, 48), nn.Linear(16, 3), 4

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            d, heads = 16 // self.heads, []
            for i in range(self.heads):
                s = slice(i * d, (i + 1) * d)
                heads.append((q[..., s] @ k[..., s].transpose(-1, -2)).softmax(-1) @ v[..., s])
            return self.out(torch.cat(heads, -1))

    torch.manual_seed(0)
    model = HeadLoop()
    groups = couple(trace(model, torch.randn(2, 5, 6)), baked="submodule")
    small, receipt = cut(model, groups, random_plan(groups, seed))
    assert receipt.verification is not None
    assert small.qkv.out_features < 48


def test_a_session_of_pruning_writes_forwards_again_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NETS["heads"]()
    x = torch.randn(120, 3, 4, 4)
    y = x.mean((2, 3)).argmax(1)
    train, search = ([(x[i : i + 20], y[i : i + 20]) for i in part] for part in (range(0, 80, 20), range(80, 120, 20)))

    def pruned() -> nn.Module:
        result = sc.prune(
            model,
            x[:2],
            data=sc.Data(train=train, search=search),
            task=sc.tasks.classification(),
            budget=sc.Budget(params=0.6),
            steps=2,
            recovery=sc.recoveries.finetune(epochs=1),
            baked="submodule",
            out=tmp_path / "run",
            resume=True,
        )
        save(result.model, tmp_path / "model", receipt=result.receipt)
        return result.model

    small = pruned().eval()
    assert type(small) is type(model)
    assert isinstance(small.part, Heads)
    assert small.part.qkv.out_features < 48
    assert sum(p.numel() for p in small.parameters()) <= 0.6 * sum(p.numel() for p in model.parameters())
    assert torch.equal(load(tmp_path / "model", model=NETS["heads"]()).eval()(x), small(x))
    assert torch.equal(pruned().eval()(x), small(x))
    sc.export(small, x[:2], tmp_path / "model.onnx", exporter=sc.exporters.onnx())
