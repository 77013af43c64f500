"""Fixtures for all tests."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import pickle
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stablerep.generate.pipeline import Pipeline

RANKS_SECONDS = 120


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow: minutes and gigabytes each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow", default=False):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home of the tests' own: engines built and shards staged by default leave nothing in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("XDG_CACHE_HOME", raising=False)
        yield


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """run_ranks(n, fn, *args): fn(*args) in n gloo processes; the results by rank, or the first traceback.

    fn and args are pickled: fn must stand at the top of a test module.
    """

    def run(n: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed"])  # torch is then imported once for all ranks
        rendezvous = tmp_path / f"rendezvous{len(list(tmp_path.iterdir()))}"
        pipes = [context.Pipe(duplex=False) for _ in range(n)]
        workers = [
            context.Process(target=_rank_main, args=(rank, n, str(rendezvous), sender, fn, args), daemon=True)
            for rank, (_, sender) in enumerate(pipes)
        ]
        for worker, (_, sender) in zip(workers, pipes, strict=True):
            worker.start()
            sender.close()  # a rank that dies then ends its pipe
        try:
            return _collect([receiver for receiver, _ in pipes])
        finally:
            for worker in workers:
                worker.terminate()
                worker.join()

    return run


def _collect(receivers: list[Connection]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        waiting = [receiver for rank, receiver in enumerate(receivers) if rank not in results]
        ready = multiprocessing.connection.wait(waiting, timeout=RANKS_SECONDS)
        if not ready:
            raise AssertionError(f"ranks {sorted(set(range(len(receivers))) - set(results))} still hang")
        for receiver in ready:
            rank = receivers.index(receiver)  # type: ignore[arg-type]
            try:
                ok, value = pickle.loads(receiver.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                raise AssertionError(f"rank {rank} died without a word") from None
            if not ok:
                raise AssertionError(f"rank {rank} of {len(receivers)}:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(receivers))]


def _rank_main(
    rank: int, world_size: int, rendezvous: str, sender: Connection, fn: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=RANKS_SECONDS),
        )
        # Bytes, not send(): that hands on tensors as open files, which are gone with a rank that leaves first.
        sender.send_bytes(pickle.dumps((True, fn(*args))))
        dist.barrier()  # no rank leaves while another still talks to it
        dist.destroy_process_group()
    except BaseException:
        sender.send_bytes(pickle.dumps((False, traceback.format_exc())))


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    """The embedded default."""
    import torch

    from stablerep.generate.pipeline import open_pipeline

    return open_pipeline("default", torch.device("cpu"))


@pytest.fixture(scope="session")
def onnx_store(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline) -> Path:
    """A folder with the embedded default's onnx engine, verified; for reading: copy it to change it."""
    import torch

    from stablerep.engines import onnx, onnx_export
    from stablerep.engines.select import open_engine
    from stablerep.engines.store import Store

    if reason := onnx_export.why_not() or onnx.why_not(torch.device("cpu"), torch.float32):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("onnx") / "store"
    open_engine("onnx", pipeline, Store(folder), batch_size=2)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a photo of a dark slim sneaker\na photo of a white bag\n\na photo of a busy dress\n")
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that refuses at once; the folder of its client's cache, empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As another process of the same test has: products of other sizes, of threads too, round otherwise."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
