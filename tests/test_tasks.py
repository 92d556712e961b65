"""Tasks against formulas written out, one example at a time; and the metrics."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import criteria, metrics, tasks
from secateur._couple import couple
from secateur._evaluate import evaluate
from secateur._score import score
from secateur._trace import trace
from secateur.errors import InputError, TaskShapeError, UnknownName
from secateur.schema.task import Task
from secateur.tasks import TASKS

Pair = tuple[Tensor, Tensor]


class Fixed(nn.Module):
    """Gives the same output whatever comes in; as a tuple or mapping if asked."""

    def __init__(self, out: Tensor, form: str = "tensor") -> None:
        super().__init__()
        self.out, self.form = out, form

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return {"tensor": self.out, "tuple": (self.out, 1), "mapping": {"loss": 0, "logits": self.out}}[self.form]


def of(task: Task, out: Tensor, batch: object) -> tuple[list[float], list[float]]:
    found = evaluate(Fixed(out), [batch], task)
    return found.losses.tolist(), [] if found.correct is None else found.correct.tolist()


@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping"])
@pytest.mark.parametrize("kind", ["tuple", "dict", "label"])
def test_classification_is_the_negative_log_probability_of_the_label(form: str, kind: str) -> None:
    logits, y = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    x = torch.randn(5, 7)
    batch = {"tuple": (x, y), "dict": {"x": x, "labels": y}, "label": {"x": x, "label": y}}[kind]
    found = evaluate(Fixed(logits, form), [batch], tasks.classification())
    expected = [-math.log(float(torch.softmax(logits[i], 0)[y[i]])) for i in range(5)]
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.correct is not None
    assert found.correct.tolist() == [float(logits[i].argmax() == y[i]) for i in range(5)]


def test_classification_takes_probabilities_as_labels() -> None:
    logits = torch.randn(4, 3)
    hard = torch.tensor([0, 1, 2, 1])
    assert of(tasks.classification(), logits, (logits, F.one_hot(hard, 3).float()))[0] == pytest.approx(
        of(tasks.classification(), logits, (logits, hard))[0], rel=1e-5
    )


@pytest.mark.parametrize(
    ("task", "out", "batch"),
    [
        (tasks.classification(), torch.randn(4, 3, 2), (torch.ones(4), torch.zeros(4, dtype=torch.long))),
        (tasks.classification(), torch.randn(4, 3), (torch.ones(4), torch.zeros(5, dtype=torch.long))),
        (tasks.classification(), torch.randn(4, 3), torch.ones(4)),
        (tasks.classification(), torch.randn(4, 3), {"x": torch.ones(4)}),
        (tasks.token_classification(), torch.randn(4, 3), (torch.ones(4), torch.zeros(4, dtype=torch.long))),
        (tasks.language_modeling(), torch.randn(4, 3), torch.zeros(4, 3, dtype=torch.long)),
        (tasks.regression(), torch.randn(4, 2), (torch.ones(4), torch.zeros(4, 3))),
        (tasks.multi_label(), torch.randn(4, 2), (torch.ones(4), torch.zeros(4, 3))),
        (tasks.segmentation(), torch.randn(4, 3, 5, 5), (torch.ones(4), torch.zeros(4, 6, 5, dtype=torch.long))),
        (tasks.from_mean(lambda o, b: o), torch.randn(4, 2), (torch.ones(4), torch.ones(4))),
        (tasks.match_output(Fixed(torch.randn(4, 3))), torch.randn(4, 2), torch.ones(4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(task: Task, out: Tensor, batch: object) -> None:
    with pytest.raises(TaskShapeError, match="got"):
        of(task, out, batch)


def test_language_modelling_judges_each_position_by_the_next_token() -> None:
    ids = torch.tensor([[1, 2, 0, 3], [3, 3, 2, 1]])
    logits = torch.randn(2, 4, 5)
    expected = [sum(-float(logits[n, t].log_softmax(-1)[ids[n, t + 1]]) for t in range(3)) / 3 for n in range(2)]
    for batch in (ids, (ids,), {"input_ids": ids}, {"input_ids": ids, "labels": ids}):
        assert of(tasks.language_modeling(), logits, batch)[0] == pytest.approx(expected, rel=1e-5)
    aligned = of(tasks.language_modeling(), logits[:, :3], (ids[:, :3], ids[:, 1:]))
    assert aligned[0] == pytest.approx(expected, rel=1e-5)


def test_language_modelling_weighs_sequences_by_their_tokens() -> None:
    ids = torch.tensor([[1, 2, 0, 3], [3, 3, 2, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    logits = torch.randn(2, 4, 5)
    found = evaluate(Fixed(logits), [{"input_ids": ids, "attention_mask": mask}], tasks.language_modeling())
    tokens = [(0, 0), (0, 1), (0, 2), (1, 0)]
    each = [-float(logits[n, t].log_softmax(-1)[ids[n, t + 1]]) for n, t in tokens]
    assert found.weights.tolist() == [3, 1]
    assert found.mean_loss == pytest.approx(sum(each) / 4, rel=1e-5), "the weighted mean is nats per token"


def test_an_example_without_counted_tokens_has_no_weight() -> None:
    labels = torch.tensor([[1, -100], [-100, -100]])
    found = evaluate(Fixed(torch.randn(2, 2, 3)), [(torch.ones(2), labels)], tasks.token_classification())
    assert found.weights.tolist() == [1, 0]
    assert found.losses[1] == 0


@pytest.mark.parametrize("classes_last", [True, False])
def test_the_losses_of_tokens_do_not_depend_on_how_the_logits_lie_in_memory(classes_last: bool) -> None:
    logits, labels = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    labels[0, 1] = labels[2] = -100
    given = logits if classes_last else logits.transpose(1, 2).contiguous().transpose(1, 2)
    task = tasks.token_classification()
    logp = logits.log_softmax(-1)
    counted = labels.ne(-100)
    each = -logp.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1) * counted
    torch.testing.assert_close(task.losses(given, (torch.ones(3), labels)), each.sum(1) / counted.sum(1).clamp(min=1))
    soft = -((logits / 2).softmax(-1) * logp).sum(-1) * counted
    assert task.tempered is not None
    torch.testing.assert_close(task.tempered(given, (torch.ones(3), labels)), soft.sum(1) / counted.sum(1).clamp(min=1))


def test_token_losses_have_the_derivatives_of_cross_entropy() -> None:
    """The first and the second, along a direction, with labels that do not count; the last token of a text has none."""
    torch.manual_seed(1)
    logits, along = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, 7).double()
    ids = torch.randint(0, 7, (3, 5))
    labels = ids.clone()
    labels[0, 1] = labels[2, 3:] = -100

    def derivatives(losses: Tensor) -> tuple[Tensor, ...]:
        (line,) = torch.autograd.grad((losses * torch.arange(1, 4)).sum(), logits, create_graph=True)
        return losses.detach(), line.detach(), *torch.autograd.grad(line, logits, along)

    found = derivatives(tasks.language_modeling().losses(logits, {"input_ids": ids, "labels": labels}))
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    torch.testing.assert_close(found, derivatives(each.sum(1) / labels[:, 1:].ne(-100).sum(1)))
    assert not found[1][:, -1].any()


def test_segmentation_averages_over_pixels() -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0, 0] = 255
    found = of(tasks.segmentation(ignore_index=255), logits, (torch.ones(2), labels))
    expected = F.cross_entropy(logits, labels, reduction="none", ignore_index=255).flatten(1).sum(1) / torch.tensor(
        [19.0, 20.0]
    )
    assert found[0] == pytest.approx(expected.tolist(), rel=1e-5)


def test_regression_is_the_negative_log_likelihood_of_a_normal() -> None:
    out, target = torch.randn(4, 2), torch.randn(4, 2)
    normal = torch.distributions.Normal(out, 0.5)
    expected = -(normal.log_prob(target) - normal.log_prob(out)).sum(1)
    losses, correct = of(tasks.regression(scale=0.5, tolerance=1.0), out, (out, target))
    assert losses == pytest.approx(expected.tolist(), rel=1e-4)
    assert correct == ((out - target).abs() <= 1).float().mean(1).tolist()
    assert of(tasks.regression(), out[:, :1], (out, target[:, 0]))[0] == pytest.approx(
        (0.5 * (out[:, 0] - target[:, 0]) ** 2).tolist(), rel=1e-5
    )


def test_multi_label_adds_the_labels_of_an_example() -> None:
    out, y = torch.randn(4, 3), torch.randint(0, 2, (4, 3))
    expected = -torch.where(y == 1, out.sigmoid().log(), (1 - out.sigmoid()).log()).sum(1)
    assert of(tasks.multi_label(), out, (out, y))[0] == pytest.approx(expected.tolist(), rel=1e-4)


def test_matching_is_a_divergence_and_zero_for_the_model_itself() -> None:
    teacher, student = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    task = tasks.match_output(Fixed(teacher))
    p = torch.distributions.Categorical(logits=teacher)
    q = torch.distributions.Categorical(logits=student)
    expected = torch.distributions.kl_divergence(p, q).mean(1)
    assert of(task, student, torch.ones(4))[0] == pytest.approx(expected.tolist(), rel=1e-4)
    losses, correct = of(task, teacher, (torch.ones(4), torch.zeros(4)))
    assert losses == pytest.approx([0] * 4, abs=1e-6)
    assert correct == [1] * 4
    squared = tasks.match_output(Fixed(teacher), distance="squared")
    assert of(squared, student, torch.ones(4))[0] == pytest.approx(
        (0.5 * (teacher - student).square().sum((1, 2))).tolist(), rel=1e-4
    )


def test_a_teacher_runs_in_eval_mode_and_is_left_as_it_was() -> None:
    teacher = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.9))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    losses = evaluate(teacher, [torch.randn(5, 3)], tasks.match_output(teacher)).losses
    assert losses.abs().max() < 1e-6
    assert teacher.training
    assert teacher[2].training
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_a_mean_loss_weighs_batches_by_their_size() -> None:
    model, x, y = nn.Linear(3, 2), torch.randn(7, 3), torch.arange(7) % 2
    task = tasks.from_mean(lambda out, batch: F.cross_entropy(out, batch[1]))
    found = evaluate(model, [(x[:5], y[:5]), (x[5:], y[5:])], task)
    assert found.mean_loss == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-5)
    assert not task.per_example


CURVED = {
    "classification": (tasks.classification(), torch.randn(1, 4), (torch.ones(1), torch.tensor([2]))),
    "tokens": (
        tasks.token_classification(),
        torch.randn(1, 3, 4),
        (torch.ones(1), torch.tensor([[2, -100, 0]])),
    ),
    "regression": (tasks.regression(scale=0.7), torch.randn(1, 3), (torch.ones(1), torch.randn(1, 3))),
    "multi_label": (tasks.multi_label(), torch.randn(1, 3), (torch.ones(1), torch.tensor([[1, 0, 1]]))),
    "match kl": (tasks.match_output(Fixed(torch.randn(1, 2, 4))), torch.randn(1, 2, 4), torch.ones(1)),
    "match squared": (
        tasks.match_output(Fixed(torch.randn(1, 3)), distance="squared"),
        torch.randn(1, 3),
        torch.ones(1),
    ),
}


@pytest.mark.parametrize("name", CURVED)
def test_curvature_draws_have_the_hessian_as_second_moment(name: str) -> None:
    task, out, batch = CURVED[name]
    out = out.double()
    if name == "match kl":  # the Hessian of KL at the output itself, whatever the teacher says
        task = tasks.match_output(Fixed(out))
    hessian = torch.autograd.functional.hessian(lambda o: task.losses(o, batch).sum(), out)
    hessian = hessian.reshape(out.numel(), out.numel())
    generator = torch.Generator().manual_seed(1)
    assert task.curvature is not None
    draws = []
    for _ in range(4000):
        leaf = out.clone().requires_grad_()
        (grad,) = torch.autograd.grad(task.curvature(leaf, batch, generator).sum(), leaf)
        draws.append(grad.flatten())
    g = torch.stack(draws)
    second = g.T @ g / len(g)
    assert torch.allclose(second, hessian, atol=0.12 * float(hessian.abs().max()) + 1e-3)
    assert g.mean(0).abs().max() < 5 * g.std(0).max() / math.sqrt(len(g))


TEMPERED = {
    "classification": (tasks.classification(), torch.randn(2, 4), torch.tensor([2, 0]), torch.ones(2, 1)),
    "tokens": (
        tasks.token_classification(),
        torch.randn(2, 3, 4),
        torch.tensor([[2, -100, 0], [1, 1, 3]]),
        torch.tensor([[0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]]).unsqueeze(-1),
    ),
    "multi_label": (tasks.multi_label(), torch.randn(2, 3), torch.tensor([[1, 0, 1], [0, 0, 0]]), torch.ones(2, 1)),
}


@pytest.mark.parametrize("name", TEMPERED)
def test_tempered_losses_pull_towards_the_prediction_at_half_the_logits(name: str) -> None:
    task, out, labels, share = TEMPERED[name]
    assert task.tempered is not None
    predicted = torch.sigmoid if name == "multi_label" else partial(torch.softmax, dim=-1)
    leaf = out.clone().requires_grad_()
    losses = task.tempered(leaf, (torch.ones(2), labels))
    (grad,) = torch.autograd.grad(losses.sum(), leaf)
    assert losses.shape == (2,)
    torch.testing.assert_close(grad, share * (predicted(out) - predicted(out / 2)))


def test_every_task_in_the_table_is_named_after_its_key() -> None:
    for name, factory in TASKS.items():
        assert factory().name == name


# Metrics


def test_the_mean_of_independent_examples_has_the_usual_error() -> None:
    d, w = torch.randn(50).double(), torch.ones(50).double()
    value, error = metrics.mean()(d, w, None)
    assert value == pytest.approx(float(d.mean()))
    assert error == pytest.approx(float(d.std() / math.sqrt(50)))


def test_the_error_of_a_mean_counts_keys_and_not_copies() -> None:
    d = torch.randn(30).double()
    keys = [i for i in range(30) for _ in range(10)]
    copies = d.repeat_interleave(10)
    value, error = metrics.mean()(copies, torch.ones(300).double(), keys)
    assert (value, error) == pytest.approx(metrics.mean()(d, torch.ones(30).double(), None))


def test_the_worst_group_is_the_one_that_suffers_most() -> None:
    d = torch.tensor([0.0] * 20 + [0.5, 0.7] * 10 + [9.0]).double()
    keys = ["a"] * 20 + ["b"] * 20 + ["tiny"]
    value, error = metrics.worst_group()(d, torch.ones(41).double(), keys)
    assert value == pytest.approx(0.6)
    assert error == pytest.approx(float(d[20:40].std() / math.sqrt(20)))
    with pytest.raises(InputError, match="groups"):
        metrics.worst_group()(d, torch.ones(41).double(), None)


def test_a_quantile_is_that_of_the_keys() -> None:
    d = torch.arange(1000).double()
    value, error = metrics.quantile(0.9)(d, torch.ones(1000).double(), None)
    assert value == pytest.approx(899, abs=1)
    assert error == pytest.approx(1000 * math.sqrt(0.09 / 1000), rel=0.2)
    weighted, _ = metrics.quantile(0.5)(torch.tensor([0.0, 1.0]).double(), torch.tensor([0.1, 0.9]).double(), None)
    assert weighted == 1.0
    with pytest.raises(InputError):
        metrics.quantile(1.0)


# Losses given as a dictionary


class Boxes(nn.Module):
    """A detector in small: classes and box corners of two anchors per image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.corners = nn.Linear(6, 8), nn.Linear(8, 2 * 3), nn.Linear(8, 2 * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.classes(h).unflatten(1, (2, 3)), self.corners(h).unflatten(1, (2, 4))


def box_batch(n: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(n, 6), torch.arange(2 * n).view(n, 2) % 3, torch.rand(n, 2, 4)


def box_losses(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    classes, corners = model(batch[0])
    return {
        "classes": F.cross_entropy(classes.transpose(1, 2), batch[1], reduction="none").mean(1),
        "boxes": F.smooth_l1_loss(corners, batch[2], reduction="none").sum((1, 2)),
    }


def one_by_one(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> list[dict[str, Tensor]]:
    parts = [tuple(t[i : i + 1] for t in batch) for i in range(len(batch[0]))]
    return [{k: v.mean() for k, v in box_losses(model, part).items()} for part in parts]  # type: ignore[arg-type]


def test_a_dictionary_of_losses_is_their_weighted_sum_per_image() -> None:
    model, batch = Boxes(), box_batch()
    expected = []
    for i in range(9):
        p = model(batch[0][i : i + 1])[0][0].softmax(-1).detach()
        off = (model(batch[0][i : i + 1])[1][0].detach() - batch[2][i]).abs()
        smooth = torch.where(off < 1, off.square() / 2, off - 0.5).sum()
        expected.append(float(-(p[0, batch[1][i, 0]].log() + p[1, batch[1][i, 1]].log()) / 2 + 0.1 * smooth))
    for forward in (box_losses, one_by_one):
        found = evaluate(model, [batch], tasks.from_losses(forward, factors={"boxes": 0.1}))
        assert found.losses.tolist() == pytest.approx(expected, rel=1e-5)
        assert found.correct is None


def test_a_detector_is_scored_from_its_dictionary_of_losses() -> None:
    model, batch = Boxes(), box_batch()
    groups = couple(trace(model, batch[0][:2]))
    scores = [
        score(model, groups, [batch], tasks.from_losses(forward), criterion=criteria.taylor())
        for forward in (box_losses, one_by_one)
    ]
    assert scores[0].errors
    weights = [model.classes.weight, model.corners.weight]
    total = sum(v.sum() for v in box_losses(model, batch).values()) / 9
    grads = torch.autograd.grad(total, weights)  # type: ignore[arg-type]
    expected = -sum((w * g).sum(0) for w, g in zip(weights, grads, strict=True)).detach()  # type: ignore[union-attr]
    for found in scores:
        assert found.values[0] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("forward", "text"),
    [
        (lambda m, b: {k: v.mean() for k, v in box_losses(m, b).items()}, "'classes'"),
        (lambda m, b: {**box_losses(m, b), "extra": torch.zeros(3)}, "'extra'"),
        (lambda m, b: m(b[0]), "no losses"),
        (lambda m, b: [{"a": torch.zeros(())}, {"b": torch.zeros(())}], "no losses"),
        (lambda m, b: {}, "no losses"),
    ],
)
def test_a_dictionary_of_the_wrong_form_is_refused_by_the_name_of_the_term(forward: object, text: str) -> None:
    with pytest.raises(TaskShapeError, match=text):
        evaluate(Boxes(), [box_batch()], tasks.from_losses(forward))  # type: ignore[arg-type]


def test_a_factor_of_no_loss_is_refused() -> None:
    with pytest.raises(UnknownName, match="boxes"):
        evaluate(Boxes(), [box_batch()], tasks.from_losses(box_losses, factors={"masks": 2.0}))
