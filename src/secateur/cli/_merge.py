"""`secateur scan --merge`: parts of one scan, measured on several machines, as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur import _curves, _store
from secateur.cli._files import CURVES, SCORES, STORE
from secateur.errors import InputError, StaleArtifact
from secateur.schema import from_json
from secateur.schema.curves import Curves


def merge(parts: Sequence[Path], out: Path) -> tuple[Curves | None, int]:
    """Merge the folders that scans have left into a new one: store, curves and scores.

    Args:
        parts: folders with a store, curves, or both.
        out: takes the merged ones; must hold neither.

    Returns:
        The curves, None where a part has none (it was killed); the number of measurements in the merged store.

    Raises:
        InputError: fewer than two parts, or one without a scan; `out` holds a scan already.
        StaleArtifact: a part of another scan, with its name and what differs. FileCorrupt: a part that was changed.
    """
    if len(parts) < 2:
        raise InputError("two parts or more are merged", where="--merge", got=" ".join(map(str, parts)) or "none")
    for name in (STORE, CURVES):
        if (out / name).exists():
            raise InputError("the folder already holds a scan", where=str(out / name), todo="name another --out")
    for part in parts:
        if not ((part / STORE).exists() or (part / CURVES).exists()):
            raise InputError("this folder holds no scan", where=str(part), expected=f"{STORE} or {CURVES} in it")
    _same_scores(parts, out)
    stores = [part / STORE for part in parts if (part / STORE).exists()]
    n_lines = _store.merge_lines(stores, out / STORE, value="sums") if stores else 0
    if not all((part / CURVES).exists() for part in parts):
        return None, n_lines
    curves = [from_json(Curves, _store.read_json(part / CURVES)) for part in parts]
    return _curves.merge(curves, names=[str(part / CURVES) for part in parts]), n_lines


def _same_scores(parts: Sequence[Path], out: Path) -> None:
    """Units went in the order of the scores: parts with others are of another scan."""
    found = [(path, _store.read_json(path)) for part in parts if (path := part / SCORES).exists()]
    for path, content in found[1:]:
        if content != found[0][1]:
            raise StaleArtifact(
                "this part was scanned with other scores",
                where=str(path),
                expected=f"those of {found[0][0]}",
                todo="copy scores.json of one machine to the others before they scan",
            )
    if found:
        _store.write_json(out / SCORES, found[0][1])
