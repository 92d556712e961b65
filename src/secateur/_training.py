"""Would a forward do the same in training? Where it asks, the answer is weighed at the place where the question stands.

`p if self.training else 0.0` is 0.0 either way where p is 0.0, and `self.checkpointing and self.training` is false
where nothing is checkpointed. Such are most questions of library models; a second recording would say nothing.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import itertools
import linecache
import operator
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur._replay import DROPOUT, set_mode

# their training flag does not change a recording: `set_mode`, and the watchers' ways with dropout see to that
_INDIFFERENT = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.LSTM, nn.GRU, nn.RNN),
)
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(slots=True)
class Asked:
    """What was asked about training while something ran.

    Attributes:
        differs: an answer changed, or may have changed, what was done.
        dropout: an answer went to a function of torch that drops out: recorded alike, but another program.
    """

    differs: bool = False
    dropout: bool = False


@contextlib.contextmanager
def training_flags_read() -> Iterator[Asked]:
    """What modules in evaluation mode ask, while this lasts, about being trained."""
    asked = Asked()

    def read(module: nn.Module) -> bool:
        if not (type(module) in _INDIFFERENT or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            _weigh(asked, module, sys._getframe(1))
        return vars(module)["training"]  # type: ignore[no-any-return]

    def write(module: nn.Module, value: bool) -> None:
        vars(module)["training"] = value

    # a property of the class goes before the value of the instance
    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield asked
    finally:
        del nn.Module.training


def changed_by_mode(model: nn.Module) -> bool:
    """Whether modules do more than set their flags when their mode is set. It may be set afterwards."""
    if all(type(module).train is nn.Module.train for module in model.modules()):
        return False
    before = _state(model)
    set_mode(model, "train")
    after = _state(model)
    return len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True))


def _state(model: nn.Module) -> list[Any]:
    """What modules hold, but for their flags, to the last thing that has no parts."""
    found: list[Any] = []
    seen: set[int] = set()

    def visit(item: Any) -> None:
        found.append(item)
        if id(item) in seen or isinstance(item, Tensor | type | types.ModuleType | types.FunctionType):
            return
        seen.add(id(item))
        if isinstance(item, Mapping):
            for part in itertools.chain.from_iterable(item.items()):
                visit(part)
        elif isinstance(item, tuple | list | set | frozenset):
            for part in item:
                visit(part)
        elif type(inside := getattr(item, "__dict__", None)) is dict:
            for name, part in inside.items():
                if name != "training":
                    visit(part)

    visit(model)
    return found


# ------------------------------------------------------------------------------------------- one question
class _Unknown(Exception):
    """Something that cannot be told without running the user's code."""


def _weigh(asked: Asked, module: nn.Module, frame: types.FrameType) -> None:
    question = _question(frame.f_code, frame.f_lasti)
    if question is None:
        asked.differs = True
        return
    read, around = question
    scope = _Scope(read, module, frame)
    for inner, expression in itertools.pairwise((read, *around)):
        if isinstance(expression, ast.Call):
            if not scope.drops_out(expression, inner):
                break
            asked.dropout = True
            return
        try:
            no, yes = (scope.value(expression, answer) for answer in (False, True))
        except _Unknown:
            break
        if no is yes or (type(no) is type(yes) and (_is_number(no) or type(no) is str) and no == yes):
            return
    asked.differs = True


@dataclass(frozen=True, slots=True)
class _Scope:
    """Values of expressions where a question stands, without running any of the user's code.

    Attributes:
        read: the question.  module: whom it asks.  frame: where it stands.
    """

    read: ast.Attribute
    module: nn.Module
    frame: types.FrameType

    def value(self, e: ast.expr, answer: bool) -> Any:
        """The value of an expression if the answer to the question were this one.

        Raises:
            _Unknown: it calls something, or reads what is computed when it is read.
        """
        if e is self.read:
            return answer
        match e:
            case ast.Constant():
                return e.value
            case ast.Name():
                return self._named(e.id)
            case ast.Attribute():
                return _held(self.value(e.value, answer), e.attr)
            case ast.BoolOp():
                last = isinstance(e.op, ast.Or)  # of `or`, the first that is true
                for part in e.values:
                    found = self.value(part, answer)
                    if _truth(found) is last:
                        return found
                return found
            case ast.UnaryOp(op=ast.Not()):
                return not _truth(self.value(e.operand, answer))
            case ast.IfExp():
                return self.value(e.body if _truth(self.value(e.test, answer)) else e.orelse, answer)
            case ast.Compare(ops=[sign], comparators=[right]) if type(sign) in _COMPARED:
                a, b = self.value(e.left, answer), self.value(right, answer)
                if not isinstance(sign, ast.Is | ast.IsNot) and not (_is_number(a) and _is_number(b)):
                    raise _Unknown
                return _COMPARED[type(sign)](a, b)
        raise _Unknown

    def drops_out(self, e: ast.Call, argument: ast.expr) -> bool:
        """Whether a function of torch that drops out is told by this argument how, or whether to."""
        how = any(argument is a for a in (*e.args[1:3], *(k.value for k in e.keywords if k.arg in ("p", "training"))))
        if not how:
            return False
        try:
            function = self.value(e.func, False)
        except _Unknown:
            return False
        return getattr(function, "__module__", "") == "torch.nn.functional" and function.__name__ in DROPOUT

    def _named(self, name: str) -> Any:
        # the locals of a frame, once they are looked at, keep every tensor among them alive until it ends
        if isinstance(self.read.value, ast.Name) and self.read.value.id == name:
            return self.module
        for names in (self.frame.f_locals, self.frame.f_globals, vars(builtins)):
            if name in names:
                return names[name]
        raise _Unknown


def _held(owner: Any, name: str) -> Any:
    """An attribute that lies there; one that is computed when it is read is not asked for."""
    own = getattr(owner, "__dict__", None)
    if type(own) is dict and name in own:
        return own[name]
    if isinstance(owner, nn.Module):
        for held in (owner._parameters, owner._buffers, owner._modules):
            if name in held:
                return held[name]
    raise _Unknown


def _truth(value: Any) -> bool:
    if value is None or isinstance(value, bool | str | tuple | list | dict) or _is_number(value):
        return bool(value)
    raise _Unknown


def _is_number(value: Any) -> bool:
    return type(value) in (bool, int, float)  # a traced integer would note that it was looked at


@functools.lru_cache(maxsize=4096)
def _question(code: types.CodeType, instruction: int) -> tuple[ast.Attribute, tuple[ast.expr, ...]] | None:
    """The `owner.training` that an instruction reads, and the expressions in which it stands, from the inside.

    None where the source does not show it.
    """
    line, last, column, end = next(itertools.islice(code.co_positions(), instruction // 2, None))
    tree = _parsed(code)
    if tree is None or line is None or last is None:
        return None
    first = code.co_firstlineno - 2  # a line stands before it
    around: dict[ast.AST, ast.AST] = {}
    found = None
    for node in ast.walk(tree):
        around.update(dict.fromkeys(ast.iter_child_nodes(node), node))
        if isinstance(node, ast.Attribute) and node.attr == "training":
            here = (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
            if here == (line - first, last - first, column, end):
                found = node
    if found is None:
        return None
    chain: list[ast.expr] = []
    outer = around[found]
    while isinstance(outer, ast.expr | ast.keyword):
        if isinstance(outer, ast.expr):
            chain.append(outer)
        outer = around[outer]
    return found, tuple(chain)


@functools.lru_cache(maxsize=1024)
def _parsed(code: types.CodeType) -> ast.Module | None:
    """The source of a function, with a line before it that makes its indentation legal."""
    last = max((line for _, line, _, _ in code.co_positions() if line is not None), default=0)
    lines = "".join(linecache.getlines(code.co_filename)[code.co_firstlineno - 1 : last])
    with contextlib.suppress(SyntaxError, ValueError):
        return ast.parse(("if True:" if lines[:1].isspace() else "") + "\n" + lines)
    return None
