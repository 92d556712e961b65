"""Ray as an executor: the bits of serial, whatever happens to a worker, and nothing of it left afterwards."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import pickle
import signal
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateur._scan import scan
from secateur.errors import InputError, SecateurError
from secateur.executors import processes, serial
from secateur.executors import ray as ray_executor
from secateur.tasks import classification
from test_scan import make_batches, make_groups, make_model, make_scores

pytestmark = pytest.mark.slow


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch):
    """An empty folder for temporary files with a short name: sockets have no room for long ones."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def processes_that_name(folder: Path) -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:  # it has just ended
            continue
    return [line for line in found if os.fsencode(folder) in line]


def test_a_scan_on_ray_has_the_bits_of_serial_though_a_worker_is_killed_and_nothing_is_left(place: Path) -> None:
    model, task = make_model(), classification()
    groups, driver, flag = make_groups(model), os.getpid(), place / "killed"

    def losses(out: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        if os.getpid() != driver and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task.losses(out, batch)

    parts = (model, groups, make_scores(groups), make_batches(), dataclasses.replace(task, losses=losses))
    before, on_termination, threads = children(), signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = scan(*parts, removed=(0.25, 0.5, 0.75), executor=serial())
        there = scan(*parts, removed=(0.25, 0.5, 0.75), executor=ray_executor(2))
    finally:
        torch.set_num_threads(threads)
    assert flag.exists()
    assert there == here
    assert children() == before
    assert list(place.glob("secateur-ray-*")) == []
    assert processes_that_name(place) == []
    assert signal.getsignal(signal.SIGTERM) == on_termination


@pytest.fixture(scope="module")
def running():
    """A Ray of the user's own."""
    ray_executor(1)(abs, [])  # nothing to do: nothing is started
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"), ("RAY_AUTH_TOKEN", "7" * 64)):
            if name not in os.environ:
                patch.setenv(name, value)
        import ray

        with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
            ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
            yield ray
            ray.shutdown()


def fails_at_three(x: int) -> int:
    if x == 3:
        raise InputError("three is not wanted", where="here", got=x)
    return x


def always_killed(x: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def test_a_running_ray_is_used_with_one_thread_a_worker_and_left_running(running) -> None:
    factor = 3  # a closure has no name to be imported by
    found = dict(ray_executor(2)(lambda x: (factor * x, torch.get_num_threads()), range(7)))
    assert found == {i: (3 * i, 1) for i in range(7)}
    assert running.is_initialized()


def test_errors_of_the_work_arrive_as_they_are(running) -> None:
    with pytest.raises(InputError, match="three is not wanted") as caught:
        list(ray_executor(1)(fails_at_three, range(6)))
    assert type(caught.value) is InputError
    assert (caught.value.where, caught.value.got) == ("here", 3)


def test_a_worker_that_dies_again_and_again_ends_the_scan(running) -> None:
    with pytest.raises(SecateurError, match="killed again and again"):
        list(ray_executor(1, retries=1)(always_killed, range(2)))


def test_more_workers_than_the_running_ray_has_are_refused(running) -> None:
    with pytest.raises(InputError, match="too few CPUs"):
        list(ray_executor(3)(abs, range(3)))


def test_no_process_is_forked_beside_a_running_ray(running) -> None:
    with pytest.raises(InputError, match=r"ray\.shutdown\(\) first"):
        list(processes(2)(abs, range(3)))


def test_what_cannot_be_pickled_is_refused_with_another_way() -> None:
    with pytest.raises(InputError, match=r"executors\.processes"):
        list(ray_executor(1)(functools.partial(pow, threading.Lock()), [1]))


def test_no_worker_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        ray_executor(0)


def test_batches_that_are_views_of_one_tensor_travel_with_its_memory_once() -> None:
    whole = torch.arange(200_000.0).view(100, 2000)
    batches = [(part, part.T[:3]) for part in whole.split(10)]
    model = torch.nn.Linear(2, 3)
    model.tied = model.weight  # type: ignore[assignment]
    package = pytest.importorskip("ray")
    payload = importlib.import_module("secateur.executors.ray")._pickled(package, (batches, model))
    assert len(payload) < 1.1 * whole.untyped_storage().nbytes()
    found, double = pickle.loads(payload)
    for (a, b), (c, d) in zip(batches, found, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
        assert c.stride() == a.stride()
    found[0][0][0, 1] = -1.0
    assert found[0][1][1, 0] == -1.0, "views of one memory"
    assert double.tied is double.weight


class Elsewhere(Tensor):
    """A tensor that says that it lies on a GPU."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", 0)


def test_what_lies_on_a_gpu_is_refused_before_anything_is_started() -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="on a GPU"):
        list(ray_executor(2)(functools.partial(max, {"w": [torch.zeros(2).as_subclass(Elsewhere)]}, model), [1]))
