"""Files that survive a crash, and refuse to be read after damage."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur import _store
from secateur.errors import FileCorrupt, StaleArtifact


def test_json_reads_back_equal_and_is_plain_json(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, "é"], "b": {"c": True}, "noun": "Plan"}
    _store.write_json(tmp_path / "deep" / "x.json", content)
    assert _store.read_json(tmp_path / "deep" / "x.json") == content
    assert json.loads((tmp_path / "deep" / "x.json").read_text())["noun"] == "Plan"
    assert os.listdir(tmp_path / "deep") == ["x.json"]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        _store.write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_logs_with_the_same_first_line_merge_into_one_that_holds_every_line_once(tmp_path: Path) -> None:
    a, b, to = (tmp_path / name for name in ("a", "b", "to"))
    lines = [{"point": i, "sums": [i / 7]} for i in range(4)]
    for path, mine in ((a, lines[:3]), (b, lines[1:])):
        for line in ({"scan": 1, "data": "x"}, *mine):
            _store.append_line(path, line)
    assert _store.merge_lines([a, b], to, value="sums") == 4
    assert _store.read_lines(to) == [{"scan": 1, "data": "x"}, *lines]


def test_logs_that_contradict_each_other_are_refused_by_name(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    for path, data, value in ((a, "x", 1), (b, "y", 1), (c, "x", 2)):
        _store.append_line(path, {"data": data})
        _store.append_line(path, {"point": 0, "sums": value})
    with pytest.raises(StaleArtifact, match=re.escape(f"{b}: data")):
        _store.merge_lines([a, b], tmp_path / "to", value="sums")
    with pytest.raises(StaleArtifact, match=re.escape(f"{c}:2")):
        _store.merge_lines([a, c], tmp_path / "to", value="sums")
    with pytest.raises(FileCorrupt, match="nothing"):
        _store.merge_lines([a, tmp_path / "nothing"], tmp_path / "to", value="sums")
    assert not (tmp_path / "to").exists()


def test_every_truncation_of_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    _store.write_json(path, {"a": [1, 2, 3]})
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last byte is the newline, which carries nothing
        path.write_bytes(whole[:length])
        with pytest.raises(FileCorrupt):
            _store.read_json(path)


def test_changed_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    _store.write_json(path, {"a": 1})
    path.write_text(path.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(FileCorrupt, match="changed after it was written"):
        _store.read_json(path)
    path.write_text('{"a": 1}')
    with pytest.raises(FileCorrupt):
        _store.read_json(path)
    path.write_bytes(b"[1]")
    with pytest.raises(FileCorrupt, match="not a JSON object"):
        _store.read_json(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileCorrupt, match="nowhere"):
        _store.read_json(tmp_path / "nowhere.json")
    with pytest.raises(FileCorrupt, match="nowhere"):
        _store.load_tensors(tmp_path / "nowhere.safetensors")
    assert _store.read_lines(tmp_path / "nowhere.jsonl") == []


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    _store.write_bytes(path, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        _store._replace(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
        min_size=1,
        max_size=5,
    ),
    data=st.data(),
)
def test_a_log_cut_anywhere_keeps_its_whole_lines_and_goes_on(tmp_path: Path, lines: list[object], data) -> None:
    path = tmp_path / "log.jsonl"
    path.unlink(missing_ok=True)
    for line in lines:
        _store.append_line(path, line)
    whole = path.read_bytes()
    assert _store.read_lines(path) == lines
    length = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:length])
    survivors = lines[: whole[:length].count(b"\n")]
    assert _store.read_lines(path) == survivors
    _store.append_line(path, {"more": 1})
    assert _store.read_lines(path) == [*survivors, {"more": 1}]


def test_a_changed_line_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for i in range(3):
        _store.append_line(path, {"value": i})
    path.write_bytes(path.read_bytes().replace(b'"value":1', b'"value":7'))
    with pytest.raises(FileCorrupt, match=r"log.jsonl:2"):
        _store.read_lines(path)
    path.write_bytes(b"garbage\n")
    with pytest.raises(FileCorrupt, match=r"log.jsonl:1"):
        _store.read_lines(path)


def test_a_long_torn_line_is_found_beyond_one_block(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    _store.append_line(path, "first")
    with open(path, "ab") as file:
        file.write(b"x" * 200_000)
    _store.append_line(path, "second")
    assert _store.read_lines(path) == ["first", "second"]


def test_a_killed_writer_leaves_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    program = (
        "import sys, itertools\nfrom secateur import _store\n"
        "for i in itertools.count(): _store.append_line(sys.argv[1], {'i': i, 'pad': 'x' * 3000})"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
    deadline = time.monotonic() + 60
    while len(_store.read_lines(path)) < 20:
        assert time.monotonic() < deadline
        assert writer.poll() is None
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    lines = _store.read_lines(path)
    assert [line["i"] for line in lines] == list(range(len(lines)))


def test_tensors_read_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    shared = torch.randn(4, 3)
    tensors = {
        "w": shared,
        "tied": shared,
        "view": shared.t(),
        "half": torch.randn(3).to(torch.bfloat16),
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 2),
        "nan": torch.tensor([float("nan"), -0.0]),
    }
    _store.save_tensors(path, tensors)
    loaded = _store.load_tensors(path)
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        bits = [t.contiguous().reshape(-1).view(torch.uint8).tolist() for t in (loaded[name], tensor)]
        assert bits[0] == bits[1]
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_tensors_are_read_into_memory_of_their_own_as_torch_aligns_it(tmp_path: Path) -> None:
    """A view into the file starts at any byte: kernels then take another path, whose last bits are others."""
    path = tmp_path / "a.safetensors"
    odd = {f"t{k}": torch.arange(2 * k + 1, dtype=torch.float32) for k in range(20)}
    _store.save_tensors(path, odd)
    read = _store.load_tensors(path)
    aligned = [torch.empty(2 * k + 1).data_ptr() % 64 == 0 for k in range(20)]
    assert [read[f"t{k}"].data_ptr() % 64 == 0 for k in range(20)] == aligned == [True] * 20
    path.write_bytes(b"")  # what was read stays
    assert all(torch.equal(read[name], value) for name, value in odd.items())


def test_truncated_or_changed_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    _store.save_tensors(path, {"w": torch.arange(8.0)})
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileCorrupt):
            _store.load_tensors(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileCorrupt, match="changed after"):
        _store.load_tensors(path)
    path.write_bytes(b"\x80" * 100)
    with pytest.raises(FileCorrupt):
        _store.load_tensors(path)
