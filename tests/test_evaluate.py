"""Per-example evaluation: the numbers, what is refused, and that the model is left as it was."""

from __future__ import annotations

import dataclasses
from collections import UserDict
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from secateur import _evaluate as ev
from secateur.errors import EmptyData, InputError, NonFinite, OneShotIterable, TaskShapeError
from secateur.schema.task import Task
from secateur.tasks import classification


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def data(n: int = 10) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4), torch.arange(n) % 3


def test_losses_and_scores_equal_those_of_a_plain_loop() -> None:
    model, (x, y) = network(), data()
    found = ev.evaluate(model, DataLoader(TensorDataset(x, y), batch_size=4), classification())
    model.eval()
    for i in range(10):
        logits = model(x[i : i + 1]).detach()
        assert found.losses[i] == pytest.approx(float(-logits.log_softmax(-1)[0, y[i]]), rel=1e-5)
        assert found.correct is not None
        assert bool(found.correct[i]) == bool(logits.argmax() == y[i])
    assert found.n == 10
    logits = model(x).detach()
    assert found.mean_loss == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert found.mean_correct == pytest.approx(float((logits.argmax(-1) == y).float().mean()))


def test_weights_make_a_weighted_mean() -> None:
    model, (x, y) = network(), data()
    task = dataclasses.replace(classification(), weights=lambda batch: batch[1].float())
    plain = ev.evaluate(model, [(x, y)], classification())
    found = ev.evaluate(model, [(x[:3], y[:3]), (x[3:], y[3:])], task)
    assert found.mean_loss == pytest.approx(float((plain.losses * y).sum() / y.sum()))


def test_an_early_stop_leaves_nothing_to_clean_up() -> None:
    model, (x, y) = network(), data()
    flags = [m.training for m in model.modules()]
    batches = ev.evaluate_batches(model, [(x, y)] * 3, classification())
    next(batches)
    assert [m.training for m in model.modules()] == flags
    assert model.training


@pytest.mark.parametrize("fails", [False, True], ids=["ends well", "raises"])
def test_modes_gradients_flags_and_buffers_are_left_as_they_were(fails: bool) -> None:
    model, (x, y) = network(), data()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    task = classification()
    if fails:
        task = dataclasses.replace(task, losses=lambda out, batch: out.sum())
        with pytest.raises(TaskShapeError):
            ev.evaluate(model, [(x, y)], task, train=True)
    else:
        ev.evaluate(model, [(x, y)], task, train=True)
    assert [m.training for m in model.modules()] == flags
    assert not model[0].weight.requires_grad
    assert torch.equal(model[4].weight.grad, torch.ones_like(model[4].weight))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_mode_override_of_a_module_is_respected() -> None:
    class Merging(nn.Linear):
        merged = False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(4, 3))
    with ev.mode(model):
        assert model[0].merged
    assert not model[0].merged


class Once(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(3, 4))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ((b for b in [1]), OneShotIterable),
        (iter([1]), OneShotIterable),
        (zip([1], [2], strict=True), OneShotIterable),
        ([], EmptyData),
        (DataLoader(TensorDataset(torch.ones(0, 2))), EmptyData),
        (torch.ones(2, 2), InputError),
        ({"x": 1}, InputError),
        (3, InputError),
    ],
    ids=["generator", "iterator", "zip", "empty list", "empty loader", "tensor", "dict", "number"],
)
def test_data_that_cannot_be_used_is_refused_by_name(bad: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        ev.check_batches(bad)


def test_loaders_of_any_kind_are_accepted() -> None:
    ev.check_batches(DataLoader(Once()))
    ev.check_batches([torch.ones(2)])
    ev.check_batches(DataLoader(TensorDataset(torch.ones(2))))
    assert ev.length(DataLoader(Once())) == 0


def test_an_iterable_that_gives_nothing_the_second_time_is_named() -> None:
    model, (x, y) = network(), data()

    class Shared:
        def __init__(self) -> None:
            self.rest = iter([(x, y)])

        def __iter__(self) -> Iterator[object]:
            return self.rest

    batches = Shared()
    ev.evaluate(model, batches, classification())
    with pytest.raises(EmptyData, match="only once"):
        ev.evaluate(model, batches, classification())


def losses_of(function: object) -> Task:
    return Task(forward=lambda m, b: m(b[0]), losses=function, name="mine")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("losses", "error", "text"),
    [
        (lambda o, b: F.cross_entropy(o, b[1]), TaskShapeError, "reduction='none'"),
        (lambda o, b: F.cross_entropy(o, b[1], reduction="sum"), TaskShapeError, "reduction='none'"),
        (lambda o, b: o, TaskShapeError, r"\[10, 3\]"),
        (lambda o, b: 1.0, TaskShapeError, "float"),
        (lambda o, b: b[1], TaskShapeError, "int64"),
        (lambda o, b: o[:, 0] / (b[1] != 2), NonFinite, "example 2"),
        (lambda o, b: o[:0, 0], EmptyData, "without examples"),
    ],
    ids=["mean", "sum", "matrix", "number", "integers", "infinite", "none"],
)
def test_losses_of_the_wrong_form_are_refused(losses: object, error: type[Exception], text: str) -> None:
    x, y = data()
    with pytest.raises(error, match=text):
        ev.evaluate(network(), [(x, y)], losses_of(losses))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"correct": lambda o, b: o.mean()}, TaskShapeError),
        ({"correct": lambda o, b: o[:, 0] * 0 + 2}, InputError),
        ({"correct": lambda o, b: o[:, 0] * float("nan")}, NonFinite),
        ({"weights": lambda b: b[1][:2]}, TaskShapeError),
        ({"weights": lambda b: -b[1]}, InputError),
        ({"groups": lambda b: ["a"]}, TaskShapeError),
    ],
    ids=["one score", "score of 2", "nan score", "two weights", "negative weights", "one group"],
)
def test_scores_weights_and_groups_of_the_wrong_form_are_refused(
    changes: dict[str, object], error: type[Exception]
) -> None:
    x, y = data()
    with pytest.raises(error):
        ev.evaluate(network(), [(x, y)], dataclasses.replace(classification(), **changes))  # type: ignore[arg-type]


def test_groups_are_kept_in_order() -> None:
    x, y = data(4)
    task = dataclasses.replace(classification(), groups=lambda b: b[1])
    assert ev.evaluate(network(), [(x, y), (x, y)], task).groups == (0, 1, 2, 0, 0, 1, 2, 0)


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass(frozen=True)
class Record:
    x: Tensor
    y: Tensor


BATCHES = {
    "tensor": lambda x, y: x,
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "named tuple": lambda x, y: Pair(x, y),
    "dict": lambda x, y: {"x": x, "y": {"z": y}},
    "user dict": lambda x, y: UserDict({"x": x, "y": y}),
    "dataclass": lambda x, y: Record(x, y),
    "texts": lambda x, y: {"x": x, "text": [f"t{int(v)}" for v in y]},
}


@pytest.mark.parametrize("kind", BATCHES)
def test_hashes_are_those_of_the_content_whatever_the_batch_size(kind: str) -> None:
    x, y = data(6)
    make = BATCHES[kind]
    whole = ev.example_hashes([make(x, y)])
    parts = ev.example_hashes([make(x[:4], y[:4]), make(x[4:], y[4:])])
    assert whole == parts
    assert len(set(whole)) == 6
    changed = x.clone()
    changed[2, 1] += 1e-6
    other = ev.example_hashes([make(changed, y)])
    assert [a == b for a, b in zip(whole, other, strict=True)] == [True, True, False, True, True, True]


@pytest.mark.parametrize("kind", BATCHES)
def test_examples_of_a_batch_and_moves_keep_its_containers(kind: str) -> None:
    x, y = data(6)
    batch = BATCHES[kind](x, y)
    part = ev.examples(batch, 1, 3)
    assert type(part) is type(batch)
    assert ev.batch_size(part) == 2
    assert ev.example_hashes([part]) == ev.example_hashes([batch])[1:3]
    moved = ev.to_device(batch, "cpu")
    assert type(moved) is type(batch)
    assert ev.example_hashes([moved]) == ev.example_hashes([batch])
    meta = [item for _, item in ev.leaves(ev.to_device(batch, "meta")) if isinstance(item, Tensor)]
    assert all(t.device.type == "meta" for t in meta)


def test_a_batch_encoding_stays_one() -> None:
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"input_ids": torch.arange(6).view(2, 3)})
    assert type(ev.to_device(batch, "cpu")) is transformers.BatchEncoding
    assert ev.examples(batch, 1, 2)["input_ids"].tolist() == [[3, 4, 5]]
    assert len(ev.example_hashes([batch])) == 2


def test_dtypes_and_shapes_count_in_a_hash() -> None:
    x = torch.zeros(2, 4)
    assert len({ev.example_hashes([t])[0] for t in (x, x.double(), x.view(2, 2, 2), x.bfloat16())}) == 4


def test_fingerprints_ignore_the_order_unless_it_matters() -> None:
    x, y = data()
    forward, backward = [(x, y)], [(x.flip(0), y.flip(0))]
    assert ev.fingerprint_data(forward) == ev.fingerprint_data(backward)
    assert ev.fingerprint_data(forward, ordered=True) != ev.fingerprint_data(backward, ordered=True)
    assert ev.fingerprint_data(forward) != ev.fingerprint_data([(x[1:], y[1:])])
    assert ev.fingerprint_data(forward) != ev.fingerprint_data([(x, y), (x[:1], y[:1])]), "a repeated example counts"


def test_own_batch_classes_move_through_their_own_method() -> None:
    class Graphs:
        device = "cpu"

        def to(self, device: torch.device) -> Graphs:
            made = Graphs()
            made.device = device.type
            return made

    assert ev.to_device(Graphs(), "meta").device == "meta"


def test_half_precision_is_evaluated() -> None:
    model, (x, y) = network().bfloat16(), data()
    found = ev.evaluate(model, [(x.bfloat16(), y)], classification())
    wide = ev.evaluate(model.float(), [(x, y)], classification())
    assert found.losses.dtype == torch.float64
    assert found.mean_loss == pytest.approx(wide.mean_loss, rel=0.05)


def test_progress_is_reported() -> None:
    seen: list[tuple[str, int, int]] = []
    x, y = data()
    ev.evaluate(network(), [(x, y)] * 2, classification(), progress=lambda *a: seen.append(a))
    assert seen == [("evaluate", 1, 2), ("evaluate", 2, 2)]
