"""Prefix reuse: bit for bit what a full forward computes, whatever the forward does, and less of it computed."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Hashable
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers import nets
from secateur import _counts, _evaluate, _reuse, _scan, _surgery
from secateur._couple import couple
from secateur._evaluate import map_leaves
from secateur._replay import leaves
from secateur._scan import scan
from secateur._trace import trace
from secateur._units import call
from secateur.errors import InputError
from secateur.schema.groups import Groups
from secateur.schema.scores import Scores
from secateur.schema.task import Task

NETWORKS = [
    *("residual", "pad_lambda", "grouped", "inplace", "inplace_slice", "channels_last"),
    *("lstm_two_both_ways", "gru", "packed", "encoder", "own_attention", "tied_lm", "branching", "dict_output"),
]


def energy(out: object, batch: object) -> Tensor:
    """A loss for any output: the mean square of everything in it, example by example."""
    del batch
    return torch.stack([t.reshape(len(t), -1).float().square().mean(1) for t in leaves(out) if t.dim() > 1]).sum(0)


TASK = Task(forward=call, losses=energy, labels=False, name="energy")


def random_scores(groups: Groups) -> Scores:
    generator = torch.Generator().manual_seed(0)
    values = tuple(tuple(torch.rand(g.n_units, generator=generator).tolist()) for g in groups.groups)
    return Scores(criterion="random", unit="a.u.", order=0, source="", values=values, structure=groups.structure)


class Case:
    """A network with one cut of every group, and the prefix of a batch."""

    def __init__(self, model: nn.Module, batch: object, memory: int = 2**30) -> None:
        self.model, self.batch = model.eval(), batch
        self.groups = couple(trace(model, batch))
        self.order = _counts.removal_order(self.groups, random_scores(self.groups))
        plan = _scan.targets(self.groups, (0.5,))
        self.counts = list(dict.fromkeys(c for by_fraction in plan.values() for c in by_fraction.values()))
        families: dict[Hashable, tuple] = {c: (functools.partial(self.cut, c), 9) for c in self.counts}
        self.dense = copy.deepcopy(model)
        self.prefix = _reuse.prepare(self.dense, batch, TASK, families, memory=memory, known={})

    def cut(self, counts: tuple[int, ...]) -> nn.Module:
        kept = _counts.kept_units(self.order, counts)
        return _surgery.apply(self.model, _surgery.receipt_for(self.model, self.groups, kept))

    def losses(self) -> list[tuple[Tensor, Tensor]]:
        """Of every cut: in full, and from where it parts from the dense model."""
        made = []
        for counts in self.counts:
            torch.manual_seed(5)
            full = _evaluate.evaluate_batch(self.cut(counts), self.batch, TASK)
            torch.manual_seed(5)
            reused = _reuse.evaluate(self.prefix, self.cut(counts), TASK, counts, where="")
            assert reused is not None
            made.append((full.losses, reused.losses))
        return made

    def work(self) -> list[float]:
        """Of every cut: the part of its multiplications that was not saved."""
        made = []
        for counts in self.counts:
            with FlopCounterMode(display=False) as full:
                _evaluate.evaluate_batch(self.cut(counts), self.batch, TASK)
            with FlopCounterMode(display=False) as reused:
                _reuse.evaluate(self.prefix, self.cut(counts), TASK, counts, where="")
            made.append(reused.get_total_flops() / full.get_total_flops())
        return made


@pytest.mark.parametrize("name", NETWORKS)
def test_a_scan_with_reuse_has_the_bits_of_one_without(name: str) -> None:
    model, inputs = nets.build(name)
    batches = [inputs, map_leaves(lambda t: t.flip(0), inputs), map_leaves(lambda t: t[:1], inputs)]
    groups = couple(trace(model, inputs))
    run = functools.partial(scan, model, groups, random_scores(groups), batches, TASK, removed=(0.3, 0.6), n_folds=2)
    told = Mock()
    plain = run(memory=0)
    assert run(progress=told) == plain
    assert {c.args[0] for c in told.call_args_list} == {"scan"}, "no batch had to be computed in full"
    if name in ("residual", "encoder"):
        assert run(memory=100) == plain


def test_what_lies_before_the_cut_is_not_computed() -> None:
    work = Case(*nets.build("residual")).work()
    assert min(work) < 0.4
    assert sum(share < 0.9 for share in work) == len(work) - 1  # a cut of the stem leaves nothing to reuse


def test_less_memory_means_more_work_and_the_same_numbers() -> None:
    work = []
    for memory in (2**30, 5_000, 1):
        case = Case(*nets.build("residual"), memory)
        held = {s._cdata: s.nbytes() for kept in case.prefix.kept.values() for s in kept.values()}
        assert sum(held.values()) <= memory
        assert all(torch.equal(full, reused) for full, reused in case.losses())
        work.append(sum(case.work()))
    assert work[0] < work[1] < work[2] == len(case.counts)


# Forwards that do things


class Four(nn.Module):
    """Four layers, to be used in strange ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 10), nn.Linear(10, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.scale, self.last = torch.tensor(1.5), None

    def middle(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.b(F.relu(self.a(x))))
        return self.d(F.relu(self.c(self.middle(h))))


class InPlace(Four):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        before = x
        x.relu_()
        y = x.view(-1, 2, 4)
        y[:, 0].mul_(2)
        y.transpose_(1, 2)
        y.add_(1)
        z = self.b(x)
        z += before
        out = torch.empty_like(z)
        out[:] = z.clamp_(min=0)
        out.sub_(x)
        w = self.c(out).tanh_()
        before.add_(3)  # what was computed before the cut is written after it
        return self.d(w + before.sum(1, keepdim=True))


class Branches(Four):
    def middle(self, h: Tensor) -> Tensor:
        if h.mean().item() > 100 or bool((h.sum(1) < 0).any()):
            return h * 2
        return h + int(h.argmax(1)[0]) + (1 if float(h.sum()) > 0.1 else 0)


class Lists(Four):
    def middle(self, h: Tensor) -> Tensor:
        return h + sum(h.mean(0).tolist())


class Catches(Four):
    def middle(self, h: Tensor) -> Tensor:
        try:
            return h + sum(h.tolist()[0])
        except Exception:  # noqa: BLE001 - that is the point
            return h + 7


class Arrays(Four):
    def middle(self, h: Tensor) -> Tensor:
        array = h.numpy()
        array += 1.0
        return h


class Draws(Four):
    def middle(self, h: Tensor) -> Tensor:
        return F.dropout(h + torch.rand(8), 0.5, training=True)


class Counts(Four):
    def middle(self, h: Tensor) -> Tensor:
        self.seen += 1
        return h * self.scale * self.seen


class CountsLate(Four):
    """Reads before what it writes at the end."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.b(F.relu(self.a(x) * (1 + self.seen))))
        out = self.d(F.relu(self.c(h)))
        self.seen += 1
        return out


class Widths(Four):
    def middle(self, h: Tensor) -> Tensor:
        return h / h.shape[1] ** 0.5 + h.new_ones(h.shape).cumsum(1)


class Gradients(Four):
    def middle(self, h: Tensor) -> Tensor:
        with torch.enable_grad():
            h = h.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.b(h).square().sum(), h)
        return h.detach() - 0.1 * slope


class Inference(Four):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().forward(x)

    def middle(self, h: Tensor) -> Tensor:
        return h.reshape(-1, 4, 2).transpose(1, 2).reshape(-1, 8)


class Half(Four):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x).float()


class Resizes(Four):
    def middle(self, h: Tensor) -> Tensor:
        out = torch.empty(0)
        torch.add(h, 1, out=out)
        return out


@pytest.mark.parametrize(
    "kind",
    [InPlace, Branches, Lists, Catches, Arrays, Draws, Counts, CountsLate, Widths, Gradients, Inference, Half, Resizes],
)
def test_a_strange_forward_is_followed(kind: type[Four]) -> None:
    torch.manual_seed(0)
    case = Case(kind(), torch.randn(5, 6))
    assert min(case.prefix.kept) <= max(case.prefix.parts.values())
    assert all(torch.equal(full, reused) for full, reused in case.losses())


class Sparse(Four):
    def middle(self, h: Tensor) -> Tensor:
        return h.to_sparse().to_dense()


class Features(Four):
    """Leaves what it computes in the module; the loss reads that, not the output."""

    def middle(self, h: Tensor) -> Tensor:
        self.last = h
        return h


@pytest.mark.parametrize("kind", [Sparse, Features])
def test_what_cannot_be_followed_is_computed_in_full(kind: type[Four]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    batches = [torch.randn(5, 6) for _ in range(2)]
    groups = couple(trace(model, batches[0]))

    def forward(model: Four, batch: Tensor) -> Tensor:
        out = model(batch)
        return out if model.last is None else torch.cat([model.last, out], 1)

    task = Task(forward=forward, losses=energy, labels=False, name="energy")
    run = functools.partial(scan, model, groups, random_scores(groups), batches, task, n_folds=2)
    plain, told = run(memory=0), Mock()
    assert run(progress=told) == plain
    assert model.last is None or type(model.last) is Tensor


def test_a_forward_that_goes_another_way_is_told_and_counted() -> None:
    torch.manual_seed(0)
    model = Four().eval()

    def forward(model: Four, batch: Tensor) -> Tensor:
        # Asks for less where the last layer is whole and the third one is not: no recording knows of that.
        return model(batch if model.c.out_features == 10 else batch.flip(0).flip(0))

    task = Task(forward=forward, losses=energy, labels=False, name="energy")
    batches = [torch.randn(5, 6) for _ in range(3)]
    groups = couple(trace(model, batches[0]))
    run = functools.partial(scan, model, groups, random_scores(groups), batches, task, n_folds=1)
    assert run() == run(memory=0)

    case = Case(model, batches[0])
    late = max(case.counts, key=lambda c: case.prefix.parts[c])
    early = min(case.counts, key=lambda c: case.prefix.parts[c])
    # A cut of the first layer that claims to be one of the last: its operands differ, and it is refused.
    assert _reuse.evaluate(case.prefix, case.cut(early), TASK, late, where="") is None
    assert _reuse.evaluate(case.prefix, case.cut(late), TASK, late, where="") is not None


def test_other_random_numbers_are_not_drawn_because_of_reuse() -> None:
    torch.manual_seed(0)
    model, batches = Draws().eval(), [torch.randn(5, 6) for _ in range(2)]
    groups = couple(trace(model, batches[0]))
    found = []
    for memory in (0, 2**20):
        torch.manual_seed(1)
        found.append(
            scan(model, groups, random_scores(groups), batches, TASK, removed=(0.3, 0.6, 0.9), n_folds=1, memory=memory)
        )
    assert found[0] == found[1]


class Remembers(Four):
    """Another result at every call."""

    def middle(self, h: Tensor) -> Tensor:
        self.last = 1 if self.last is None else self.last + 1
        return h * self.last


@pytest.mark.parametrize(
    ("kind", "made_once"), [(Four, True), (Remembers, False), (Counts, False), (CountsLate, False)]
)
def test_cut_models_wait_for_their_next_chunk_unless_their_forward_changes_them(
    kind: type[Four], made_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_scan, "FIRST", 5)
    torch.manual_seed(0)
    model, batches = kind().eval(), [torch.randn(5, 6) for _ in range(6)]
    groups = couple(trace(model, batches[0]))
    made = Mock(side_effect=_surgery.apply)
    monkeypatch.setattr(_scan._surgery, "apply", made)
    curves, cuts = [], []
    for memory in (2**20, 0):
        made.reset_mock()
        run = functools.partial(scan, copy.deepcopy(model), groups, random_scores(groups), batches, TASK, n_folds=1)
        curves.append(run(removed=(0.25, 0.5, 0.75), memory=memory))
        cuts.append(made.call_count)
    assert curves[0] == curves[1]
    if made_once:
        assert cuts[0] < cuts[1] / 2


# What to keep


def recording_of(cells: list[tuple[int, int, int]], seconds: list[float]) -> _reuse.Recording:
    steps = tuple(_reuse.Step(function=None, args=(), out=None, aliases=False, seconds=s) for s in seconds)
    made = tuple(_reuse.Cell(born=b, last=e, n_bytes=n) for b, e, n in cells)
    return _reuse.Recording(steps=steps, cells=made, limit=len(steps))


def saved(recording: _reuse.Recording, uses: dict[int, int], chosen: tuple[int, ...]) -> float:
    """Another way: forward by forward."""
    total = 0.0
    for p, n in uses.items():
        start = max((q for q in chosen if q <= p), default=0)
        total += n * sum(step.seconds for step in recording.steps[:start])
    return total


def test_the_positions_that_are_kept_save_nearly_as_much_as_the_best_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(40):
        n = 8
        seconds = torch.rand(n, generator=generator).tolist()
        sizes = torch.randint(1, 9, (n,), generator=generator).tolist()
        cells = [(p, min(p + 1 + p % 3, n), size) for p, size in enumerate(sizes)]
        recording = recording_of(cells, seconds)
        uses = dict.fromkeys(range(0, n, 2), 9)
        for memory in (0, 5, 12, 1000):
            chosen = _reuse.choose(recording, uses, memory)
            held = set().union(*(recording.versions(p) for p in chosen))
            assert sum(recording.cells[c].n_bytes for c, _ in held) <= memory
            best = 0.0
            for k in range(5):
                for other in itertools.combinations(sorted(uses), k):
                    kept = set().union(*(recording.versions(p) for p in other))
                    if sum(recording.cells[c].n_bytes for c, _ in kept) <= memory:
                        best = max(best, saved(recording, uses, other))
            shares.append(saved(recording, uses, chosen) / best if best else 1.0)
            if memory == 1000:
                assert shares[-1] == pytest.approx(1.0)
    assert sum(shares) / len(shares) > 0.9


@pytest.mark.parametrize(
    ("text", "n"), [("2GiB", 2**31), ("500 MB", 5 * 10**8), ("1.5kib", 1536), (1000, 1000), ("7", 7), ("0", 0)]
)
def test_memory_is_given_as_people_write_it(text: str | int, n: int) -> None:
    assert _reuse.bytes_of(text) == n


@pytest.mark.parametrize("text", ["much", "2 GiBi", "", "1e", "-1", "nan"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no amount of memory"):
        _reuse.bytes_of(text)
