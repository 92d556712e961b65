"""save and load: the same bits come back into a fresh model of the same class; anything else is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import reports
from secateur import _surgery
from secateur._couple import couple
from secateur._cut import cut
from secateur._export import contents, load, save
from secateur._trace import trace
from secateur.cli.demo_models import PatchTransformer, ResidualCNN, RowLSTM
from secateur.errors import FileCorrupt, InputError, ReceiptMismatch
from secateur.schema.plan import Plan
from secateur.schema.receipt import Receipt


class TiedLanguageModel(nn.Module):
    """Embedding and output share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.lstm = nn.LSTM(12, 12, batch_first=True)
        self.out = nn.Linear(12, 20)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.lstm(self.embed(x))[0])


class WithBuffers(nn.Module):
    """A persistent and a non-persistent buffer, one of them channel-indexed, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 10)
        self.second = nn.Linear(10, 3)
        self.register_buffer("scale", torch.rand(10) + 0.5, persistent=False)
        self.register_buffer("count", torch.tensor(3))
        self.first.bias.requires_grad_(False)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)) * self.scale)


def halved(model: nn.Module, inputs: object) -> tuple[nn.Module, Receipt, Plan]:
    """Cut unevenly: group g loses every unit whose number is g + 1 modulo 3."""
    groups = couple(trace(model, inputs))
    ties = {g for e in groups.equations for g, _ in e.terms}
    kept = tuple(
        tuple(u for u in range(g.n_units) if u % 3 != (1 if g.index in ties else (g.index + 1) % 3))
        for g in groups.groups
    )
    plan = Plan(
        kept=kept,
        names=tuple(g.name for g in groups.groups),
        n_units=tuple(g.n_units for g in groups.groups),
        structure=groups.structure,
    )
    small, receipt = cut(model, groups, plan, example_inputs=inputs)
    return small, receipt, plan


IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
CASES = {
    "residual cnn": (lambda: ResidualCNN(width=8), IMAGES),
    "lstm": (lambda: RowLSTM(hidden=12), IMAGES),
    "transformer": (lambda: PatchTransformer(dim=16, depth=1, heads=4), IMAGES),
    "tied language model": (TiedLanguageModel, torch.tensor([[1, 2, 3], [4, 5, 6]])),
    "buffers": (WithBuffers, torch.randn(2, 6, generator=torch.Generator().manual_seed(3))),
}


@pytest.fixture(params=list(CASES), ids=list(CASES))
def case(request):
    make, inputs = CASES[request.param]
    return make, inputs


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    model = WithBuffers().eval()
    small, receipt, plan = halved(model, CASES["buffers"][1])
    save(small, tmp_path, receipt=receipt, plan=plan)
    return small, tmp_path


@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_a_fresh_model_becomes_the_saved_one_to_the_bit(case, place, tmp_path):
    make, inputs = case
    small, receipt, plan = halved(make().eval(), inputs)
    save(small, tmp_path, receipt=receipt, plan=plan)
    with torch.device(place):
        fresh = make().eval()
    before = None if place == "meta" else _surgery.fingerprint_weights(fresh)

    again = load(tmp_path, model=fresh)

    assert type(again) is type(small)
    assert _surgery.fingerprint_weights(again) == _surgery.fingerprint_weights(small)
    assert torch.equal(again(inputs), small(inputs))
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in small.named_parameters()
    }
    assert not any(t.is_meta for _, _, t in _surgery.tensors(again))
    assert before is None or _surgery.fingerprint_weights(fresh) == before, "the model that was passed is as it was"
    again(inputs).float().sum().backward()


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    small, receipt, _ = halved(TiedLanguageModel().eval(), CASES["tied language model"][1])
    save(small, tmp_path, receipt=receipt)
    again = load(tmp_path, model=TiedLanguageModel())
    assert again.out.weight is again.embed.weight
    assert contents(tmp_path).saved.aliases == {"out.weight": "embed.weight"}


def test_certificate_and_plan_come_back_equal(tmp_path):
    model = WithBuffers()
    small, receipt, plan = halved(model, CASES["buffers"][1])
    save(small, tmp_path, receipt=receipt, certificate=reports.certificate(), plan=plan)
    found = contents(tmp_path)
    assert (found.certificate, found.plan, found.saved.receipt) == (reports.certificate(), plan, receipt)


def test_a_second_save_removes_the_certificate_of_the_first_one(tmp_path):
    save(WithBuffers(), tmp_path, certificate=reports.certificate())
    save(WithBuffers(), tmp_path)
    assert not (tmp_path / "certificate.json").exists()


def test_a_certificate_that_save_did_not_write_is_left_alone(tmp_path):
    (tmp_path / "certificate.json").write_text("of another run")
    save(WithBuffers(), tmp_path)
    assert (tmp_path / "certificate.json").read_text() == "of another run"


def test_an_uncut_model_can_be_saved_too(tmp_path):
    model = WithBuffers()
    save(model, tmp_path)
    assert _surgery.fingerprint_weights(load(tmp_path, model=WithBuffers())) == _surgery.fingerprint_weights(model)


def test_a_model_that_was_turned_to_half_precision_after_the_cut_comes_back_in_half_precision(tmp_path):
    small, receipt, _ = halved(WithBuffers(), CASES["buffers"][1])
    save(copy.deepcopy(small).half(), tmp_path, receipt=receipt)
    again = load(tmp_path, model=WithBuffers())
    assert {p.dtype for p in again.parameters()} == {torch.float16}


def test_it_loads_in_a_new_process_that_never_saw_the_dense_weights(tmp_path):
    small, receipt, _ = halved(RowLSTM(hidden=12).eval(), IMAGES)
    save(small, tmp_path, receipt=receipt)
    code = (
        "import sys; from secateur._export import load; from secateur.cli.demo_models import RowLSTM; "
        "from secateur._surgery import fingerprint_weights; "
        "print(fingerprint_weights(load(sys.argv[1], model=RowLSTM(hidden=12).eval())))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == _surgery.fingerprint_weights(small)


class Grows(nn.Module):
    """Two buffers that are no part of the state: one grows with the input, one is made when it is first needed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 3)
        self.register_buffer("places", torch.zeros(1), persistent=False)
        self.register_buffer("decay", None, persistent=False)

    def forward(self, x):
        if len(self.places) < x.shape[1]:
            self.places = torch.arange(x.shape[1]) / 7
        if self.decay is None:
            self.decay = torch.full((1,), 0.9)
        return self.second(torch.tanh(self.first(x))) * self.decay + self.places[: x.shape[1], None]


@pytest.mark.parametrize("is_cut", [True, False])
@pytest.mark.parametrize("place", ["cpu", "meta"])
def test_a_fresh_model_may_not_have_made_its_buffers_yet(tmp_path, is_cut, place):
    torch.manual_seed(0)
    model, x = Grows().eval(), torch.randn(2, 5, 6)
    model(x)
    small, receipt = halved(model, x)[:2] if is_cut else (model, None)
    save(small, tmp_path / "out", receipt=receipt)
    with torch.device(place):
        fresh = Grows().eval()
    loaded = load(tmp_path / "out", model=fresh)
    assert fresh.decay is None
    assert len(fresh.places) == 1
    assert torch.equal(loaded(x), small(x))
    assert loaded.first.out_features == small.first.out_features


def test_a_different_model_is_refused(saved):
    _, folder = saved
    with pytest.raises(ReceiptMismatch, match="another model"):
        load(folder, model=ResidualCNN(width=8))


def test_a_model_of_the_same_shapes_but_another_class_is_refused(saved):
    class Impostor(WithBuffers):
        def forward(self, x):
            return -super().forward(x)

    with pytest.raises(ReceiptMismatch, match="another kind of model"):
        load(saved[1], model=Impostor())


def test_the_pruned_model_itself_is_refused_as_the_dense_one(saved):
    small, folder = saved
    with pytest.raises(ReceiptMismatch):
        load(folder, model=small)


@pytest.mark.parametrize("file", ["model.safetensors", "receipt.json", "plan.json"])
@pytest.mark.parametrize("keep", [0, 100, -3])
def test_a_truncated_file_is_refused(saved, file, keep):
    _, folder = saved
    path = folder / file
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileCorrupt):
        load(folder, model=WithBuffers())


@pytest.mark.parametrize("file", ["model.safetensors", "plan.json", "receipt.json"])
def test_a_single_changed_byte_is_refused(saved, file):
    _, folder = saved
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(FileCorrupt):
        load(folder, model=WithBuffers())


def test_tensors_of_another_save_are_refused(saved, tmp_path_factory):
    _, folder = saved
    other = tmp_path_factory.mktemp("other")
    model = WithBuffers()
    small, receipt, _ = halved(model, CASES["buffers"][1])
    with torch.no_grad():
        small.first.weight += 1
    save(small, other, receipt=receipt)
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(FileCorrupt, match="changed"):
        load(folder, model=WithBuffers())


def test_a_missing_file_is_named(saved):
    _, folder = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileCorrupt, match=r"model\.safetensors"):
        load(folder, model=WithBuffers())


def test_nothing_is_written_when_receipt_and_model_do_not_fit(tmp_path):
    small, receipt, _ = halved(WithBuffers(), CASES["buffers"][1])
    with pytest.raises(ReceiptMismatch):
        save(WithBuffers(), tmp_path / "a", receipt=receipt)
    with pytest.raises(ReceiptMismatch):
        save(ResidualCNN(width=8), tmp_path / "a", receipt=receipt)
    assert not (tmp_path / "a").exists()
    save(small, tmp_path / "a", receipt=receipt)


def test_a_model_without_data_cannot_be_saved(tmp_path):
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(InputError, match="without data"):
        save(model, tmp_path)


def test_state_that_could_only_be_pickled_is_refused(tmp_path):
    class Stateful(nn.Linear):
        def get_extra_state(self):
            return object()

    with pytest.raises(InputError, match="no tensor"):
        save(Stateful(2, 2), tmp_path)


def test_receipt_json_is_plain_json_that_a_person_can_read(saved):
    content = json.loads((saved[1] / "receipt.json").read_text())
    assert content["receipt"]["kept"]["first.weight"][0] == [0, 2, 3, 5, 6, 8, 9]
    assert content["receipt"]["shapes"]["first.weight"] == [10, 6]


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = WithBuffers()
    for i in range(8):
        save(model, tmp_path / str(i))
    assert len({(tmp_path / str(i) / "model.safetensors").read_bytes() for i in range(8)}) == 1
