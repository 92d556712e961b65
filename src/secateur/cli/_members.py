"""Members by their text: `finetune(epochs=5, lr=1e-3)`, `recalibrate`, `package.module:factory`."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from secateur.errors import InputError, UnknownName
from secateur.integrations.names import load_object


def member(text: str, table: Mapping[str, Any], *, what: str) -> Any:
    """The member that `text` calls: a name of the table or `module:factory`, with literal keyword arguments if any.

    Raises:
        UnknownName: not in the table.  InputError: no call with literal keyword arguments, or not of this factory.
    """
    name, settings = _parse(text, what)
    if ":" in name:
        factory = load_object(name, what=what)
    elif name in table:
        factory = table[name]
    else:
        raise UnknownName(
            f"no {what} of that name", expected=", ".join(table), got=name, todo=f"or name your own: module:{what}"
        )
    try:
        return factory(**settings)
    except TypeError as error:
        raise InputError(f"this {what} cannot be made", where=text, got=error) from None


def chained(text: str, table: Mapping[str, Any], chain: Callable[..., Any], *, what: str) -> Any:
    """Several members with plus signs between them, as one: `finetune(epochs=5)+recalibrate`."""
    made = [member(part, table, what=what) for part in _split(text, "+")]
    return made[0] if len(made) == 1 else chain(*made)


def listed(text: str, table: Mapping[str, Any], *, what: str) -> list[Any]:
    """Several members with commas between them, `obd, magnitude(p=1)`; `all` = every one of the table."""
    names = [*table] if text.strip() == "all" else _split(text, ",")
    return [member(name, table, what=what) for name in names]


def _split(text: str, mark: str) -> list[str]:
    """At marks outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _parse(text: str, what: str) -> tuple[str, dict[str, Any]]:
    name, bracket, inside = text.strip().partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({inside}", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        return name, {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
    except (SyntaxError, ValueError, AssertionError):
        raise InputError(
            f"this {what} cannot be read",
            got=text,
            expected="name, or name(argument=value, ...) with plain values",
            todo="put it into quotes: 'finetune(epochs=5, lr=1e-3)'",
        ) from None
