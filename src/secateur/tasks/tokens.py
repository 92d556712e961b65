"""One label per token or pixel: language modelling, token classification, segmentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.errors import TaskShapeError
from secateur.schema.task import Task
from secateur.tasks._batch import first, flat, refuse, run, softened, softmax_curvature, split

# (out, batch) -> (logits [N, T, C], labels [N, T])
Read = Callable[[Any, Any], tuple[Tensor, Tensor]]


def language_modeling(*, ignore_index: int = -100) -> Task:
    """Next-token prediction: nats per token, averaged inside an example.

    losses[n] = mean over counted t of -log softmax(logits[n, t])[label[n, t]], weights[n] = counted tokens, so that
    the weighted mean is nats per token of the corpus (its exponential is the perplexity). `correct` is the share of
    tokens whose largest logit is right.

    Batches: a tensor of token ids [N, T] or a dict with `input_ids` (and `labels`, where they differ): position t is
    judged by the label at t + 1, as in transformers; where an `attention_mask` is 0 nothing is judged.
    Or a tuple (ids, targets), already aligned: position t is judged by targets[n, t].
    Output of the model: logits [N, T, V], a tuple that begins with them, or a mapping with `logits`.
    """

    def labels_of(batch: Any) -> tuple[Tensor, bool]:
        if isinstance(batch, Tensor):
            return batch, True
        if isinstance(batch, Mapping) and "input_ids" in batch:
            labels: Tensor = batch["labels"] if "labels" in batch else batch["input_ids"]
            if "labels" not in batch and "attention_mask" in batch:
                labels = labels.masked_fill(batch["attention_mask"] == 0, ignore_index)
            return labels, True
        if isinstance(batch, tuple | list) and len(batch) == 1:
            return batch[0], True
        return split(batch)[1], False

    def read(out: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits = first(out)
        labels, shift = labels_of(batch)
        if logits.ndim != 3 or labels.shape != logits.shape[:2]:
            raise refuse(
                "language_modeling",
                "logits [N, T, V] and labels [N, T]",
                logits,
                labels,
                "for models with the time first, write sc.Task(forward=...) that transposes",
            )
        # The last token predicts nothing that is known: not counting it is cheaper than copying all logits but its own.
        return logits, F.pad(labels[:, 1:], (0, 1), value=ignore_index) if shift else labels

    def weights(batch: Any) -> Tensor:
        labels, shift = labels_of(batch)
        return (labels[:, 1:] if shift else labels).ne(ignore_index).sum(-1)

    return _per_token("language_modeling", read, weights, ignore_index)


def token_classification(*, ignore_index: int = -100) -> Task:
    """One label per token, as in tagging: nats per token, averaged inside an example; see `language_modeling`.

    Batches: (inputs..., labels [N, T]) or a dict with `labels`; tokens labelled `ignore_index` do not count.
    Output of the model: logits [N, T, C].
    """

    def read(out: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits, labels = first(out), split(batch)[1]
        if logits.ndim != 3 or labels.shape != logits.shape[:2]:
            raise refuse(
                "token_classification",
                "logits [N, T, C] and labels [N, T]",
                logits,
                labels,
                "use classification() for one label per example",
            )
        return logits, labels

    return _per_token(
        "token_classification", read, lambda batch: flat(split(batch)[1]).ne(ignore_index).sum(-1), ignore_index
    )


def segmentation(*, ignore_index: int = -100) -> Task:
    """One label per pixel: nats per pixel, averaged inside an example; `correct` is the share of right pixels.

    Batches: (inputs..., labels [N, H, W]) or a dict with `labels`; pixels labelled `ignore_index` do not count.
    Output of the model: logits [N, C, H, W], a tuple that begins with them, or a mapping with `logits` or whose
    first entry they are (`out` in torchvision).
    """

    def read(out: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits, labels = first(out), split(batch)[1]
        if logits.ndim < 3 or labels.shape != logits.shape[:1] + logits.shape[2:]:
            raise refuse(
                "segmentation",
                "logits [N, C, H, W] and labels [N, H, W]",
                logits,
                labels,
                "resize the logits to the labels in sc.Task(forward=...)",
            )
        return logits.flatten(2).transpose(1, 2), flat(labels)

    return _per_token("segmentation", read, lambda batch: flat(split(batch)[1]).ne(ignore_index).sum(-1), ignore_index)


def _per_token(name: str, read: Read, weights: Callable[[Any], Tensor], ignore_index: int) -> Task:
    def mean(values: Tensor, labels: Tensor) -> Tensor:
        counted = labels.ne(ignore_index)
        # An example without any counted token has loss 0 and weight 0.
        return (values * counted).sum(-1) / counted.sum(-1).clamp(min=1)

    def losses(out: Any, batch: Any) -> Tensor:
        logits, labels = read(out, batch)
        return mean(_cross_entropy(logits, labels.long(), ignore_index=ignore_index), labels)

    def correct(out: Any, batch: Any) -> Tensor:
        logits, labels = read(out, batch)
        return mean((logits.argmax(-1) == labels).to(logits.dtype), labels)

    def curvature(out: Any, batch: Any, generator: torch.Generator) -> Tensor:
        logits, labels = read(out, batch)
        counted = labels.ne(ignore_index)
        # Independent signs: the second moment of the sum is the sum of the tokens' Hessians; the loss is their mean.
        each = softmax_curvature(logits, generator)
        return (each * counted).sum(-1) / counted.sum(-1).clamp(min=1).sqrt()

    def tempered(out: Any, batch: Any) -> Tensor:
        logits, labels = read(out, batch)
        return mean(_cross_entropy(logits, softened(logits)), labels)

    def check(batch: Any) -> Tensor:
        counts = weights(batch)
        if counts.ndim != 1:
            raise TaskShapeError(f"the labels of task {name!r} have too few axes", got=list(counts.shape))
        return counts

    return Task(
        forward=run,
        losses=losses,
        correct=correct,
        weights=check,
        curvature=curvature,
        tempered=tempered,
        name=name,
    )


def _cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Nats of every token, [N, T], from logits [N, T, C] and target [N, T] (labels) or [N, T, C] (probabilities)."""
    if logits.stride(-1) == 1:  # some times faster where the classes of a token lie side by side
        flat_logits, flat_target = logits.flatten(0, 1), target.flatten(0, 1)
        if target.ndim == logits.ndim:
            each = F.cross_entropy(flat_logits, flat_target, reduction="none")
        else:  # as F.cross_entropy, whose second derivative takes twice as long
            ignored = flat_target == ignore_index
            chosen = F.log_softmax(flat_logits, -1).gather(1, flat_target.masked_fill(ignored, 0).unsqueeze(1))
            each = -chosen.squeeze(1).masked_fill(ignored, 0.0)
        return each.view(logits.shape[:2])
    spread = target.transpose(1, 2) if target.ndim == logits.ndim else target
    return F.cross_entropy(logits.transpose(1, 2), spread, reduction="none", ignore_index=ignore_index)
