"""cut: a physically smaller copy of the model, verified against the masked oracle before it is handed out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur._kernels import full_precision
from secateur._replay import (
    Masked,
    Plain,
    Session,
    Watcher,
    leaves,
    map_tensors,
    masked_output,
    plain_output,
    uncollected,
)
from secateur._surgery import apply, check_shapes, compose, receipt_for
from secateur.errors import CutError, CutMismatch, InputError, NothingToCut
from secateur.schema.groups import Groups
from secateur.schema.plan import Plan
from secateur.schema.receipt import Receipt, Verification

# above this many parameters a check in double precision would need more memory than it is worth
_DOUBLE_LIMIT = 50_000_000
_EXACT, _SINGLE, _HALF = 1e-9, 1e-4, 3e-2
# operations on which a silenced unit leaves nothing behind, so that both models can be compared by a norm
_COMPARED = (
    "linear",
    "matmul",
    "einsum",
    "aten.convolution",
    "aten.native_batch_norm",
    "aten.cudnn_batch_norm",
    "aten.addmm",
    "aten.mm",
    "lstm",
    "gru",
)


def cut(
    model: nn.Module,
    groups: Groups,
    plan: Plan,
    *,
    example_inputs: Any = None,
    receipt: Receipt | None = None,
    verify: bool = True,
) -> tuple[nn.Module, Receipt]:
    """Remove the units that a plan does not keep.

    Args:
        model: only read; the result is a copy of the same class with smaller parameters.
        groups: of this model.  plan: which units stay.
        example_inputs: inputs for the verification; None = those that the model was traced with.
        receipt: of the cuts that made this model out of the dense one; the new receipt then refers to the dense model.
        verify: compare the cut model with the masked oracle: same shapes, equal outputs in evaluation and training mode
            and at another batch size where the model accepts it; relative error below 1e-9 in double precision,
            below 1e-4 where the model computes in single precision by itself.

    Returns:
        The smaller model and its receipt.

    Raises:
        NothingToCut: everything is frozen.
        CutMismatch: the cut model computes something else; nothing of the user's has changed.
        ReceiptMismatch: groups or receipt belong to another model.
    """
    if not groups.groups:
        reasons = sorted({f.reason for f in groups.frozen})
        raise NothingToCut(
            "nothing of this model can be removed", got="; ".join(reasons[:5]), todo="run `secateur trace` to see why"
        )
    if receipt is not None:
        _check_origin(model, receipt)
    with uncollected():
        step = receipt_for(model, groups, plan.kept)
        small = apply(model, step)
    if verify:
        if any(p.is_meta for p in model.parameters()):
            raise InputError(
                "a model on the meta device has no weights to verify a cut with",
                todo="pass verify=False, or cut the model with its weights",
            )
        examples = _examples(groups, example_inputs)
        step = dataclasses.replace(step, verification=verify_cut(model, small, groups, plan.kept, examples))
    return small, step if receipt is None else compose(receipt, step)


def _check_origin(model: nn.Module, receipt: Receipt) -> None:
    after = {
        name: tuple(
            n if receipt.kept.get(name) is None or (k := receipt.kept[name][a]) is None else len(k)
            for a, n in enumerate(shape)
        )
        for name, shape in receipt.shapes.items()
    }
    check_shapes(model, dataclasses.replace(receipt, shapes={**after, **_tied(model, after, receipt)}))


def _tied(model: nn.Module, after: dict[str, tuple[int, ...]], receipt: Receipt) -> dict[str, tuple[int, ...]]:
    """Shapes of parameters that share a tensor with one that the receipt lists under its first name."""
    first: dict[int, str] = {}
    shapes = {}
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        shapes[name] = after.get(first.setdefault(id(tensor), name), tuple(tensor.shape))
    return shapes


def _examples(groups: Groups, example_inputs: Any) -> Sequence[Any]:
    if example_inputs is None:
        examples = groups.examples
    else:
        examples = tuple(example_inputs) if isinstance(example_inputs, list) else (example_inputs,)
    if not examples:
        raise InputError(
            "a cut is verified on example inputs, and these groups were read from a file",
            todo="pass example_inputs=, as for sc.trace, or verify=False",
        )
    return tuple(examples)


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    error: float
    tolerance: float


def verify_cut(
    model: nn.Module, small: nn.Module, groups: Groups, kept: Sequence[Sequence[int]], examples: Sequence[Any]
) -> Verification:
    """Compare a cut model with the masked oracle.

    Raises:
        CutMismatch: naming the first operation where they part.
    """
    with full_precision(next((p.device for p in model.parameters()), None)):
        return _verified(model, small, groups, kept, examples)


def _verified(
    model: nn.Module, small: nn.Module, groups: Groups, kept: Sequence[Sequence[int]], examples: Sequence[Any]
) -> Verification:
    wide, narrow, to_wide = _precision(model, small, examples[0])
    dense = copy.deepcopy(wide)
    checks: list[_Check] = []
    distance = 0.0
    for run, outline in enumerate(groups.outlines):
        if outline.example >= len(examples):
            continue
        name: str = outline.mode
        inputs = to_wide(examples[outline.example])
        if run == 0:
            inputs, name, output = _one_more_example(dense, inputs)
        try:
            check, got = _compare(wide, narrow, groups, kept, inputs, run, name)
        except CutMismatch as error:
            if not groups.rewrites or name == outline.mode:
                raise
            # passes where only the number of examples is to blame
            _compare(wide, narrow, groups, kept, to_wide(examples[outline.example]), run, outline.mode)
            raise _only_as_recorded(groups) from error
        checks.append(check)
        if groups.rewrites and outline.mode == "eval" and not _has_training(groups, outline.example):
            checks.append(_compare_training(narrow, inputs, got, check.tolerance))
        if run == 0:
            distance = relative_error(leaves(output), leaves(got))
    return Verification(
        checks=tuple(c.name for c in checks),
        error=max(c.error for c in checks),
        tolerance=max(c.tolerance for c in checks),
        distance=distance,
    )


def _only_as_recorded(groups: Groups) -> CutError:
    return CutError(
        "a forward was written again from its recording, but it does more or less for more examples; "
        "your model is untouched",
        where=", ".join(rewrite.module for rewrite in groups.rewrites),
        todo="a loop over examples cannot be written again: leave the module alone with freeze=, or baked='freeze'",
    )


def _has_training(groups: Groups, example: int) -> bool:
    return any(o.mode == "train" and o.example == example for o in groups.outlines)


def _compare_training(narrow: nn.Module, inputs: Any, expected: Any, tolerance: float) -> _Check:
    """Training mode was recorded to do what evaluation does; a forward written again has one program for each."""
    got = _seeded(lambda: plain_output(narrow, copy.deepcopy(inputs), "train"))
    difference = relative_error(leaves(expected), leaves(got))
    if not difference <= tolerance:
        raise CutMismatch(
            "a forward that was written again computes something else in training mode; your model is untouched",
            expected=f"relative error at most {tolerance:.0e}",
            got=f"{difference:.3e}",
            error=difference,
            todo="please report it with the model; baked='freeze' leaves its forward alone",
        )
    return _Check("train, as in evaluation", difference, tolerance)


def _one_more_example(dense: nn.Module, inputs: Any) -> tuple[Any, str, Any]:
    """The inputs with one more example where the model accepts that, since a baked batch size does not show otherwise.

    Returns:
        The inputs, what to call the check, and the dense model's output.
    """
    larger = _grown(inputs)
    if larger is not None:
        try:
            return larger, "eval, one example more", _seeded(lambda: plain_output(dense, copy.deepcopy(larger), "eval"))
        except Exception:  # noqa: BLE001 - whatever it raises, the dense model itself has a fixed batch size
            larger = None
    return inputs, "eval", _seeded(lambda: plain_output(dense, copy.deepcopy(inputs), "eval"))


def _grown(inputs: Any) -> Any | None:
    """Every tensor with its first example once more, if all agree on how many there are."""
    sizes = {t.shape[0] for t in leaves(inputs) if t.dim() > 1}
    if len(sizes) != 1:
        return None
    (size,) = sizes

    def grow(tensor: Tensor) -> Tensor:
        fits = tensor.dim() > 1 or (tensor.dim() == 1 and tensor.shape[0] == size and size > 1)
        return torch.cat([tensor, tensor[:1]]) if fits else tensor

    return map_tensors(inputs, grow)


def _precision(model: nn.Module, small: nn.Module, example: Any) -> tuple[nn.Module, nn.Module, Callable[[Any], Any]]:
    """Both models in double precision where that is affordable and the model allows it, and how to convert inputs."""
    native = (model, copy.deepcopy(small), lambda item: item)
    if sum(p.numel() for p in model.parameters()) > _DOUBLE_LIMIT:
        return native

    def widen(item: Any) -> Any:
        return map_tensors(item, lambda t: t.double() if t.is_floating_point() else t)

    wide = copy.deepcopy(model).double()
    try:
        _seeded(lambda: plain_output(copy.deepcopy(wide), widen(copy.deepcopy(example)), "eval"))
    except Exception:  # noqa: BLE001 - whatever it raises, this model insists on its own precision
        return native
    return wide, copy.deepcopy(small).double(), widen


def _seeded(run: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return run()


def _compare(
    wide: nn.Module, narrow: nn.Module, groups: Groups, kept: Sequence[Sequence[int]], inputs: Any, run: int, name: str
) -> tuple[_Check, Any]:
    mode = groups.outlines[run].mode
    expected, low = _seeded(lambda: masked_output(wide, groups, kept, copy.deepcopy(inputs), run=run))
    try:
        got = _seeded(lambda: plain_output(narrow, copy.deepcopy(inputs), mode))
    except Exception as error:
        raise CutMismatch(
            "the cut model does not run; your model is untouched",
            where=name,
            got=f"{type(error).__name__}: {error}",
            todo="please report it with the model; freeze= keeps the group that breaks",
        ) from error
    dtype = next((p.dtype for p in narrow.parameters() if p.is_floating_point()), torch.float32)
    tolerance = _HALF if dtype in (torch.float16, torch.bfloat16) else _SINGLE if low else _EXACT
    difference = relative_error(leaves(expected), leaves(got))
    if not difference <= tolerance:
        raise CutMismatch(
            "the cut model computes something else than the masked model; your model is untouched",
            where=name,
            expected=f"relative error at most {tolerance:.0e}",
            got=f"{difference:.3e}",
            node=_first_difference(wide, narrow, groups, kept, inputs, run),
            error=difference,
            todo="an op rule is wrong: please report it with the model; freeze= keeps the group that breaks",
        )
    return _Check(name, difference, tolerance), got


def relative_error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Largest |expected - got| / largest |expected|, over all outputs; infinity where shapes or NaNs differ."""
    if len(expected) != len(got) or any(a.shape != b.shape for a, b in zip(expected, got, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if not a.numel():
            continue
        if not (a.is_floating_point() or a.is_complex()):
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        same = (a == b) | (a.isnan() & b.isnan())
        if bool(same.all()):
            continue
        finite = a[~same]
        gap = float((finite - b[~same]).abs().max())
        scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 0.0
        if gap != gap or gap == float("inf"):
            return float("inf")
        worst = max(worst, gap / scale if scale > 0 else float("inf"))
    return worst


class _Norms:
    """A watcher that notes the norm of every result that a silenced unit leaves unchanged."""

    def __init__(self, inner: Plain) -> None:
        self.inner, self.session = inner, inner.session
        self.norms: list[tuple[str, float]] = []

    def sizes(self, tensor: Tensor) -> torch.Size:
        """As the inner watcher."""
        return self.inner.sizes(tensor)

    def operation(self, op: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the inner watcher, noting the norm."""
        out = self.inner.operation(op, function, args, kwargs)
        if op.startswith(_COMPARED):
            first = leaves(out)[0]
            self.norms.append((op, float(first.double().norm())))
        return out

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Nothing to note."""


def _first_difference(
    wide: nn.Module, narrow: nn.Module, groups: Groups, kept: Sequence[Sequence[int]], inputs: Any, run: int
) -> str | None:
    """The first contraction or norm whose result differs between oracle and cut model."""
    watchers: list[_Norms] = []

    def watch(oracle: Masked) -> Watcher:
        watchers.append(_Norms(oracle))
        return watchers[-1]

    mine = _Norms(Plain(Session()))
    _seeded(lambda: masked_output(wide, groups, kept, copy.deepcopy(inputs), run=run, watcher=watch))
    _seeded(lambda: plain_output(narrow, copy.deepcopy(inputs), groups.outlines[run].mode, mine))
    for number, ((op, a), (_, b)) in enumerate(zip(watchers[0].norms, mine.norms, strict=False)):
        if not abs(a - b) <= 1e-6 * max(abs(a), 1e-30):
            return f"{op}, number {number + 1} of its kind in the forward"
    return None
