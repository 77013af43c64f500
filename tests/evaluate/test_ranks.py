"""stablerep-eval under torchrun: the ranks share the photos, the first one speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from stablerep.evaluate.config import EvaluateConfig
from stablerep.evaluate.run import evaluate
from tests.data.pictures import encode, random_pixels

SCRIPT = "from stablerep.cli import evaluate; evaluate()\n"


def test_two_ranks_find_what_one_does(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for split, count in (("train", 12), ("test", 5)):
        for name in ("a", "b"):
            (photos / split / name).mkdir(parents=True)
            for i in range(count):
                path = photos / split / name / f"{i}.png"
                path.write_bytes(encode(random_pixels(100 * count + 20 * ord(name) + i)))
    (photos / "test/a/2.png").write_bytes(b"a letter")
    script, out = tmp_path / "eval.py", tmp_path / "two"
    script.write_text(SCRIPT)
    flags = ["--checkpoint", "pixels", "--data", str(photos), "--image-size", "8", "--epochs", "5", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), *flags]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run([*command, "--out", str(out)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("photos of") == 1 and "1 photo could not be decoded" in done.stdout
    two = json.loads((out / "results.json").read_text())
    one = evaluate(
        EvaluateConfig(
            checkpoint="pixels", data=str(photos), out=tmp_path / "one", image_size=8, epochs=5, device="cpu",
            feature_cache=tmp_path / "cache",
        )
    )  # fmt: skip
    same = ("train_photos", "test_photos", "linear_top1", "knn_top1", "damaged_photos", "test_digest")
    assert [two[name] for name in same] == [one[name] for name in same]
    again = subprocess.run([*command, "--out", str(out)], env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and again.stdout.count("photos of") == 1
