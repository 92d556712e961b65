"""Ray: processes of a Ray cluster, on this machine or on several; the work is carried over by cloudpickle."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import os
import pickle
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import InputError, NotInstalled, SecateurError

LOOPBACK = "127.0.0.1"
STORE_BYTES = 2**30  # of shared memory, taken as it is used
# glibc gives the memory of a large result back to the system at once, unless its process has freed a larger one before.
# Asking for it again for every operation cost a scan a seventh of its time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Ray:
    """Runs the work in `n` processes of Ray with one torch thread each; results come as they are ready.

    A Ray that is running (`ray.init()` was called) is used as it is, and left so. Otherwise one is started that
    listens on this machine alone, behind a random token, without dashboard and usage statistics. It serves all calls
    of this executor, since a start takes seconds, and is shut down when nothing refers to the executor any more:
    with `scan(..., executor=ray(2))`, when the scan returns. Model, data and task are pickled once a call, functions
    without a name included, and read once by every process. CPU only.

    The results are bit for bit those of `serial` with one torch thread on the same machine. The item of a worker that
    was killed is done again by another one, up to `retries` times.
    """

    n: int
    retries: int = 3
    name: str = "ray"
    remote: bool = True

    def __post_init__(self) -> None:
        """Refuses what cannot work."""
        if self.n < 1:
            raise InputError("at least one process is needed", where="ray(n)", expected="1 or more", got=self.n)

    def __call__(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(index of the item, result), in the order in which they are ready.

        Raises:
            NotInstalled: Ray is missing.  InputError: the work cannot be pickled, or lies on a GPU; the running Ray is
                too small.
            SecateurError: a worker was killed again and again. Errors of the work as they are.
        """
        left = list(enumerate(items))
        if not left:
            return
        ray = _package()
        try:
            payload = _pickled(ray, work)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise InputError(
                "the model, the data or the task cannot be sent to another process",
                where="ray(n)",
                got=error,
                todo="use executors.processes(n), where nothing has to be pickled",
            ) from error
        if ray.is_initialized():
            _check_size(ray, self.n)
        else:
            weakref.finalize(self, _start(ray, self.n, len(payload)))
        yield from _run(ray, payload, left, self.n, self.retries)


def _pickled(ray: Any, work: Any) -> bytes:
    """The work, with every memory in it once: torch pickles that of a whole data set with each batch that views it."""
    memories: dict[int, Tensor] = {}  # address -> all of it as bytes; that object is pickled once

    class Pickler(ray.cloudpickle.CloudPickler):  # type: ignore[misc]
        def reducer_override(self, item: Any) -> Any:
            if isinstance(item, Tensor) and item.device.type not in ("cpu", "meta"):
                raise InputError(
                    "a model or data on a GPU cannot be sent to processes that compute on CPUs",
                    where="executors.ray",
                    got=item.device,
                    todo="leave the executor out: one process keeps a GPU busy; or move the model to the CPU",
                )
            if type(item) is not Tensor or not _is_plain(item):
                return super().reducer_override(item)
            storage = item.untyped_storage()
            if memories.get(storage._cdata) is item:
                return super().reducer_override(item)
            if storage._cdata not in memories:
                memories[storage._cdata] = torch.empty(0, dtype=torch.uint8).set_(storage)
            where = (item.dtype, tuple(item.shape), item.stride(), item.storage_offset())
            return _view, (memories[storage._cdata], *where)

    file = io.BytesIO()
    Pickler(file).dump(work)
    return file.getvalue()


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _view(memory: Tensor, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Tensor:
    return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), offset, shape, stride)


def _run(ray: Any, payload: bytes, items: list[tuple[int, Any]], n: int, retries: int) -> Iterator[tuple[int, Any]]:
    # Plain tasks: Ray gives them to idle processes, which have imported torch before, and repeats those that were
    # killed. The payload travels inside a list, so that a process that holds it already need not fetch it.
    do = ray.remote(num_cpus=1, max_retries=retries)(_do)
    held, digest = [ray.put(payload)], hashlib.sha256(payload).hexdigest()
    # Of two items a process, one waits where it is computed: it begins when the other ends, not a round trip later.
    waiting = iter(items)
    busy = {do.remote(held, digest, sys.path, item): index for index, item in itertools.islice(waiting, 2 * n)}
    while busy:
        (ready,), _ = ray.wait(list(busy), num_returns=1)
        index = busy.pop(ready)
        try:
            result = ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # what went wrong, as it is; below it, where
        except ray.exceptions.WorkerCrashedError as error:
            raise SecateurError(
                "worker processes were killed again and again",
                where=f"item {index} of {len(items)}",
                got=f"{retries + 1} attempts",
                todo="look for the system's out-of-memory messages; use fewer processes or smaller batches",
            ) from error
        for following, item in itertools.islice(waiting, 1):
            busy[do.remote(held, digest, sys.path, item)] = following
        yield index, result


def _do(held: list[Any], digest: str, path: list[str], item: Any) -> Any:
    """In a process of Ray: one item."""
    sys.path += [p for p in path if p not in sys.path]  # modules are pickled by their names
    return _work(digest, held[0])(item)


@functools.lru_cache(maxsize=1)
def _work(digest: str, held: Any) -> Callable[[Any], Any]:
    """In a process of Ray: the work function, unpickled once."""
    import ray

    torch.set_num_threads(1)
    work: Callable[[Any], Any] = pickle.loads(ray.get(held))
    return work


def _check_size(ray: Any, n: int) -> None:
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if cpus < n:
        raise InputError(
            "the running Ray has too few CPUs",
            where="ray(n)",
            expected=f"at most {cpus}",
            got=n,
            todo="ask for fewer, or shut it down (ray.shutdown()) to have one started",
        )


def _start(ray: Any, n: int, n_bytes: int) -> Callable[[], None]:
    """Start a Ray of our own; returned is the call that ends it and leaves no file behind."""
    if (address := ray.util.get_node_ip_address()) != LOOPBACK:
        raise InputError(
            "a Ray that is started here would listen beyond this machine",
            where="ray(n)",
            expected=LOOPBACK,
            got=address,
            todo="call ray.init() yourself if that is meant, or do not import ray before this executor runs",
        )
    folder = tempfile.mkdtemp(prefix="secateur-ray-")
    stop = functools.partial(_stop, ray, folder, signal.getsignal(signal.SIGTERM))
    try:
        with _environment(KEEP_MEMORY):  # the processes of Ray inherit it
            ray.init(
                "local",
                num_cpus=n,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=max(STORE_BYTES, 2 * n_bytes),
                _temp_dir=folder,
            )
    except BaseException:
        stop()
        raise
    return stop


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables of the environment, where they are not set already."""
    new = values.keys() - os.environ.keys()
    os.environ.update({name: values[name] for name in new})
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _stop(ray: Any, folder: str, on_termination: Any) -> None:
    ray.shutdown()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)  # Ray had put its own there
    shutil.rmtree(folder, ignore_errors=True)


def _package() -> Any:
    """Ray. It reads its settings when it is imported, and its token once in a process: they stay as set here."""
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on any system: loopback only
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
    try:
        import ray
    except ImportError as error:
        raise NotInstalled("Ray is not installed", got=error, todo="pip install 'secateur[ray]'") from None
    return ray


def ray(n: int, *, retries: int = 3) -> Ray:
    """`n` processes of Ray with one torch thread each."""
    return Ray(n=n, retries=retries)
