"""export: a file that computes what PyTorch computes, at every batch size, or a refusal that leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur._couple import couple
from secateur._cut import cut
from secateur._export import export
from secateur._trace import trace
from secateur.cli.demo_models import PatchTransformer, ResidualCNN, RowLSTM
from secateur.errors import ExportMismatch, InputError
from secateur.exporters import EXPORTERS, onnx, torch_export
from secateur.exporters._check import agree, resized
from secateur.schema.plan import Plan

IMAGES = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))


class TwoInputs(nn.Module):
    """Called with keyword arguments, gives two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 4)

    def forward(self, left, right):
        joint = torch.tanh(self.a(left) + self.b(right))
        return joint.sum(1), joint


class BakedBatch(nn.Module):
    """Writes the batch size of its first call down as a number."""

    def forward(self, x):
        return x.reshape(int(x.shape[0]), -1).sum(1, keepdim=True) + torch.ones(2, 1)


class BiasedAttention(nn.Module):
    """Attention whose mask is made for each example: torch's fused kernel lays the result out in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.bias, self.size = nn.Parameter(torch.randn(1, 2, 5, 5)), 4

    def forward(self, x):
        q, k, v = (layer(x).view(*x.shape[:2], -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mask = torch.zeros(x.shape[0], 1, 1, 5) + self.bias
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(y.transpose(1, 2).reshape(*x.shape[:2], -1))


def pruned(model: nn.Module, inputs: object) -> nn.Module:
    groups = couple(trace(model, inputs))
    plan = Plan(
        kept=tuple(tuple(range(0, g.n_units, 2)) for g in groups.groups),
        names=tuple(g.name for g in groups.groups),
        n_units=tuple(g.n_units for g in groups.groups),
        structure=groups.structure,
    )
    return cut(model, groups, plan, example_inputs=inputs)[0]


@pytest.mark.parametrize(
    "make",
    [lambda: ResidualCNN(width=8), lambda: RowLSTM(hidden=12), lambda: PatchTransformer(dim=16, depth=1, heads=4)],
    ids=["residual cnn", "lstm", "transformer"],
)
def test_onnx_runtime_agrees_with_a_pruned_model_at_batch_sizes_never_seen(make, tmp_path: Path):
    import onnxruntime

    small = pruned(make().eval(), IMAGES).eval()
    told = export(small, IMAGES, tmp_path / "model.onnx", exporter=onnx())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 4, 9):
        x = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(n))
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(got, small(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert told["path"] == str(tmp_path / "model.onnx")
    assert told["error"] < 1e-4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


def test_keyword_arguments_keep_their_names_in_onnx(tmp_path: Path):
    import onnxruntime

    model = TwoInputs().eval()
    inputs = {"left": torch.randn(2, 3), "right": torch.randn(2, 5)}
    export(model, inputs, tmp_path / "two.onnx", exporter=onnx())
    session = onnxruntime.InferenceSession(tmp_path / "two.onnx", providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} == {"left", "right"}
    assert len(session.get_outputs()) == 2


def test_attention_with_a_mask_of_its_own_for_each_example_is_exported(tmp_path: Path):
    x = torch.randn(2, 5, 8)
    small = pruned(BiasedAttention().eval(), x).eval()
    assert small.q.out_features < 8
    told = export(small, x, tmp_path / "biased.onnx", exporter=onnx())
    assert told["batches"] == (2, 1, 5)


def test_torch_export_gives_a_program_for_every_batch_size(tmp_path: Path):
    small = pruned(ResidualCNN(width=8).eval(), IMAGES).eval()
    export(small, IMAGES, tmp_path / "model.pt2", exporter=torch_export())
    program = torch.export.load(tmp_path / "model.pt2").module()
    x = torch.randn(7, 1, 8, 8)
    torch.testing.assert_close(program(x), small(x))


def test_a_baked_batch_size_is_found_out_and_leaves_no_file(tmp_path: Path):
    path = tmp_path / "baked.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(ExportMismatch, match=r"batch size|shapes"):
        export(BakedBatch().eval(), torch.randn(2, 3), path, exporter=onnx())
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["baked.onnx"]


def test_a_baked_batch_size_may_stay_if_asked_for(tmp_path: Path):
    told = export(BakedBatch().eval(), torch.randn(2, 3), tmp_path / "x.onnx", exporter=onnx(dynamic_batch=False))
    assert told["batches"] == (2,)


def test_export_leaves_the_modes_of_the_model_alone(tmp_path: Path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model.train()
    model[1].eval()
    export(model, torch.randn(2, 3), tmp_path / "x.onnx", exporter=onnx())
    assert [m.training for m in model] == [True, False, True]


def test_no_example_inputs_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no example inputs"):
        export(TwoInputs(), [], tmp_path / "x.onnx", exporter=onnx())


def test_a_wrong_program_is_refused_with_its_error():
    model = nn.Linear(3, 3)
    with pytest.raises(ExportMismatch, match="something else"):
        agree(model, lambda x: [model(x) * 1.01], torch.randn(2, 3), (2,), tolerance=1e-4, where="x")
    with pytest.raises(ExportMismatch, match="something else"):
        agree(model, lambda x: [model(x) * float("nan")], torch.randn(2, 3), (2,), tolerance=1e-4, where="x")
    with pytest.raises(ExportMismatch, match="shapes"):
        agree(model, lambda x: [model(x), model(x)], torch.randn(2, 3), (2,), tolerance=1e-4, where="x")


def test_equal_infinities_are_no_difference():
    mask = torch.tensor([[0.0, -torch.inf]])
    model = nn.Module()
    model.forward = lambda x: mask.expand(len(x), 2)  # type: ignore[method-assign]
    assert agree(model, lambda x: [mask.expand(len(x), 2)], torch.randn(2, 3), (2, 5), tolerance=0.0, where="x") == 0.0


def test_resized_inputs_repeat_the_examples_and_leave_the_rest():
    inputs = {"x": torch.arange(6).reshape(2, 3), "flag": True, "table": torch.arange(4)}
    made = resized(inputs, 5)
    assert made["x"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert made["flag"] is True
    assert made["table"] is inputs["table"]


def test_the_table_names_every_exporter_as_the_member_names_itself():
    assert {name: factory().name for name, factory in EXPORTERS.items()} == {name: name for name in EXPORTERS}
