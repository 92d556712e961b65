"""What torch.nn modules write down about their parameters, and the classes that can hold uneven sizes.

After a cut, the integers that a module keeps beside its tensors (in_features, num_features, ...) must tell the truth:
`refresh` derives them again from the tensors. Integers that a forward reads and no shape determines are set by the
receipt (`write_attribute`).
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateur.errors import CutError
from secateur.ops.attention import (
    PrunedMultiheadAttention,
    can_swap,
    has_fast_path,
    prepare,
    without_fast_path,
)
from secateur.schema.graph import Attribute
from secateur.schema.table import table

_GATES = {"LSTM": 4, "GRU": 3}


def refresh(module: nn.Module) -> None:
    """Make the descriptive integers of a torch.nn module agree with its tensors, in place."""
    for kind, fix in REFRESH.items():
        if isinstance(module, kind):
            fix(module)
            return


def _linear(m: nn.Linear) -> None:
    m.out_features, m.in_features = m.weight.shape


def _bilinear(m: nn.Bilinear) -> None:
    m.out_features, m.in1_features, m.in2_features = m.weight.shape


def _conv(m: _ConvNd) -> None:
    if m.transposed:
        m.in_channels, m.out_channels = m.weight.shape[0], m.weight.shape[1] * m.groups
    else:
        m.out_channels, m.in_channels = m.weight.shape[0], m.weight.shape[1] * m.groups


def _norm(m: _NormBase) -> None:
    for tensor in (m.weight, m.running_mean):
        if tensor is not None:
            m.num_features = tensor.shape[0]


def _layer_norm(m: nn.LayerNorm | nn.RMSNorm) -> None:
    if m.weight is not None:
        m.normalized_shape = tuple(m.weight.shape)


def _group_norm(m: nn.GroupNorm) -> None:
    if m.weight is not None:
        m.num_channels = m.weight.shape[0]


def _embedding(m: nn.Embedding | nn.EmbeddingBag) -> None:
    m.num_embeddings, m.embedding_dim = m.weight.shape


def _prelu(m: nn.PReLU) -> None:
    m.num_parameters = m.weight.shape[0]


def _rnn(m: nn.RNNBase) -> None:
    weights = dict(m.named_parameters(recurse=False))
    m.hidden_size = weights["weight_ih_l0"].shape[0] // _GATES.get(m.mode, 1)
    m.input_size = weights["weight_ih_l0"].shape[1]
    if m.proj_size:
        m.proj_size = weights["weight_hh_l0"].shape[1]
    # the module keeps a second list of its weights, which still holds the dense ones
    m._flat_weights = [weights.get(name) for name in m._flat_weights_names]
    m.flatten_parameters()  # on a GPU: in one piece, or they are put into one at every call


def _rnn_cell(m: nn.RNNCellBase) -> None:
    m.hidden_size, m.input_size = m.weight_hh.shape[1], m.weight_ih.shape[1]


def _attention(m: nn.MultiheadAttention) -> None:
    # embed_dim is the width of the residual stream; heads and head_dim are set by the receipt
    m.embed_dim = m.out_proj.weight.shape[0]
    if m.in_proj_weight is not None:
        m.kdim = m.vdim = m.in_proj_weight.shape[1]
    else:
        m.kdim, m.vdim = m.k_proj_weight.shape[1], m.v_proj_weight.shape[1]


REFRESH: types.MappingProxyType[type[nn.Module], Callable[..., None]] = table(  # type: ignore[assignment]
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (_ConvNd, _conv),
    (_NormBase, _norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _rnn),
    (nn.RNNCellBase, _rnn_cell),
    (nn.MultiheadAttention, _attention),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """What a module needs before it can hold uneven sizes.

    Attributes:
        applies: whether this module needs it.
        subclass: the class it gets (same parameters, same state_dict); None = it keeps its own.
        prepare: makes the module ready, in place; a second time changes nothing.
    """

    applies: Callable[[nn.Module], bool]
    subclass: type[nn.Module] | None
    prepare: Callable[[nn.Module], None]


SWAPS = table(
    (
        "multihead_attention",
        Swap(applies=can_swap, subclass=PrunedMultiheadAttention, prepare=prepare),
    ),
    (
        "transformer_encoder_layer",
        Swap(applies=has_fast_path, subclass=None, prepare=without_fast_path),
    ),
)


def swap_key(module: nn.Module) -> str | None:
    """The key of the swap for this module, or None."""
    return next((key for key, swap in SWAPS.items() if swap.applies(module)), None)


def make_ready(module: nn.Module, key: str) -> None:
    """Give the module the class and the settings of a swap, in place."""
    swap = SWAPS[key]
    if swap.subclass is not None:
        module.__class__ = swap.subclass
    swap.prepare(module)


def read_attribute(model: nn.Module, attribute: Attribute) -> int:
    """The value of an integer attribute."""
    owner, name = _owner(model, attribute)
    if isinstance(owner, types.FunctionType):
        return int(_cell(owner, name).cell_contents)
    value = vars(owner)[name]
    return int(value if attribute.position is None else value[attribute.position])


def write_attribute(model: nn.Module, attribute: Attribute, new: int) -> None:
    """Set an integer attribute of `model`, in place; a function that a module holds is replaced by a copy."""
    owner, name = _owner(model, attribute)
    if isinstance(owner, types.FunctionType):
        module = model.get_submodule(attribute.module)
        holder = attribute.name.split(".")[0]
        vars(module)[holder] = rebind(owner, {name: new})
        return
    if attribute.position is None:
        vars(owner)[name] = new
        return
    values = list(vars(owner)[name])
    values[attribute.position] = new
    vars(owner)[name] = type(vars(owner)[name])(values)


def _owner(model: nn.Module, attribute: Attribute) -> tuple[object, str]:
    """What holds the integer: the module, an object of it (`config.heads`), or a function of it (`f.<closure>.n`)."""
    owner: object = model.get_submodule(attribute.module)
    *path, name = attribute.name.split(".")
    for part in path:
        if part != "<closure>":
            owner = vars(owner)[part]
    return owner, name


def closure_integers(function: types.FunctionType) -> dict[str, int]:
    """Integers that a function closed over."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # an empty cell: a name that is not bound yet
            continue
        if type(value) is int:
            found[name] = value
    return found


def rebind(function: types.FunctionType, values: dict[str, int]) -> types.FunctionType:
    """A copy of `function` with other integers in its closure; the original and its cells are untouched."""
    cells = tuple(
        types.CellType(values[name]) if name in values else cell
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    )
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def _cell(function: types.FunctionType, name: str) -> types.CellType:
    for free, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if free == name:
            return cell
    raise CutError("a function of the model no longer closes over this name", where=name)


def is_weight(tensor: Tensor) -> bool:
    """Whether indices of a tensor can be units: floating point, at least one axis longer than one."""
    return tensor.is_floating_point() and any(n > 1 for n in tensor.shape)
