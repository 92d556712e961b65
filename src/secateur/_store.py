"""Crash-safe files: whole files are replaced in one step, logs only grow, and everything carries a checksum.

A reader sees the old file or the new one, never half of one, whatever moment the writer was killed at. A file
that was truncated or changed afterwards is refused with `FileCorrupt`. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import FileCorrupt, StaleArtifact

CHECKSUM = "sha256"


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, or leave it as it was; folders are made as needed."""
    _replace(Path(path), lambda temporary: temporary.write_bytes(data))


def read_bytes(path: str | Path) -> bytes:
    """The content of the file.

    Raises:
        FileCorrupt: there is no such file.
    """
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise FileCorrupt("a file is missing", where=str(path), todo="check the path, or make it again") from None


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, with the SHA-256 of its canonical form under the key `sha256`.

    Raises:
        ValueError: NaN or infinity in `content` (`schema.to_json` writes them as strings).
    """
    assert CHECKSUM not in content, f"{CHECKSUM!r} is the key of the checksum"
    text = json.dumps({**content, CHECKSUM: _digest(content)}, indent=1, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """What `write_json` wrote, without the checksum.

    Raises:
        FileCorrupt: missing, truncated, changed since it was written, or no JSON object.
    """
    content = _parse(read_bytes(path), str(path))
    expected = content.pop(CHECKSUM, None)
    if expected != (got := _digest(content)):
        raise FileCorrupt(
            "a file was changed after it was written", where=str(path), expected=expected, got=got, todo="make it again"
        )
    return content


def append_line(path: str | Path, content: Any) -> None:
    """Append `content` as one JSON line with its checksum; on disk when this returns.

    A torn last line, left by a writer that was killed, is cut off first: the next line must not be glued to it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({CHECKSUM: _digest(content), "content": content}, allow_nan=False, separators=(",", ":"))
    with open(path, "a+b", buffering=0) as file:
        whole = _whole_length(file)
        if whole != file.seek(0, os.SEEK_END):
            file.truncate(whole)
        data = memoryview(line.encode() + b"\n")
        while data:
            data = data[file.write(data) :]
        os.fsync(file.fileno())


def read_lines(path: str | Path) -> list[Any]:
    """All whole lines that `append_line` wrote; empty where there is no file. A torn last line is dropped.

    Raises:
        FileCorrupt: a line was changed after it was written (line number given).
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, _torn = read_bytes(path).split(b"\n")
    contents = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line, f"{path}:{number}")
        if set(record) != {CHECKSUM, "content"} or record[CHECKSUM] != _digest(record["content"]):
            raise FileCorrupt(
                "a line was changed after it was written",
                where=f"{path}:{number}",
                todo="restore the file, or remove it and start afresh",
            )
        contents.append(record["content"])
    return contents


def merge_lines(parts: Sequence[str | Path], to: str | Path, *, value: str) -> int:
    """Logs that begin with the same line, as one: their other lines in order, the same ones once.

    Args:
        value: key of what a line holds; its other keys say what the line is about.

    Returns:
        Lines written, the first not counted.

    Raises:
        StaleArtifact: a log with another first line, or two lines about the same that hold something else; named.
        FileCorrupt: a log without a first line, or one that was changed.
    """
    lines: dict[str, tuple[Any, str]] = {}
    header, first = None, ""
    for path in parts:
        found = read_lines(path)
        if not found or not all(isinstance(line, dict) for line in found):
            raise FileCorrupt("this is not a log that can be merged", where=str(path), todo="leave it out")
        begin, *rest = found
        header, first = (begin, str(path)) if header is None else (header, first)
        for key in header.keys() | begin.keys():
            if header.get(key) != begin.get(key):
                raise StaleArtifact(
                    "parts of different scans cannot be merged",
                    where=f"{path}: {key}",
                    expected=f"{header.get(key)} ({first})",
                    got=begin.get(key),
                    todo="leave this part out; it belongs to another model, data set or setting",
                )
        for number, line in enumerate(rest, start=2):
            about = _digest({k: v for k, v in line.items() if k != value})
            held, where = lines.setdefault(about, (line, f"{path}:{number}"))
            if held != line:
                raise StaleArtifact(
                    "the same was measured twice, differently",
                    where=f"{path}:{number}",
                    expected=f"what stands in {where}",
                    todo="leave one of the two parts out; machines of another kind may round differently",
                )
    for content in (header, *(line for line, _ in lines.values())):
        append_line(to, content)
    return len(lines)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors, with a checksum of names, types, shapes and bits in the metadata.

    Tensors that share storage are written once per name.
    """
    from safetensors.torch import save_file

    # Copies, since safetensors refuses views and shared storage.
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in sorted(tensors.items())}
    metadata = {"format": "pt", CHECKSUM: _digest_tensors(plain)}

    def write(temporary: Path) -> None:
        save_file(plain, temporary, metadata=metadata)
        _sort_header(temporary)

    _replace(Path(path), write)


def load_tensors(path: str | Path, *, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """What `save_tensors` wrote.

    Raises:
        FileCorrupt: missing, truncated, or changed since it was written.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileCorrupt("a file is missing", where=str(path), todo="check the path, or make it again")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what the file gives may be views of it, at addresses that make kernels take other paths.
            tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise FileCorrupt(
            "this is not a whole safetensors file", where=str(path), got=error, todo="make it again"
        ) from None
    if metadata.get(CHECKSUM) != (got := _digest_tensors(tensors)):
        raise FileCorrupt(
            "tensors were changed after they were written",
            where=str(path),
            expected=metadata.get(CHECKSUM),
            got=got,
            todo="make them again",
        )
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file beside `path`, force it to disk, and rename it over `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name per target: what a killed writer left behind is overwritten, never collected.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself is only durable once the folder is on disk; folders cannot be opened on Windows.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sort_header(path: Path) -> None:
    """Same tensors, same bytes: safetensors writes its metadata in an order that changes from call to call."""
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "a sorted header is as long as an unsorted one"
        file.seek(8)
        file.write(text.ljust(length))


def _whole_length(file: Any) -> int:
    """Bytes up to and including the last newline, searched backwards: logs grow long."""
    end: int = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + int(found) + 1
        end = start
    return 0


def _parse(data: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError:  # also undecodable bytes
        raise FileCorrupt("this is not whole JSON", where=where, got=data[:40], todo="make it again") from None
    if not isinstance(content, dict):
        raise FileCorrupt("not a JSON object", where=where, got=data[:40], todo="make it again")
    return content


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
