"""--ray and --gpus: join or start a Ray cluster, and see how many actors it has room for."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stablerep.config import UserError
from stablerep.generate.config import GenerateConfig

# No telemetry, and no messages of its own between ours: what happens to an actor is said by dispatch.py.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
try:
    import ray
except ImportError:
    raise UserError("--ray and --gpus need Ray; pip install 'stablerep[ray]'") from None

from stablerep.generate.ray_dispatch import Dispatcher, Plan

OBJECT_STORE_BYTES_A_WORKER = 256 * 2**20  # for two blocks of encoded pictures; beyond that Ray goes on on the disk

KNOCK_SECONDS = 10.0


@contextmanager
def start(config: GenerateConfig) -> Iterator[Dispatcher]:
    """Actors with the model open; they end with the block, and so does a cluster that was started for them.

    Raises:
        UserError: no cluster there, no room in it, a model that opens nowhere; and after the block: what was left out.
    """
    with joined(config) as plan:
        dispatcher = Dispatcher(config, plan)
        try:
            dispatcher.open()
            yield dispatcher
        finally:
            dispatcher.close()
    if dispatcher.left_out:
        raise UserError(
            f"left out, because {len(dispatcher.left_out)} blocks ended their workers again and again: "
            f"{'; '.join(dispatcher.left_out)}. All others are painted; the same command tries these again"
        )


@contextmanager
def joined(config: GenerateConfig) -> Iterator[Plan]:
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
                _knock(config.ray)
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


def _knock(address: str) -> None:
    """Raise an OSError or ValueError where nobody answers; Ray itself would try for ten minutes and more."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError("an address is HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


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


def plan_for(config: GenerateConfig, *, one_machine: bool) -> Plan:
    """An actor a GPU; on the CPU one for as many processors as this process has threads, so that bytes stay the same.

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
        return Plan(wanted, "cuda", None, one_machine)
    threads = torch.get_num_threads()
    count = sum(int(node.get("CPU", 0)) // threads for node in nodes)
    if count == 0:
        most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        raise UserError(
            f"--ray {config.ray}: no machine of the cluster has {threads} processors, as many as this process has "
            f"threads; set OMP_NUM_THREADS={max(most, 1)}"
        )
    return Plan(count, "cpu", threads, one_machine)
