"""`stablerep-gen --verify OUT` says which pictures of a folder are missing or damaged; `--repair OUT` mends it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stablerep import shards
from stablerep.config import UserError
from stablerep.generate.config import SWEEP_PREFIX, GenerateConfig
from stablerep.runlog import progress
from stablerep.storage import Folder

ENDINGS = ("_stats.json", ".parquet", ".tar")
MOST_NAMED = 5  # problems of one kind in one shard; a cut tar would fill the screen


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, or with the folder."""

    file: str
    what: str
    shard: int | None = None  # painting this shard again mends it

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class Verdict:
    """What verify found."""

    out: Folder
    shards: int  # looked at
    images: int  # that are whole
    problems: tuple[Problem, ...]

    @property
    def damaged(self) -> set[int]:
        """The shards to paint again."""
        return {problem.shard for problem in self.problems if problem.shard is not None}

    def __str__(self) -> str:
        found = f"{self.images} whole images in {self.shards} shards"
        if not self.problems:
            return f"{self.out}: {found}, nothing wrong"
        mend = f"; stablerep-gen --repair {self.out} paints {len(self.damaged)} shards again" if self.damaged else ""
        return f"{self.out}: {found}, {len(self.problems)} problems{mend}"


def runs_in(out: Folder) -> list[Folder]:
    """The folders of the runs of a sweep; the folder itself where it holds none."""
    runs: list[Folder] = sorted((path.parent for path in out.glob(f"{SWEEP_PREFIX}*/dataset.json")), key=str)
    return runs if runs and not (out / "dataset.json").exists() else [out]


def verify(out: Folder, only: set[int] | None = None) -> Verdict:
    """Read every byte of a folder of shards, or of some shards of it, and decode every picture. Changes nothing.

    Raises:
        UserError: out is no folder of shards.
    """
    if not out.is_dir():
        raise UserError(f"--verify {out} is no folder; name the --out of a stablerep-gen run")
    dataset = shards.read_dataset(out)
    there = {int(path.name.split("_")[0]) for path in shards.done_stats(out)}
    if dataset is None and not there:
        raise UserError(f"--verify {out} holds no shards; name the --out of a stablerep-gen run")
    problems = list(_of_the_folder(out, dataset, there)) if only is None else []
    wanted = sorted(there if only is None else only)
    images = 0
    # Hashing and decoding leave Python's lock: a thread a core.
    with ThreadPoolExecutor(os.cpu_count()) as readers, progress("verify", len(wanted), "shards") as bar:
        found = readers.map(lambda shard: _of_a_shard(out, shard, dataset), wanted)
        for count, (whole, of_shard) in enumerate(found, start=1):
            images += whole
            problems += of_shard
            bar.update(count)
    return Verdict(out, len(wanted), images, tuple(problems))


def recorded_flags(out: Folder) -> dict[str, Any]:
    """The fields of the run that began in this folder.

    Raises:
        UserError: no folder of shards, or one whose dataset.json does not hold them.
    """
    if not out.is_dir():
        raise UserError(f"--repair {out} is no folder; name the --out of a stablerep-gen run")
    dataset = shards.read_dataset(out)
    if dataset is None or "flags" not in dataset["run"]:
        raise UserError(
            f"--repair {out}: its dataset.json is missing, damaged or of an earlier version; "
            "run the stablerep-gen command it was made with: that writes it again and paints what is missing"
        )
    return dataset["run"]["flags"]


def repair(config: GenerateConfig) -> tuple[Verdict, Verdict]:
    """Verify the folder and paint its damaged and missing shards again: the verdicts before and after.

    A damaged shard stays as it is until its new tar is on the disk, so that a run whose prompts or model have gone
    loses nothing. Half files that a stopped run left behind are removed.

    Raises:
        UserError: no shards there, or inputs (prompts, model, flags) that are not those of the run.
    """
    if config.dry_run:
        raise UserError("--repair takes no --dry-run; --verify OUT says what is to be done")
    out = config.folder
    before = verify(out)
    if before.damaged:
        from stablerep.generate.run import generate  # takes seconds; not needed where nothing is wrong

        generate(config, repaint=before.damaged)
    for path in out.glob("*.partial"):
        path.unlink()
    return before, verify(out) if before.problems else before


def _of_the_folder(out: Folder, dataset: dict[str, Any] | None, there: set[int]) -> Iterator[Problem]:
    if dataset is None:
        yield Problem("dataset.json", "missing or damaged; the same stablerep-gen command writes it again")
    elif "num_prompts" in dataset["run"]:
        due = range(-(-dataset["run"]["num_prompts"] // dataset["config"]["prompts_per_shard"]))
        for shard in sorted(set(due) - there):
            yield Problem(f"{shard:06}_stats.json", "missing: the shard is not finished", shard)
        for shard in sorted(there - set(due)):
            yield Problem(f"{shard:06}_stats.json", f"the run has only {len(due)} shards; left as it is")
    halves: list[Folder] = sorted(out.glob("*.partial"), key=str)
    for path in halves:
        yield Problem(path.name, "half a file, left by a run that was stopped, or at work in a run that is not")


def _of_a_shard(out: Folder, shard: int, dataset: dict[str, Any] | None) -> tuple[int, list[Problem]]:
    """How many pictures of a shard are whole, and what is wrong with it."""
    name = f"{shard:06}"
    data = {}
    for ending in ENDINGS:
        try:
            data[ending] = (out / f"{name}{ending}").read_bytes()
        except OSError as error:
            what = "missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            return 0, [Problem(f"{name}{ending}", what, shard)]
    stats_json, table, tar = data.values()
    try:
        stats = json.loads(stats_json)
    except ValueError as error:
        return 0, [Problem(f"{name}_stats.json", f"cannot be read ({error})", shard)]
    try:
        rows = pq.read_table(io.BytesIO(table)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        return 0, [Problem(f"{name}.parquet", f"cannot be read ({' '.join(str(error).split())[:100]})", shard)]
    try:
        pictures = [(row, _of_a_picture(tar, row)) for row in rows if row["size"]]
        found = [
            *((".parquet", what) for what in _of_the_bytes(table, stats["parquet_sha256"])),
            *((".tar", what) for what in _of_the_bytes(tar, stats["tar_sha256"], stats["tar_bytes"])),
            *((".tar", what) for what in _named(pictures)),
            *((".tar", what) for what in _of_the_members(tar, rows)),
            *(("_stats.json", what) for what in _of_the_counts(rows, stats, shard, dataset)),
        ]
    except (KeyError, TypeError) as error:
        return 0, [Problem(name, f"its stats or rows lack something ({type(error).__name__}: {error})", shard)]
    return sum(not what for _, what in pictures), [Problem(name + ending, what, shard) for ending, what in found]


def _of_the_bytes(data: bytes, sha256: str, size: int | None = None) -> Iterator[str]:
    if size is not None and len(data) != size:
        yield f"{size} bytes expected, {len(data)} found"
    elif hashlib.sha256(data).hexdigest() != sha256:
        yield "its bytes are not those that were written"


def _of_a_picture(tar: bytes, row: dict[str, Any]) -> str:
    """What is wrong with one picture; empty if nothing is."""
    data = tar[row["offset"] : row["offset"] + row["size"]]
    if len(data) != row["size"]:
        return "lies past the end of the tar"
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        return "has other bytes than its row says"
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            size = image.size
    except (OSError, SyntaxError, ValueError) as error:  # what PIL's decoders raise
        return f"cannot be decoded ({type(error).__name__})"
    due = row.get("width", size[0]), row.get("height", size[1])
    return "" if size == due else f"is {size[0]} x {size[1]}, not {due[0]} x {due[1]}"


def _named(pictures: list[tuple[dict[str, Any], str]]) -> Iterator[str]:
    bad = [f"picture {row['index']} of prompt {row['prompt_id']} {what}" for row, what in pictures if what]
    yield from bad[:MOST_NAMED]
    if len(bad) > MOST_NAMED:
        yield f"{len(bad) - MOST_NAMED} more pictures like these"


def _of_the_members(tar: bytes, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Whether WebDataset readers, which go by the names in the tar, find what the rows point at."""
    due = Counter((f"{row['prompt_id']:09}.{row['index']}", row["offset"], row["size"]) for row in rows if row["size"])
    due_texts = {f"{row['prompt_id']:09}": row["prompt"] for row in rows if row["size"]}
    found: Counter[tuple[str, int, int]] = Counter()
    texts = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            for member in opened:
                stem, _, ending = member.name.rpartition(".")
                if ending == "json":
                    texts[stem] = json.loads(tar[member.offset_data : member.offset_data + member.size]).get("prompt")
                else:
                    found[stem, member.offset_data, member.size] += 1
    except (tarfile.TarError, ValueError) as error:
        yield f"is no whole tar ({error})"
        return
    if found != due:
        odd = min((found - due) + (due - found))[0]
        yield f"its members are not those of the rows, first at {odd}"
    elif texts != due_texts:
        yield "its prompts are not those of the rows"


def _of_the_counts(
    rows: list[dict[str, Any]], stats: dict[str, Any], shard: int, dataset: dict[str, Any] | None
) -> Iterator[str]:
    """Whether each prompt that belongs here has its K pictures, or as many rows that say why it has not."""
    if stats["images"] != (kept := sum(row["kept"] for row in rows)):
        yield f"{stats['images']} images expected, {kept} kept in the rows"
    if dataset is None:
        return
    if stats["run"] != dataset["hash"]:
        yield f"of another run ({stats['run']}) than dataset.json ({dataset['hash']})"
        return
    config, k = dataset["config"], dataset["config"]["num_images_per_prompt"]
    kept_of, rows_of = Counter(row["prompt_id"] for row in rows if row["kept"]), Counter(r["prompt_id"] for r in rows)
    if "prompts_per_shard" in config and "num_prompts" in dataset["run"]:
        first = shard * config["prompts_per_shard"]
        due = set(range(first, min(first + config["prompts_per_shard"], dataset["run"]["num_prompts"])))
        if missing := due - rows_of.keys():
            yield f"{len(missing)} prompts have no picture, first {min(missing)}"
        if strange := rows_of.keys() - due:
            yield f"{len(strange)} prompts belong elsewhere, first {min(strange)}"
    wrong = [prompt for prompt in rows_of if kept_of[prompt] != k and (kept_of[prompt] > k or rows_of[prompt] < k)]
    if wrong:
        yield f"{len(wrong)} prompts have not {k} pictures, first {wrong[0]} with {kept_of[wrong[0]]}"
