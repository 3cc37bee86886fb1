"""A disk that is full: the checkpoint from before stays whole, one line, exit status 2.

The limit on the size of a file (RLIMIT_FSIZE) stands for the disk; it holds for a process, so each run is a process.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from utils import load_checkpoint

HERE = Path(__file__).parent
TRAIN = f"--mode train --dataset line {tiny.SMALL} --batch_size 4000 --sampling_number 2 --save_minutes 0.0001"
# Run the words in one process twice: freely, then with small files only.
PROGRAM = """
import resource, shutil, sys
import torch
import run
words = sys.argv[1].split()
first = run.main(words + ["--epochs", "1"])
shutil.copytree(".", "../before")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
print("LIMIT", file=sys.stderr)
second = run.main(words + ["--epochs", "3"])
print(first, second)
"""


def run_twice(folder: Path, words: str, limit: int) -> list[str]:
    """Run PROGRAM in `folder`; what the second run said on stderr, without the progress bar."""
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", PROGRAM, words, str(limit)], cwd=folder, capture_output=True,
                          text=True, timeout=300, env={"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"})
    assert done.stdout.splitlines()[-1] == "0 2", done.stderr
    said = done.stderr.split("LIMIT\n")[1].replace("\r", "\n").splitlines()
    return [line for line in said if line and "/s" not in line]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 5_000])  # at once, and in the middle of a checkpoint
def test_a_full_disk_leaves_the_checkpoint_from_before(tmp_path, limit):
    place = tmp_path / "place"
    shown = run_twice(place, TRAIN, limit)
    assert len(shown) == 1 and shown[0].startswith("run.py: error: cannot write "), shown
    before = {path.name: load_checkpoint(path) for path in (tmp_path / "before").rglob("*.pth")}
    after = {path.name: load_checkpoint(path) for path in place.rglob("*.pth")}
    assert before.keys() <= after.keys()
    for name, record in before.items():
        assert record["step"] == after[name]["step"]
        assert all(torch.equal(value, after[name]["ema"][key]) for key, value in record["ema"].items())
    assert not list(place.rglob("*.partial*"))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 10_000])
def test_a_disk_that_is_full_for_tensorboard_is_one_line(tmp_path, limit):
    """At its first byte, and at a figure: the log is smaller than that, and no checkpoint is due before it."""
    words = f"{TRAIN} --loss itd --tb_logger".replace("--save_minutes 0.0001", "")
    (line,) = run_twice(tmp_path / "place", words, limit)
    assert line.startswith("run.py: error: cannot write TensorBoard's events in "), line
