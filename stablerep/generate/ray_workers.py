"""Ray workers: the cluster that --ray and --gpus ask for, how many workers it has room for, and what each does."""

from __future__ import annotations

import logging
import os
import platform
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from stablerep import shards
from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig
from stablerep.generate.painter import PaintedPicture
from stablerep.generate.worker import Backends, Block, RunSpec, Worker

# No telemetry, and no messages of its own between ours: ray_dispatch says what happens to a worker.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
try:
    import ray
except ImportError:
    raise UserError("--ray and --gpus need Ray; pip install 'stablerep[ray]'") from None

OBJECT_STORE_BYTES_A_WORKER = 256 * 2**20  # for two blocks of encoded pictures; beyond that Ray goes on on the disk
CONNECT_SECONDS = 10.0

LogLine = tuple[int, str]  # level and text

log = logging.getLogger("stablerep.generate")


@dataclass(frozen=True)
class WorkerInfo:
    """A worker whose model is open."""

    host: str
    device_name: str
    arithmetic: str  # workers that differ in this may round differently
    weights_hash: str
    reads_latin_only: bool  # as of its Pipeline
    log_lines: list[LogLine]


@dataclass(frozen=True)
class BlockResult:
    """A block that is done."""

    samples: list[shards.Sample]
    idle: float  # seconds that painting stood still before it
    batch_size: int  # that fitted in the end
    log_lines: list[LogLine]


class RayWorker:
    """What runs in the process of a Ray actor: a worker that paints one block while it encodes another.

    Ray calls from several threads. What touches the device happens in one: the number of torch's threads, CUDA's
    current device and the stream of ONNX Runtime belong to a thread.
    """

    def __init__(self) -> None:
        self._device_thread = ThreadPoolExecutor(1)
        self._run: RunSpec | None = None  # that the worker is ready for
        self._painted: dict[int, int] = {}  # pictures by shard, of blocks at work
        self._idle_since: float | None = None  # since when there is nothing to paint
        self._log_buffer = _LogBuffer()
        log.addHandler(self._log_buffer)
        log.setLevel(logging.INFO)

    def open(self, config: GenerateConfig, device: str, threads: int | None) -> WorkerInfo:
        """Open the model on cuda or cpu; threads are torch's."""
        return self._device_thread.submit(self._open, config, device, threads).result()

    def begin(self, run: RunSpec) -> Backends:
        """As Worker.begin; paint does it by itself."""
        return self._device_thread.submit(self._begin, run).result()

    def paint(self, run: RunSpec, block: Block) -> BlockResult:
        """Paint and encode one block of a run."""
        pictures, idle = self._device_thread.submit(self._paint, run, block).result()
        samples = self._worker.encode(block, pictures)
        self._painted.pop(block.shard, None)  # absent where no prompt could be read
        return BlockResult(samples, idle, self._worker.painter.batch_size.value, self._log_buffer.drain())

    def painted(self) -> dict[int, int]:
        """How many pictures of the blocks at work are painted, by shard."""
        return dict(self._painted)

    def count_cut(self, texts: Sequence[str]) -> int:
        return self._worker.count_cut(texts)

    def _open(self, config: GenerateConfig, device: str, threads: int | None) -> WorkerInfo:
        if threads is not None:
            torch.set_num_threads(threads)  # Ray sets OMP_NUM_THREADS to 1 or so: products would round otherwise
        self._worker = worker = Worker(config, torch.device(device))
        arithmetic = f"{worker.device_name}, torch {torch.__version__}"
        if device == "cpu":
            arithmetic += f", {torch.backends.cpu.get_cpu_capability()}"
        return WorkerInfo(
            platform.node(),
            worker.device_name,
            arithmetic,
            worker.pipeline.weights_hash,
            worker.pipeline.reads_latin_only,
            self._log_buffer.drain(),
        )

    def _begin(self, run: RunSpec) -> Backends:
        self._run, self._idle_since = None, None
        backends = self._worker.begin(run)
        self._run = run
        return backends

    def _paint(self, run: RunSpec, block: Block) -> tuple[list[list[PaintedPicture]], float]:
        if self._run != run:
            self._begin(run)
        idle = 0.0 if self._idle_since is None else time.perf_counter() - self._idle_since
        pictures = self._worker.paint(block, lambda painted: self._painted.update({block.shard: painted}))
        self._idle_since = time.perf_counter()
        return pictures, idle


class _LogBuffer(logging.Handler):
    """Keeps what is logged here, for the driver to log."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[LogLine] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))

    def drain(self) -> list[LogLine]:
        lines, self._lines = self._lines, []
        return lines


@dataclass(frozen=True)
class ClusterPlan:
    """How many workers, and what each has."""

    count: int
    device: str  # cuda or cpu
    threads: int | None  # of torch, on the CPU
    one_machine: bool

    def __str__(self) -> str:
        workers = f"{self.count} worker{'s' * (self.count > 1)}"
        if self.device == "cuda":
            return f"{workers}, a GPU each"
        return f"{workers}, {self.threads} thread{'s' * (self.threads != 1)} each (OMP_NUM_THREADS)"


@contextmanager
def join_cluster(config: GenerateConfig) -> Iterator[ClusterPlan]:
    """Join or start the cluster that a config asks for; one that this process has joined already is taken as it is."""
    local = config.ray in (None, "local")
    if ray.is_initialized():
        yield plan_for(config, one_machine=False)
    elif local:
        # A folder of its own: no other Ray command takes this cluster for its own, and nothing of it stays.
        with tempfile.TemporaryDirectory(prefix="ray_", ignore_cleanup_errors=True) as folder:
            _start_here(config, folder)
            try:
                yield plan_for(config, one_machine=True)
            finally:
                ray.shutdown()
    else:
        assert config.ray is not None
        try:
            if config.ray != "auto":
                _check_listening(config.ray)
            ray.init(address=config.ray, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:  # Ray raises each of them
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--ray {config.ray}: no cluster to join ({reason}); ray start --head starts one, --ray local one for "
                "this command alone"
            ) from error
        try:
            yield plan_for(config, one_machine=False)
        finally:
            ray.shutdown()


def _check_listening(address: str) -> None:
    """Raise an OSError or ValueError where nobody answers; Ray itself would try for ten minutes and more."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError("an address is HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _start_here(config: GenerateConfig, folder: str) -> None:
    gpus = 0 if config.device == "cpu" else torch.cuda.device_count()
    if not gpus and (config.gpus or config.device == "cuda"):
        flag = f"--gpus {config.gpus}" if config.gpus else "--device cuda"
        raise UserError(f"{flag}: no GPU on this machine; --ray local paints on its processors")
    cpus = max(len(os.sched_getaffinity(0)), torch.get_num_threads())
    ray.init(
        address="local",
        num_cpus=max(cpus, gpus),
        num_gpus=gpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES_A_WORKER * (gpus or cpus // torch.get_num_threads()),
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )


def plan_for(config: GenerateConfig, *, one_machine: bool) -> ClusterPlan:
    """A worker a GPU; on the CPU one for as many processors as this process has threads, so that bytes stay the same.

    Raises:
        UserError: the cluster has not what is asked for.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if config.gpus or config.device == "cuda" or (config.device == "auto" and gpus):
        wanted = gpus if config.gpus in (None, "all") else int(config.gpus)
        if not 0 < wanted <= gpus:
            place = "this machine" if one_machine else "the Ray cluster"
            raise UserError(f"--gpus {config.gpus or 'all'}: {place} has {gpus}; --ray local paints without")
        return ClusterPlan(wanted, "cuda", None, one_machine)
    threads = torch.get_num_threads()
    count = sum(int(node.get("CPU", 0)) // threads for node in nodes)
    if count == 0:
        most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        raise UserError(
            f"--ray {config.ray}: no machine of the cluster has {threads} processors, as many as this process has "
            f"threads; set OMP_NUM_THREADS={max(most, 1)}"
        )
    return ClusterPlan(count, "cpu", threads, one_machine)
