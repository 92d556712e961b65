"""One recording speaks for both modes where no answer about training changes what a forward does, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.nasty import NASTY
from helpers.nets import randomise
from secateur._replay import set_mode
from secateur._trace import _record, _same, trace
from secateur._training import changed_by_mode, training_flags_read

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Forward = Callable[["Asking", Tensor], Tensor]


class Asking(nn.Module):
    """Asks in the way of the function that it is given."""

    def __init__(self, asks: Forward) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.0)
        self.p, self.rate, self.checkpointing, self.deep = 0.0, 0.5, False, True
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        return self.asks(self, self.inner(x))


def attention_dropout(self: Asking, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=self.drop.p if self.training else 0.0)


def not_in_training(self: Asking, x: Tensor) -> Tensor:
    return x + (0.0 if not self.training else self.p)


def checkpointed(self: Asking, x: Tensor) -> Tensor:
    if self.checkpointing and self.training and x.requires_grad:
        return x * 2
    return x


def asked_first(self: Asking, x: Tensor) -> Tensor:
    if self.training and self.p > 0:
        return x * 2
    return x


def either(self: Asking, x: Tensor) -> Tensor:
    return x * 2 if self.training or self.deep else x


def no_module(self: Asking, x: Tensor) -> Tensor:
    return x if self.drop is None and self.training else x * 2


def dropped(self: Asking, x: Tensor) -> Tensor:
    return F.dropout(x, p=self.rate, training=self.training)


def dropped_by_position(self: Asking, x: Tensor) -> Tensor:
    return F.dropout(x, self.rate if self.training else 0.0, self.training)


SAME = (attention_dropout, not_in_training, checkpointed, asked_first, either, no_module, dropped, dropped_by_position)


def another_rate(self: Asking, x: Tensor) -> Tensor:
    return x * (self.rate if self.training else 0.0)


def branch(self: Asking, x: Tensor) -> Tensor:
    if self.training:
        return x * 2
    return x


def another_tensor(self: Asking, x: Tensor) -> Tensor:
    y = x * 2
    return F.dropout(y if self.training else x, 0.5, training=True)


def handed_on(self: Asking, x: Tensor) -> Tensor:
    return helper(x, self.training)


def helper(x: Tensor, training: bool) -> Tensor:
    return x * 2 if training else x


def kept_for_later(self: Asking, x: Tensor) -> Tensor:
    training = self.training
    return x * 2 if training else x


def by_name(self: Asking, x: Tensor) -> Tensor:
    return x * 2 if getattr(self, "training") else x  # noqa: B009


def called(self: Asking, x: Tensor) -> Tensor:
    return x * (float(self.p) if self.training else 0.0)


def shaped(self: Asking, x: Tensor) -> Tensor:
    return x * 2 if self.training and x.shape[0] > 2 else x


# some could be seen through with more effort: what is not certain is recorded twice
OTHER = (another_rate, branch, another_tensor, handed_on, kept_for_later, by_name, called, shaped)


def recordings(monkeypatch: pytest.MonkeyPatch, model: nn.Module, inputs: Any) -> list[str]:
    import secateur._trace as module

    modes: list[str] = []

    def counted(model: nn.Module, inputs: Any, mode: Any, example: int) -> Any:
        modes.append(mode)
        return _record(model, inputs, mode, example)

    monkeypatch.setattr(module, "_record", counted)
    trace(model, inputs)
    return modes


@pytest.mark.parametrize("asks", SAME, ids=lambda f: f.__name__)
def test_an_answer_that_changes_nothing_needs_no_second_recording(
    monkeypatch: pytest.MonkeyPatch, asks: Forward
) -> None:
    model = Asking(asks)
    assert recordings(monkeypatch, model, X) == ["eval"]
    assert _same(_record(model, X, "train", 0).run, _record(model, X, "eval", 0).run)


@pytest.mark.parametrize("asks", OTHER, ids=lambda f: f.__name__)
def test_an_answer_that_may_change_something_does(monkeypatch: pytest.MonkeyPatch, asks: Forward) -> None:
    assert recordings(monkeypatch, Asking(asks), X) == ["eval", "train"]


def test_integers_of_modules_are_not_compared_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two widths that happen to be equal stay two widths."""

    def widths(self: Asking, x: Tensor) -> Tensor:
        return x.view(-1, self.inner.in_features if self.training else self.inner.out_features)

    model = Asking(widths)
    assert recordings(monkeypatch, model, X) == ["eval", "train"]
    assert all(not run.comparisons for run in trace(model, X).runs)


def test_the_values_are_those_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Asking(attention_dropout)
    model.drop.p = 0.1
    assert recordings(monkeypatch, model, X) == ["eval", "train"]


def test_a_dropout_in_a_forward_that_may_be_written_again_is_recorded_in_both_modes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recordings are alike, but what is written from them drops out in training only."""

    def reshapes(self: Asking, x: Tensor) -> Tensor:
        return F.dropout(x.view(-1, 2, 2), self.rate, self.training).flatten(1)

    assert recordings(monkeypatch, Asking(reshapes), X) == ["eval", "train"]


def test_one_recording_for_both_modes_is_what_two_would_be() -> None:
    spoken = []
    for name, (kind, inputs) in NASTY.items():
        torch.manual_seed(0)
        model = randomise(kind())
        first = _record(model, inputs, "eval", 0)
        if first.for_both:
            second = _record(model, inputs, "train", 0)
            assert _same(second.run, first.run), name
            for path, program in first.frames.programs.items():
                assert not program.baked or program == second.frames.programs[path], name
            spoken.append(name)
    assert len(spoken) > 40


def test_a_train_method_that_only_sets_flags_changes_nothing() -> None:
    class Counts(nn.Linear):
        def train(self, mode: bool = True) -> Counts:
            self.cache.clear() if self.cache else None
            return super().train(mode)  # type: ignore[return-value]

        cache: dict[str, int]

    model = nn.Sequential(Counts(4, 4))
    model[0].cache = {}
    set_mode(model, "eval")
    assert not changed_by_mode(model)
    model[0].cache["here"] = 1
    set_mode(model, "eval")
    model[0].cache["here"] = 1
    assert changed_by_mode(model)


def test_the_flag_is_an_ordinary_attribute_again() -> None:
    model = Asking(branch).eval()
    with training_flags_read() as asked:
        model(X)
    assert asked.differs
    assert "training" not in vars(nn.Module)
    assert model.training is False
