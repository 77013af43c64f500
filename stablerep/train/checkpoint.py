"""What a run goes on from: the folder that is its own, and the checkpoints there.

Checkpoints are whole or not there, the newest few are kept, and a damaged one is passed over. There is no state of
random numbers or of the data in them: both follow from the seed and the step. They are written while training goes on.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from stablerep import atomic, distributed, run_folder
from stablerep import config as configs
from stablerep.config import UserError
from stablerep.data.mixing import TrainingData
from stablerep.train import parallel
from stablerep.train.config import TrainConfig

CHECKPOINTS = "checkpoints"
ONLINE = "online.yaml"  # the identity of the pictures that are painted for the run
# What may differ when a run goes on: where it is, what it runs on and what it leaves behind, not what it computes.
FREE = (
    "out", "device", "checkpoint_every", "keep_checkpoints", "log_every", "max_damaged", "cache_dir", "cache_gb",
    "micro_batch_size", "activation_checkpointing", "compile", "cuda_graph", "parallel",
    "watch", "watch_every", "track", "dry_run", "usd_per_hour",
)  # fmt: skip

log = logging.getLogger("stablerep.train")


def is_begun(config: TrainConfig) -> bool:
    """Whether --out holds this run already; it is only looked at.

    Raises:
        UserError: the folder is another run's, or holds files that are no run's.
    """
    out = Path(config.out)
    earlier = run_folder.read_config(TrainConfig, out, "training")
    ended = (out / "exported").exists()
    mend = f"it has ended; to train on from its weights, give another --out and --init {out}"
    run_folder.check_same_run(out, earlier, config, FREE, mend if ended else run_folder.MEND)
    if earlier is None:
        run_folder.refuse_foreign_files(
            out, [path.name for path in out.glob("*") if not path.name.endswith(".partial")]
        )
    return earlier is not None


def claim_folder(config: TrainConfig, online: Mapping[str, Any] | None = None) -> Path:
    """Make --out the folder of this run, where it is not yet.

    Args:
        online: the identity of the pictures of --online.

    Raises:
        UserError: as is_begun, or the run was begun with other pictures of --online.
    """
    out, begun = Path(config.out), is_begun(config)
    if online and (out / ONLINE).exists():
        earlier = yaml.safe_load((out / ONLINE).read_text())
        run_folder.refuse_other_run(out, _as_online(earlier), _as_online(online))
    distributed.barrier()  # no rank writes before all have read
    if distributed.rank() == 0:
        out.mkdir(parents=True, exist_ok=True)
        if not begun:
            configs.save(config, out / run_folder.CONFIG)
        if online and not (out / ONLINE).exists():
            atomic.write(out / ONLINE, yaml.safe_dump(dict(online), sort_keys=False))
    return out


def _as_online(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"online: {name}": value for name, value in fields.items()}  # its batch_size is not ours


def restore(
    out: Path, data: TrainingData, model: nn.Module, optimiser: torch.optim.AdamW, device: torch.device
) -> int:  # the step to go on with
    """Bring model and optimiser to where the run in `out` stopped.

    Raises:
        UserError: the run was begun with other pictures, or as load_newest.
    """
    state = load_newest(out / CHECKPOINTS, device)
    distributed.barrier()  # every rank has read it before the first one writes again
    if state is None:
        return 0
    if state["data"] != data.fingerprint():
        raise UserError(
            f"--data holds other pictures than when {out} was begun; bring them back or choose another --out"
        )
    _refuse_other_model(out / CHECKPOINTS, state["model"], model.state_dict())
    parallel.load(model, optimiser, state["model"], state["optimiser"])
    return state["step"]


def _refuse_other_model(folder: Path, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Raise a UserError that names the first weight that a checkpoint has in another shape, or only one of both has."""
    for name in [*ours, *theirs]:
        shapes = [tuple(weights[name].shape) if name in weights else None for weights in (theirs, ours)]
        if shapes[0] != shapes[1]:
            has, needs = (f"is {shape}" if shape is not None else "is not there" for shape in shapes)
            raise UserError(
                f"{folder} is of another model: {name} {has}, and in this run {needs}; bring back the run's own "
                "checkpoints, or delete the folder to begin it anew"
            )


def state_of(data: TrainingData, model: nn.Module, optimiser: torch.optim.AdamW) -> dict[str, Any]:
    """What restore needs, but for the step. Every rank calls it."""
    weights, moments = parallel.whole(model.state_dict()), parallel.whole(optimiser.state_dict())
    return {"model": weights, "optimiser": moments, "data": data.fingerprint()}


class Saver:
    """Writes checkpoints in a thread of its own, one at a time, while training goes on.

    Whatever ends the block, the write under way is finished first. Other ranks than the first pass enabled=False: they
    write nothing.
    """

    def __init__(self, folder: Path, keep: int, device: torch.device, *, enabled: bool = True) -> None:
        self._folder, self._keep, self._device, self._enabled = folder, keep, device, enabled
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # not a daemon: Python's exit must not cut a file off
        self._writing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state to host memory and have the copy written. Waits for the write before, never for the device.

        Raises:
            UserError: the write before failed.
        """
        if not self._enabled:
            return
        self.wait()  # before copying: host memory holds one copy, not two
        copy, copied = parallel.map_tensors(_to_host, state), None
        if self._device.type == "cuda":
            copied = torch.cuda.current_stream(self._device).record_event(torch.cuda.Event(blocking=True))
        self._writing = self._thread.submit(self._write, step, copy, copied)

    def _write(self, step: int, state: dict[str, Any], copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        save(self._folder, step, state, self._keep)

    def wait(self) -> None:
        """Return when what was saved is on the disk, or raise why it cannot be."""
        if self._writing is not None and (failure := self._writing.exception()) is not None:
            self._writing = None  # raised once
            raise failure

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as failure:
            if error is None:
                raise
            log.error("%s", failure)  # said, not raised: it must not hide what ended the run
        finally:
            self._thread.shutdown()


def _to_host(tensor: Tensor) -> Tensor:
    """A copy of its own; from a GPU it is there only when the current stream has come so far."""
    if tensor.device.type == "cpu":
        return tensor.clone()  # the next update changes weights in place
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write the state after `step` steps, then drop all but the newest `keep`.

    Raises:
        UserError: the disk is full or fails; the checkpoints there before are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, step)
    try:
        with atomic.new_file(path) as file:
            torch.save(state | {"step": step}, file)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
        earlier = steps(folder)
        safe = f"the checkpoint of step {earlier[-1]} is whole" if earlier else "there is no earlier one"
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be written ({reason}); {safe}: make room, then give the same command"
        ) from error
    for old in steps(folder)[:-keep]:
        _path(folder, old).unlink(missing_ok=True)


def say_saved(step: int, steps: int) -> None:
    """Say where a run that was asked to stop has come to, when its checkpoint is there for all ranks."""
    if distributed.rank() == 0:
        log.info("stopped after step %s of %s, which is saved; the same command goes on from there", step, steps)
    distributed.barrier()  # a rank that leaves earlier makes torchrun end the one that writes


def load_newest(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, or None where there is none; damaged ones after it are removed.

    Raises:
        UserError: there are checkpoints and none can be read.
    """
    found = read_newest(folder, device)
    if found is None and steps(folder):
        raise UserError(f"{folder}: no checkpoint there can be read; delete the folder to begin the run anew")
    if found is None:
        return None
    path, state = found
    for step in steps(folder):  # else a later save would count it among the newest, and a resumed run meet it again
        if _path(folder, step) > path:
            _path(folder, step).unlink(missing_ok=True)
    return state


def read_newest(folder: Path, device: torch.device) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be read, and where it is."""
    for step in reversed(steps(folder)):
        path = _path(folder, step)
        try:
            return path, torch.load(path, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, KeyError) as error:
            log.warning("%s is damaged (%s); taking the one before", path, " ".join(str(error).split())[:120])
    return None


def steps(folder: Path) -> list[int]:
    """The steps of which there are checkpoints, rising."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.pt"))


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step:09}.pt"
