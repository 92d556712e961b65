"""What a model must be able to do, before and after a cut: one function per ability.

Each takes (model, dense, inputs), returns what it measured in words, and raises where the ability is missing. `dense`
is the model before the cut; checking the dense model itself is `check(dense, dense, inputs)`.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo_trial import run

CLOSE = 1e-4  # relative, where other kernels compute the same in single precision
NEW_TOKENS = 12
Check = Callable[[nn.Module, nn.Module, Any], str]


class Missing(Exception):
    """An ability that the model has not: in words."""


def seeded(model: Callable[..., Any], inputs: Any) -> list[Tensor]:
    """The output's tensors; a model that draws numbers draws the same ones every time."""
    from secateur._replay import leaves

    torch.manual_seed(0)
    return leaves(run(model, inputs))


def difference(expected: list[Tensor], got: list[Tensor]) -> float:
    """Relative to the largest output; infinity where shapes differ."""
    from secateur._cut import relative_error

    return relative_error(expected, got)


def same(expected: list[Tensor], got: list[Tensor], what: str, most: float) -> str:
    """The difference in words.

    Raises:
        Missing: it is more than `most`.
    """
    found = difference(expected, got)
    if not found <= most:
        raise Missing(f"{what} computes something else: relative error {found:.1e}")
    return f"{found:.0e}" if found else "equal"


def copied(model: nn.Module, dense: nn.Module, inputs: Any) -> str:
    """`copy.deepcopy`: same class, same bits, nothing shared."""
    expected = seeded(model, inputs)
    double = copy.deepcopy(model)
    if type(double) is not type(model):
        raise Missing(f"the copy is a {type(double).__name__}")
    told = same(expected, seeded(double, inputs), "the copy", 0.0)
    with torch.no_grad():
        for tensor in (*double.parameters(), *double.buffers()):
            tensor.zero_()
    same(expected, seeded(model, inputs), "the model, once its copy is zeroed,", 0.0)
    return told


def compiled(model: nn.Module, dense: nn.Module, inputs: Any) -> str:
    """`torch.compile` with the backend `aot_eager`: dynamo captures graphs, AOTAutograd traces them, they run."""
    from torch._dynamo.utils import counters

    expected = seeded(model, inputs)
    counters.clear()
    told = same(expected, seeded(torch.compile(model, backend="aot_eager"), inputs), "the compiled model", CLOSE)
    graphs = counters["stats"]["unique_graphs"]
    if not graphs:
        recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
        why = "; it skips recurrent layers unless torch._dynamo.config.allow_rnn is set" * recurrent
        raise Missing(f"dynamo captured no graph, the model ran as it is ({told}){why}")
    return f"{told}, {graphs} graph{'s' * (graphs > 1)}"


def trained(model: nn.Module, dense: nn.Module, inputs: Any) -> str:
    """One step of SGD in training mode: finite loss, finite gradients for the parameters that have some when dense."""
    after, before = _gradients(model, inputs), _gradients(dense, inputs)
    if after.keys() != before.keys():
        other = sorted(after.keys() ^ before.keys())
        raise Missing(f"gradients for other parameters than in the dense model: {', '.join(other[:5])}")
    return f"{len(after)} gradients"


def _gradients(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    from secateur._replay import leaves
    from secateur._units import call

    student = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)

    def loss() -> Tensor:
        torch.manual_seed(0)
        outputs = [t for t in leaves(call(student, copy.deepcopy(inputs))) if t.requires_grad]
        if not outputs:
            raise Missing("no output has a gradient")
        return torch.stack([t.abs().square().mean() for t in outputs if t.numel()]).sum()

    first = loss()
    first.backward()
    found = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    infinite = [n for n, g in found.items() if not bool(g.isfinite().all())]
    if not bool(first.isfinite()) or infinite:
        raise Missing(f"loss {float(first.detach()):.3g}, {len(infinite)} gradients are not finite")
    optimizer.step()
    if not bool((second := loss()).isfinite()):
        raise Missing(f"loss {float(second.detach()):.3g} after one step")
    return found


def exported(model: nn.Module, dense: nn.Module, inputs: Any) -> str:
    """ONNX with a free batch axis, run by onnxruntime at three batch sizes."""
    from secateur import exporters
    from secateur._export import export

    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        told = export(model, inputs, Path(folder) / "model.onnx", exporter=exporters.onnx())
    return f"{told['error']:.0e}, batch {', '.join(str(n) for n in told['batches'])}"


def generated(model: nn.Module, dense: nn.Module, inputs: Any) -> str:
    """`generate()` with a cache gives the tokens and logits that it gives without; empty for what does not generate."""
    if not (isinstance(inputs, Mapping) and "input_ids" in inputs and _can_generate(model)):
        return ""
    outputs = []
    for cache in (False, True):
        torch.manual_seed(0)
        outputs.append(
            model.generate(  # type: ignore[operator]
                input_ids=inputs["input_ids"],
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                use_cache=cache,
                pad_token_id=0,
                decoder_start_token_id=0,  # read by encoder-decoders only
                output_logits=True,
                return_dict_in_generate=True,
            )
        )
    plain, cached = outputs
    told = same(list(plain.logits), list(cached.logits), "generate() with a cache", CLOSE)
    if not torch.equal(plain.sequences, cached.sequences):
        raise Missing("generate() with a cache writes other tokens")
    return f"{told}, {NEW_TOKENS} tokens"


def _can_generate(model: nn.Module) -> bool:
    from transformers import GenerationMixin

    return isinstance(model, GenerationMixin) and bool(model.can_generate())


def leave(folder: Path, model: nn.Module, receipt: Any, inputs: Any) -> None:
    """Save a model for another process, with inputs and what it makes of them."""
    from secateur._export import save

    save(model, folder / "saved", receipt=receipt)
    torch.save({"inputs": inputs, "outputs": seeded(model, inputs)}, folder / "expected.pt")


def returned(folder: Path, fresh: nn.Module) -> str:
    """The saved model, loaded into a fresh dense one, computes what it computed before."""
    from secateur._export import load

    # the file is our own, written a moment ago by `leave`
    left = torch.load(folder / "expected.pt", weights_only=False)
    return same(
        left["outputs"], seeded(load(folder / "saved", model=fresh).eval(), left["inputs"]), "the loaded model", 0.0
    )


CHECKS: tuple[tuple[str, Check], ...] = (
    ("deepcopy", copied),
    ("train step", trained),
    ("compile", compiled),
    ("onnx", exported),
    ("generate", generated),
)
