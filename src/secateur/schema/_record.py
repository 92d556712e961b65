"""Records to JSON and back: one mechanism for every noun.

A noun is a frozen dataclass made of numbers, strings, None, tuples, string-keyed dicts and other nouns.
`to_json` writes plain JSON with the class name and schema version; `from_json` reads it back by the
annotations of the class, and refuses what does not fit. Floats keep all bits (repr round trip);
NaN and infinities are written as strings, since JSON has none.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from secateur.errors import FileCorrupt

T = TypeVar("T")
SCHEMA_VERSION = 1
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(record: object) -> dict[str, Any]:
    """A noun as a JSON-ready dict: {"noun": class, "schema": version, fields...}."""
    assert dataclasses.is_dataclass(record) and not isinstance(record, type)
    return {"noun": type(record).__name__, "schema": SCHEMA_VERSION, **_fields(record)}


def _fields(record: Any) -> dict[str, Any]:
    """All fields but those that live in memory only (metadata json=False)."""
    noun: Any = type(record)
    hints = _hints(noun)
    return {
        f.name: _plain(getattr(record, f.name), tagged=_is_open(hints[f.name]))
        for f in dataclasses.fields(record)
        if f.metadata.get("json", True)
    }


def _is_open(hint: Any) -> bool:
    """Whether a hint leaves the type open, so that what stands there must name its class."""
    return hint is Any or any(_is_open(arg) for arg in typing.get_args(hint))


def _plain(value: object, *, tagged: bool = False) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"$": type(value).__name__, **_fields(value)} if tagged else _fields(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        word = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return {"$": "float", "value": word} if tagged else word
    if isinstance(value, tuple | list):
        return [_plain(v, tagged=tagged) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, tagged=tagged) for k, v in value.items()}
    if value is None or isinstance(value, str | int | bool):
        return value
    raise TypeError(f"{type(value).__name__} does not belong in a noun")


def from_json(noun: type[T], data: Mapping[str, Any]) -> T:
    """The noun of class `noun` that `to_json` wrote.

    Raises:
        FileCorrupt: another noun, another schema version, missing or surplus fields, or a wrong type.
    """
    if data.get("noun") != noun.__name__ or data.get("schema") != SCHEMA_VERSION:
        raise FileCorrupt(
            f"this is not a {noun.__name__} that this version can read",
            expected=f"{noun.__name__}, schema {SCHEMA_VERSION}",
            got=f"{data.get('noun')}, schema {data.get('schema')}",
            todo="read it with the version of secateur that wrote it, or make it again",
        )
    body = {k: v for k, v in data.items() if k not in ("noun", "schema")}
    return typing.cast(T, _build(noun, body, noun.__name__, sys.modules[noun.__module__]))


@functools.cache
def _hints(noun: type) -> dict[str, Any]:
    return typing.get_type_hints(noun)


def _build(hint: Any, value: Any, where: str, home: types.ModuleType) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return _build_open(value, where, home)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build_record(hint, value, where)
    if origin in (typing.Union, types.UnionType):
        return _build_union(args, value, where, home)
    if origin is typing.Literal:
        return _check(value in args, value, hint, where)
    if origin is tuple:
        _check(isinstance(value, list), value, hint, where)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_build(args[0], v, f"{where}[{i}]", home) for i, v in enumerate(value))
        _check(len(value) == len(args), value, hint, where)
        return tuple(_build(a, v, f"{where}[{i}]", home) for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin in (dict, Mapping):
        _check(isinstance(value, dict), value, hint, where)
        return {k: _build(args[1], v, f"{where}.{k}", home) for k, v in value.items()}
    if hint is float:
        if isinstance(value, str) and value in _NON_FINITE:
            return _NON_FINITE[value]
        return float(_check(isinstance(value, int | float) and not isinstance(value, bool), value, hint, where))
    if hint is int:
        return _check(isinstance(value, int) and not isinstance(value, bool), value, hint, where)
    if hint in (str, bool):
        return _check(isinstance(value, hint), value, hint, where)
    if hint in (None, type(None)):
        return _check(value is None, value, hint, where)
    raise TypeError(f"{where}: no JSON form for {hint!r}")


def _build_open(value: Any, where: str, home: types.ModuleType) -> Any:
    """What stands where the type is open: lists are tuples, and "$" names a noun of the same module."""
    if isinstance(value, list):
        return tuple(_build_open(v, f"{where}[{i}]", home) for i, v in enumerate(value))
    if not isinstance(value, dict):
        return value
    if "$" not in value:
        return {k: _build_open(v, f"{where}.{k}", home) for k, v in value.items()}
    body = {k: v for k, v in value.items() if k != "$"}
    if value["$"] == "float":
        return _build(float, body.get("value"), where, home)
    noun: Any = vars(home).get(value["$"])
    _check(isinstance(noun, type) and dataclasses.is_dataclass(noun), value["$"], "a noun of this file", where)
    return _build_record(noun, body, where)


def _build_record(noun: type, value: Any, where: str) -> Any:
    _check(isinstance(value, dict), value, noun, where)
    hints = _hints(noun)
    names = {f.name for f in dataclasses.fields(noun) if f.metadata.get("json", True)}
    required = {
        f.name
        for f in dataclasses.fields(noun)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if not required <= set(value) <= names:
        raise FileCorrupt("fields are missing or unknown", where=where, expected=sorted(names), got=sorted(value))
    home = sys.modules[noun.__module__]
    return noun(**{k: _build(hints[k], v, f"{where}.{k}", home) for k, v in value.items()})


def _build_union(args: tuple[Any, ...], value: Any, where: str, home: types.ModuleType) -> Any:
    for option in args:
        try:
            return _build(option, value, where, home)
        except FileCorrupt:
            continue
    raise FileCorrupt("no alternative fits", where=where, expected=args, got=value)


def _check(ok: bool, value: Any, hint: Any, where: str) -> Any:
    if not ok:
        raise FileCorrupt("wrong type in a file", where=where, expected=hint, got=repr(value)[:80])
    return value
