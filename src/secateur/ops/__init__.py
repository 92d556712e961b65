"""Everything known about an operation, one file per family. `RULES` is the one literal table.

A rule is a function `(kernel, operation) -> label, or one label per output`: it says what the indices of the outputs
stand for, given what those of the inputs stand for, by the primitives of `Kernel`. Keys are base names of ATen
operators (`add` serves `aten.add.Tensor` and `aten.add_.Tensor`), names of torch functions that are recorded whole
(`linear`, `lstm`), or qualified names of other libraries (`torchvision::roi_align`).

Your own op: `sc.couple(graph, rules=sc.ops.RULES | {"mylib::my_op": my_rule})`.
"""

import functools
from collections.abc import Mapping

from secateur.ops import (
    contraction,
    convolution,
    detection,
    experts,
    factories,
    indexing,
    joining,
    memory,
    movement,
    normalization,
    pointwise,
    pooling,
    recurrent,
    reduction,
    sampling,
    spectral,
)
from secateur.ops._kernel import Kernel as Kernel
from secateur.ops._kernel import Label as Label
from secateur.ops._rule import Operation as Operation
from secateur.ops._rule import Rule as Rule
from secateur.ops.modules import SWAPS as SWAPS
from secateur.schema.table import table

RULES: Mapping[str, Rule] = table(
    *contraction.RULES,
    *convolution.RULES,
    *detection.RULES,
    *experts.RULES,
    *factories.RULES,
    *indexing.RULES,
    *joining.RULES,
    *memory.RULES,
    *movement.RULES,
    *normalization.RULES,
    *pointwise.RULES,
    *pooling.RULES,
    *recurrent.RULES,
    *reduction.RULES,
    *sampling.RULES,
    *spectral.RULES,
)


@functools.cache
def rule_key(op: str) -> str:
    """The table key of a recorded op: `aten.add_.Tensor` -> `add`, `torchvision.nms.default` -> `torchvision::nms`."""
    space, _, rest = op.partition(".")
    if not rest:
        return op
    name = rest.split(".")[0]
    if space != "aten":
        return f"{space}::{name}"
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
