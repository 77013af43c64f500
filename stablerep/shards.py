"""Shards: encoded pictures in WebDataset tars, a Parquet row for each, and a stats file that says "done".

    out/dataset.json          the resolved config; a rerun with another one refuses
    out/README.md             a dataset card, by which datasets.load_dataset(out) opens the tars and nothing else
    out/000000.tar            000000042.json, 000000042.0.jpg ... for prompt id 42
    out/000000.parquet        a row per picture: where it lies in the tar, how it was made
    out/000000_stats.json     written last, after fsync: the shard is done if and only if this exists

A picture that was painted and not kept has a row that says why, and no bytes: offset and size are 0.

Tar bytes depend on the contents alone (sorted by prompt id and picture index, mtime 0): the same run gives the same
file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from stablerep import atomic
from stablerep.config import UserError, fingerprint
from stablerep.run_folder import refuse_foreign_files, refuse_other_run
from stablerep.storage import Folder, RemotePath, read_all, write

STATS_PATTERN = "[0-9]*_stats.json"
CLAIMS = ".claims"  # who paints what: generate/claims.py
CARD_NAME = "README.md"
# Without it datasets takes dataset.json, the stats and the rows for samples.
CARD = """---
configs:
- config_name: default
  data_files: "*.tar"
---
Pictures that stablerep-gen painted: WebDataset shards. A sample is a prompt, a JSON that says how its pictures
were made, and the pictures 0, 1, ...; a row of NAME.parquet says where a picture lies in NAME.tar.

    import datasets
    prompts = datasets.load_dataset("PATH OF THIS FOLDER", split="train")
"""
INDEXED = ("prompt_id", "prompt", "label", "offset", "size", "kept")  # columns; a label only where the prompts had one
MAKE_ANEW = "run its stablerep-gen command again to make it anew"

AnyFolder = TypeVar("AnyFolder", bound=Folder)


@dataclass(frozen=True)
class Picture:
    """One encoded picture and what its Parquet row says of how it was made."""

    index: int
    data: bytes  # empty: the picture is not in the tar, only its row does
    row: dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """The pictures of one prompt."""

    prompt_id: int
    prompt: str
    ending: str  # "jpg", "png" or "webp"
    pictures: Sequence[Picture]
    settings: dict[str, Any] = field(default_factory=dict)  # beside the prompt in its JSON


def start_dataset(out: Folder, config: dict[str, Any], run: dict[str, Any] | None = None) -> None:
    """Make `out` the home of one run: write its dataset.json, or check that the one there is the same run's.

    config is what the bytes of the shards follow from; run, what else is good to know of the run that began here.
    A dataset.json that was lost or damaged is written anew if the shards there were made with this config.

    Raises:
        UserError: the folder holds another run's shards, or files that are no run's.
    """
    make_folder(out)
    path = out / "dataset.json"
    if (dataset := read_dataset(out)) is not None:
        refuse_other_run(out, dataset["config"], config)
        return
    sweep = [entry.parent.name for entry in out.glob("*/dataset.json")]
    if sweep:
        raise UserError(f"--out {out} holds a sweep ({', '.join(sorted(sweep)[:3])}); choose another --out for one run")
    others = [entry.name for entry in out.iterdir() if not entry.name.endswith(".partial") and entry != path]
    ours = {CLAIMS} | ({CARD_NAME} if CARD_NAME in others and CARD.startswith((out / CARD_NAME).read_text()) else set())
    others = sorted(set(others) - ours)
    if others and not _all_made_with(out, fingerprint(config)):
        refuse_foreign_files(out, others)
    about = {"hash": fingerprint(config), "config": config, "run": run or {}}
    write(out / CARD_NAME, CARD)
    write(path, json.dumps(about, indent=1).encode())


def make_folder(out: Folder) -> None:
    """
    Raises:
        UserError: a file is there, or in the way.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--out {out} is a file, or lies below one; choose a folder") from error
    except FileNotFoundError as error:  # parents were to be made: a file system, such as /proc, that makes none
        raise UserError(f"--out {out} cannot be made there; choose another folder") from error


def read_dataset(out: Folder) -> dict[str, Any] | None:
    """dataset.json: hash, config and run; None if it is missing or damaged."""
    try:
        dataset = json.loads((out / "dataset.json").read_text())
        return {"run": {}} | dataset if dataset["hash"] == fingerprint(dataset["config"]) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def is_done(out: Path, shard: int) -> bool:
    """Whether a shard is whole; one that was damaged since counts as not done, so that a rerun makes it again."""
    stats_path = _stats_path(out, shard)
    if not stats_path.exists():
        return False
    try:
        _open_shard(stats_path)
    except UserError:
        return False
    return True


def read_done(out: Path, among: Iterable[int] | None = None) -> dict[int, dict[str, Any]]:
    """The stats of each whole shard, or of those among some."""
    numbers = (int(path.name.split("_")[0]) for path in done_stats(out)) if among is None else among
    return {shard: _read_json(_stats_path(out, shard)) for shard in numbers if is_done(out, shard)}


def write_shard(out: Path, shard: int, samples: Sequence[Sample], images_per_prompt: int = 0) -> dict[str, Any]:
    """Write one shard whole: tar, rows, then the stats that make it count, which it returns.

    Each file is fsynced and renamed. The stats count the prompts that kept some pictures, but
    fewer than images_per_prompt.

    Raises:
        UserError: the folder, or its dataset.json, has gone since start_dataset.
    """
    dataset = read_dataset(out)
    if dataset is None:
        raise UserError(f"--out {out} has lost its dataset.json while the run wrote to it; run the same command again")
    tar, rows = _pack(samples)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    table = buffer.getvalue()
    # A shard that is made again must not count as done while one of its files is new and the other old: both tars may
    # well be of the same length.
    _stats_path(out, shard).unlink(missing_ok=True)
    atomic.write(out / f"{shard:06}.tar", tar)
    atomic.write(out / f"{shard:06}.parquet", table)
    stats = {
        "run": dataset["hash"],
        "prompts": len(samples),
        "images": sum(row["kept"] for row in rows),
        "tar_bytes": len(tar),
        "tar_sha256": hashlib.sha256(tar).hexdigest(),
        "parquet_sha256": hashlib.sha256(table).hexdigest(),
        "short": sum(0 < _kept(sample) < images_per_prompt for sample in samples),
        "reasons": dict(sorted(Counter(row["reason"] for row in rows if row.get("reason")).items())),
        **_scores(rows),
    }
    atomic.write(_stats_path(out, shard), json.dumps(stats).encode())
    return stats


def first_sample(out: Folder) -> dict[str, Any] | None:
    """The JSON of the first sample of the done shards; None where there is none."""
    for stats in done_stats(out):
        data = (out / stats.name.replace("_stats.json", ".tar")).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            if (member := tar.next()) is not None:
                return json.loads(data[member.offset_data : member.offset_data + member.size])
    return None


def read_stats(out: Folder) -> Iterator[dict[str, Any]]:
    """The stats of each done shard."""
    paths = done_stats(out)
    for path, data in zip(paths, read_all(paths), strict=True):
        yield _parse(path, data)


def done_stats(out: AnyFolder) -> list[AnyFolder]:
    """The stats files of the done shards, in the order of the shards."""
    return sorted(out.glob(STATS_PATTERN))  # type: ignore[arg-type]


def open_shards(out: Folder) -> list[tuple[Folder, pa.Table, dict[str, Any]]]:
    """Of each done shard the tar, the rows that say where its pictures lie, and its stats.

    Raises:
        UserError: no done shard, or a shard whose tar or rows are missing, cut short or unreadable.
    """
    if not any(done_stats(out)):
        raise UserError(f"{out} holds no finished shard; run stablerep-gen --out {out} again to go on")
    if isinstance(out, Path):
        return [_open_shard(path) for path in done_stats(out)]
    done, sizes = done_stats(out), out.sizes()
    rows = [out / path.name.replace("_stats.json", ".parquet") for path in done]
    return [
        _open_remote_shard(path, _parse(path, stats), table, sizes)
        for path, stats, table in zip(done, read_all(done), read_all(rows), strict=True)
    ]


def read_pictures(out: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each picture in the tars of the done shards: its Parquet row and its encoded bytes."""
    for stats_path in done_stats(out):
        tar = out / stats_path.name.replace("_stats.json", ".tar")
        with tar.open("rb") as file:
            for row in pq.read_table(tar.with_suffix(".parquet")).to_pylist():
                if row["size"] == 0:
                    continue
                file.seek(row["offset"])
                yield row, file.read(row["size"])


def _open_shard(stats_path: Path) -> tuple[Path, pa.Table, dict[str, Any]]:
    """A done shard, or a UserError that says what is broken."""
    tar = stats_path.with_name(stats_path.name.replace("_stats.json", ".tar"))
    rows_path = tar.with_suffix(".parquet")
    try:
        stats = json.loads(stats_path.read_text())
        expected = stats["tar_bytes"]
        rows = _read_rows(rows_path)
        found = tar.stat().st_size
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        broken = next((path for path in (stats_path, rows_path, tar) if path.name in str(error)), rows_path)
        if isinstance(error, (KeyError, json.JSONDecodeError)):
            broken = stats_path
        raise UserError(f"{broken} is damaged ({type(error).__name__}); {MAKE_ANEW}") from error
    if found != expected:
        raise UserError(f"{tar} is damaged: {expected} bytes expected, {found} found; {MAKE_ANEW}")
    return tar, rows, stats


def _open_remote_shard(
    stats_path: RemotePath, stats: dict[str, Any], rows: bytes, sizes: dict[str, int]
) -> tuple[RemotePath, pa.Table, dict[str, Any]]:
    tar = stats_path.parent / stats_path.name.replace("_stats.json", ".tar")
    try:
        table = _read_rows(io.BytesIO(rows))
        expected = stats["tar_bytes"]
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(f"the shard of {stats_path} is damaged ({type(error).__name__}); {MAKE_ANEW}") from error
    if sizes.get(tar.name) != expected:
        found = sizes.get(tar.name, "none")
        raise UserError(f"{tar} is damaged: {expected} bytes expected, {found} found; {MAKE_ANEW}")
    return tar, table, stats


def _read_rows(file: Path | io.BytesIO) -> pa.Table:
    known = pq.read_schema(file).names
    return pq.read_table(file, columns=[name for name in INDEXED if name in known or name != "label"])


def _pack(samples: Sequence[Sample]) -> tuple[bytes, list[dict[str, Any]]]:
    buffer = io.BytesIO()
    rows = []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:

        def add(name: str, data: bytes) -> int:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            offset = buffer.tell() + tarfile.BLOCKSIZE  # a USTAR header is one block
            tar.addfile(member, io.BytesIO(data))
            return offset

        for sample in sorted(samples, key=lambda sample: sample.prompt_id):
            key = f"{sample.prompt_id:09}"
            num_images = _kept(sample)
            about = {"prompt_id": sample.prompt_id, "prompt": sample.prompt, "num_images": num_images}
            if num_images:  # WebDataset readers stumble over a key without a picture
                add(f"{key}.json", json.dumps(about | sample.settings, ensure_ascii=False).encode())
            for picture in sorted(sample.pictures, key=lambda picture: picture.index):
                name = f"{key}.{picture.index}.{sample.ending}"
                offset = add(name, picture.data) if picture.data else 0
                rows.append(
                    {
                        "prompt_id": sample.prompt_id,
                        "index": picture.index,
                        "prompt": sample.prompt,
                        "kept": bool(picture.data),
                        **picture.row,
                        "offset": offset,
                        "size": len(picture.data),
                        "sha256": hashlib.sha256(picture.data).hexdigest() if picture.data else "",
                    }
                )
    return buffer.getvalue(), rows


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _parse(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} is damaged ({error}); run the same stablerep-gen command again to mend it") from error


def _parse(path: Folder, data: bytes) -> dict[str, Any]:
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run the same stablerep-gen command again to mend it") from error


def _kept(sample: Sample) -> int:
    return sum(bool(picture.data) for picture in sample.pictures)


def _scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each column that is a score, how many kept pictures have one and their sum; nothing where there is none."""
    scores = {}
    for name in (name for name in next(iter(rows), {}) if name.endswith("_score")):
        known = [row[name] for row in rows if row["kept"] and not math.isnan(row[name])]
        if known:
            scores[name] = [len(known), math.fsum(known)]
    return {"scores": scores} if scores else {}


def _all_made_with(out: Folder, run: str) -> bool:
    """Whether there are done shards, and all of them were made by the run with this hash."""
    stats = list(read_stats(out))
    return bool(stats) and all(each.get("run") == run for each in stats)


def _stats_path(out: Path, shard: int) -> Path:
    return out / f"{shard:06}_stats.json"
