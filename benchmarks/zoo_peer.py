"""Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) on one model, at the best honest settings that are known for it.

The last layers are left alone, heads are given for attention, parameters outside of layers are given with their axis of
features, and integers of attention modules are put right afterwards, as its own recipes do. The ratio is a half, which
keeps most widths divisible by numbers of heads. Of several settings the first that runs counts: head sizes pruned;
numbers of heads pruned; without any of these hints; attention modules left alone as they are, which freezes all that is
as wide as they are. Whether its result is exact is not checked: only that the model runs, gives outputs of the same
shapes, and has lost parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo_models import Entry
from zoo_trial import Clock, Trial, count, first_use, randomise, run, said

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
_HEAD_SIZE = ("head_dim", "attention_head_size", "key_value_proj_dim", "dim_head", "head_size", "d_head")
_WIDTH = ("all_head_size", "inner_dim", "embed_dim", "attn_dim", "hidden_size", "dim", "split_size", "out_dim")
_PROJECTIONS = frozenset(
    "q k v qkv kv qk query key value q_proj k_proj v_proj q_lin k_lin v_lin to_q to_k to_v to_kv to_qkv wq wk wv Wqkv "
    "qkv_proj kv_proj in_proj query_key_value query_proj key_proj value_proj linear_q linear_k linear_v q_a_proj "
    "q_b_proj kv_b_proj in_proj_qkv attn_qkv query_key_value_proj".split()
)
RATIO = 0.5  # of every layer: where widths are powers of two, a half is a whole number of heads as well


@dataclass(frozen=True, slots=True)
class _Setting:
    """What the pruner is told.

    heads: options that go with the numbers of heads, None = those are not given.  parameters: those outside of layers,
    with their axes.  alone: modules of attention are left alone.
    """

    heads: Mapping[str, Any] | None = None
    parameters: bool = False
    alone: bool = False


_SETTINGS = (
    _Setting({"prune_head_dims": True}, parameters=True),
    _Setting({"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}, parameters=True),
    _Setting(),
    _Setting(alone=True),
)


def peer(entry: Entry, seed: int) -> Trial:
    """Build its dependency graph and prune; the seconds are those of the setting that worked."""
    torch.manual_seed(seed)
    try:
        model = entry.build().eval()
        inputs = entry.inputs()
        randomise(model, seed)
        dense = run(model, inputs)
    except Exception as error:  # noqa: BLE001  whatever the library raises: the model does not run here
        return Trial(outcome="unbuilt", message=said(error))
    trial = Trial(outcome="error", params=count(model))
    _prune(*first_use(), _Setting())
    messages: list[str] = []
    for setting in _SETTINGS:
        if messages and not _attentions(model) and (setting.heads is not None or setting.alone):
            continue
        try:
            small, seconds = _prune(copy.deepcopy(model), inputs, setting)
            out = run(small, inputs)
            if [tuple(t.shape) for t in _tensors(out)] != [tuple(t.shape) for t in _tensors(dense)]:
                raise ValueError("outputs of other shapes")
        except Exception as error:  # noqa: BLE001  what happened to the peer is the result
            messages.append(said(error)[:300])
            continue
        trial.removed = 1 - count(small) / max(trial.params, 1)
        trial.outcome = "ok" if trial.removed > 0 else "frozen"
        trial.seconds = seconds
        trial.message = "" if trial.removed > 0 else "nothing was removed"
        return trial
    trial.message = " | ".join(messages)
    return trial


def _prune(model: nn.Module, inputs: Any, setting: _Setting) -> tuple[nn.Module, dict[str, float]]:
    import torch_pruning as tp

    attentions = _attentions(model)
    heads = {p: number for _, _, number, ps in attentions for p in ps if setting.heads is not None}
    before = {id(m): (n, [_width(p) for p in ps]) for m, _, n, ps in attentions}
    ignored: list[nn.Module | nn.Parameter] = [*_last_layers(model, inputs)]
    ignored += [m for m, _, _, _ in attentions if setting.alone]
    options = dict(setting.heads or {})
    if setting.parameters:
        options["unwrapped_parameters"], other = _unwrapped(model)
        ignored += other
    clock = Clock({})
    pruner = tp.pruner.BasePruner(
        model,
        dict(inputs) if isinstance(inputs, Mapping) else inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=ignored,
        num_heads=heads,
        # dictionaries of its own: the default ones are shared by all pruners of a process
        in_channel_groups={},
        out_channel_groups={},
        **options,
    )
    clock.lap("record")
    pruner.step()
    for module, name, number, projections in attentions:
        if projections and name:
            _put_right(module, name, before[id(module)], projections, pruner.num_heads.get(projections[0], number))
    clock.lap("cut")
    return model, clock.seconds


def _attentions(model: nn.Module) -> list[tuple[nn.Module, str, int, list[nn.Module]]]:
    """Modules with a number of heads, its name, and their projections to queries, keys and values.

    And those that say by the name of their class that they attend: "", 1 and no projections.
    """
    found: list[tuple[nn.Module, str, int, list[nn.Module]]] = []
    for module in model.modules():
        numbers = [(n, vars(module)[n]) for n in _HEADS if type(vars(module).get(n)) is int]
        if numbers:
            name, number = numbers[0]
            projections = [
                child
                for label, child in module.named_children()
                if label in _PROJECTIONS and _width(child) and _width(child) % number == 0
            ]
            if projections or isinstance(module, nn.MultiheadAttention) or "att" in type(module).__name__.lower():
                found.append((module, name, number, projections if number > 1 else []))
        elif "attn" in type(module).__name__.lower() or "attention" in type(module).__name__.lower():
            found.append((module, "", 1, []))
    return found


def _put_right(
    module: nn.Module, name: str, before: tuple[int, list[int]], projections: list[nn.Module], heads: int
) -> None:
    """The integers that an attention module keeps about its projections."""
    number, widths = before
    for old, projection in zip(widths, projections, strict=True):
        parts = 3 if old % 3 == 0 and len(projections) == 1 else 1
        size, width = old // parts // number, old // parts
        for attribute, value in list(vars(module).items()):
            if attribute in _HEAD_SIZE and value == size:
                setattr(module, attribute, _width(projection) // parts // heads)
            elif attribute in _WIDTH and value == width:
                setattr(module, attribute, _width(projection) // parts)
    setattr(module, name, heads)


def _last_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """Layers whose result is an output of the model; where none is, those as wide as an output, or the last one."""
    made: dict[int, nn.Module] = {}
    keep: list[Tensor] = []

    def note(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            keep.append(out)
            made[id(out)] = module

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    out = run(model, inputs)
    for handle in handles:
        handle.remove()
    found = [made[id(t)] for t in _tensors(out) if id(t) in made]
    if not found:  # enlarged afterwards, say
        widths = {t.shape[1] for t in _tensors(out) if t.dim() > 1}
        found = [m for m in layers if vars(m).get("out_features", vars(m).get("out_channels")) in widths]
    return found or list(layers[-1:])


# known to the peer also where a library has a subclass of its own (ConvNeXt's norm, timm's norm with activation)
_LAYERS = (
    *(nn.Linear, nn.Embedding, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm),
    *(nn.modules.instancenorm._InstanceNorm, nn.PReLU, nn.MultiheadAttention, nn.LSTM),
)


def _unwrapped(model: nn.Module) -> tuple[list[tuple[nn.Parameter, int]], list[nn.Parameter]]:
    """Parameters of modules that are no layers of torch.nn: with an axis of features, and without.

    That axis is the last one that is as long as some layer is wide. Without are a temperature per head, say, or a table
    of positions.
    """
    widths = {_width(m) for m in model.modules()} - {0}
    wide: list[tuple[nn.Parameter, int]] = []
    other: list[nn.Parameter] = []
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn") or isinstance(module, _LAYERS):
            continue
        for parameter in module.parameters(recurse=False):
            axes = [d for d, n in enumerate(parameter.shape) if n > 1 and n in widths]
            if axes:
                wide.append((parameter, axes[-1]))
            else:
                other.append(parameter)
    return wide, other


def _width(layer: nn.Module) -> int:
    """Features that a linear layer, a convolution or an embedding makes; 0 of anything else."""
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.modules.conv._ConvNd):
        return layer.out_channels
    return layer.embedding_dim if isinstance(layer, nn.Embedding) else 0


def _tensors(item: Any) -> list[Tensor]:
    if isinstance(item, Tensor):
        return [item]
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else ()
    return [t for part in parts for t in _tensors(part)]
