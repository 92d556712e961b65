"""Torch-Pruning (Fang et al. 2023, arXiv 2301.12900) on one model, at the best honest settings that are known for it.

The last layers are left alone, heads are given for attention, parameters outside of layers are given with their widest
axis, and integers of attention modules are put right afterwards, as its own recipes do. Of three settings the first
that runs counts: head sizes pruned; numbers of heads pruned; attention left alone. Whether its result is exact is not
checked: only that the model runs, gives outputs of the same shapes, and has lost parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo_models import Entry
from zoo_trial import UNIFORM_RATIO, Clock, Trial, count, first_use, randomise, run, said

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
_HEAD_SIZE = ("head_dim", "attention_head_size", "key_value_proj_dim", "dim_head", "head_size", "d_head")
_WIDTH = ("all_head_size", "inner_dim", "embed_dim", "attn_dim", "hidden_size", "dim", "split_size", "out_dim")
_PROJECTIONS = (
    "q",
    "k",
    "v",
    "qkv",
    "query",
    "key",
    "value",
    "q_proj",
    "k_proj",
    "v_proj",
    "q_lin",
    "k_lin",
    "v_lin",
    "kv",
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
    _prune(*first_use(), None)
    messages: list[str] = []
    for setting in ({"prune_head_dims": True}, {"prune_num_heads": True, "prune_head_dims": False}, None):
        if setting is not None and messages and not _attentions(model):
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


def _prune(model: nn.Module, inputs: Any, setting: Mapping[str, bool] | None) -> tuple[nn.Module, dict[str, float]]:
    import torch_pruning as tp

    heads: dict[nn.Module, int] = {}
    ignored = _last_layers(model, inputs)
    for module, _, number, projections in _attentions(model):
        for projection in projections:
            if setting is None:
                ignored.append(projection)
            else:
                heads[projection] = number
        if setting is None and isinstance(module, nn.MultiheadAttention):
            ignored.append(module)
    before = {id(m): (n, [p.out_features for p in ps]) for m, _, n, ps in _attentions(model)}
    clock = Clock({})
    pruner = tp.pruner.BasePruner(
        model,
        dict(inputs) if isinstance(inputs, Mapping) else inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=UNIFORM_RATIO,
        ignored_layers=ignored,
        num_heads=heads,
        unwrapped_parameters=list(_unwrapped(model)),
        **(setting or {}),
    )
    clock.lap("record")
    pruner.step()
    for module, name, number, projections in _attentions(model):
        if projections and id(module) in before:
            _put_right(module, name, before[id(module)], projections, pruner.num_heads.get(projections[0], number))
    clock.lap("cut")
    return model, clock.seconds


def _attentions(model: nn.Module) -> list[tuple[nn.Module, str, int, list[nn.Linear]]]:
    """Modules with a number of heads, its name, and their linear projections to queries, keys and values."""
    found = []
    for module in model.modules():
        for name in _HEADS:
            number = vars(module).get(name)
            if type(number) is int and number > 1:
                linear = [
                    child
                    for label, child in module.named_children()
                    if label in _PROJECTIONS and isinstance(child, nn.Linear) and child.out_features % number == 0
                ]
                if linear or isinstance(module, nn.MultiheadAttention):
                    found.append((module, name, number, linear))
                break
    return found


def _put_right(
    module: nn.Module, name: str, before: tuple[int, list[int]], projections: list[nn.Linear], heads: int
) -> None:
    """The integers that an attention module keeps about its projections."""
    number, widths = before
    for old, projection in zip(widths, projections, strict=True):
        parts = 3 if old % 3 == 0 and len(projections) == 1 else 1
        size, width = old // parts // number, old // parts
        for attribute, value in list(vars(module).items()):
            if attribute in _HEAD_SIZE and value == size:
                setattr(module, attribute, projection.out_features // parts // heads)
            elif attribute in _WIDTH and value == width:
                setattr(module, attribute, projection.out_features // parts)
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


def _unwrapped(model: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Parameters of modules that are no layers of torch.nn, with the axis that is most likely of features."""
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn") or isinstance(module, _LAYERS):
            continue
        for parameter in module.parameters(recurse=False):
            wide = [d for d, n in enumerate(parameter.shape) if n > 1]
            if wide:
                yield parameter, wide[-1]


def _tensors(item: Any) -> list[Tensor]:
    if isinstance(item, Tensor):
        return [item]
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else ()
    return [t for part in parts for t in _tensors(part)]
