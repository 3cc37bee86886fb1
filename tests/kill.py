"""Interrupt runs in every way, run them again, and compare what they leave with a run that was left alone.

    PYTHONPATH=. python tests/kill.py kill [KILLS] [SEED]    SIGKILL a training run at random moments
    PYTHONPATH=. python tests/kill.py signals                SIGTERM, Ctrl-C and a second signal, in a training run
    PYTHONPATH=. python tests/kill.py images                 SIGKILL eval_fid

Every attempt is the same command line in a process of its own, forked after the imports, so that the first second of a
run is the program's. Prints a line of JSON; 'identical' means every bit of weights, averaged weights, log and images.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tiny
import torch
import torch._dynamo  # the optimisers need it; imported once, before the fork

import run
import training  # noqa: F401
from modes import samples  # noqa: F401
from utils import load_checkpoint

TRAIN = (
    "--model diff --mode train --dataset line --device cpu --a_dim 2 --kld_weight 0.1 --z_dropout 0.1 --unets_channels "
    "16 --encoder_channels 16 --batch_size 400 --diffusion_steps 10 --sampling_number 4 --save_epochs 2 "
    "--display_epochs 100 --save_minutes 0.0005 --epochs 4"
)
IMAGES = f"--mode eval_fid --model vanilla --dataset digits --sampling_number 40 --batch_size 4 {tiny.SMALL}"
LONGEST = 300  # seconds that one attempt may take


def start(folder: Path, words: str, dawdle: float = 0) -> int:
    """Fork a process that runs the command in `folder`; return its number.

    dawdle  seconds between a file that is written and its being put in its place: a long moment to be killed in
    """
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        torch.set_num_threads(1)
        replace = os.replace
        os.replace = lambda source, target: (time.sleep(dawdle), replace(source, target))
        status = run.main(words.split())
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """The exit status of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_when(child: int, due: Callable[[], bool]) -> None:
    """SIGKILL as soon as it is due, where the process still runs."""
    end = time.monotonic() + LONGEST
    while not due() and time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def writing(folder: Path, skipped: int) -> Callable[[], bool]:
    """Is a temporary file beside the checkpoints, after so many others?"""
    seen = set()

    def due() -> bool:
        for path in folder.glob("models/*/.*.partial*"):
            try:
                seen.add(path.stat().st_ino)
            except FileNotFoundError:
                continue
        return len(seen) > skipped

    return due


def outcome(folder: Path) -> dict:
    """What a finished training run leaves, to be compared bit by bit."""
    (home,) = (folder / "models").iterdir()
    (log,) = (folder / "logs").rglob("metrics.jsonl")
    records = {path.name: load_checkpoint(path) for path in sorted(home.glob("*.pth"))}
    return {"files": sorted(path.name for path in home.iterdir()), "log": log.read_bytes(), "records": records}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def steps_done(folder: Path) -> int:
    found = list(folder.glob("models/*/last.pth"))
    return load_checkpoint(found[0], whole=False)["step"] if found else 0


def finish(folder: Path, words: str) -> None:
    status = wait(start(folder, words))
    assert status == 0, (folder / "output.txt").read_text()


def places(root: Path) -> tuple[Path, Path]:
    """Two empty folders: of the run that is left alone, and of the one that is cut."""
    alone, cut = root / "alone", root / "cut"
    alone.mkdir()
    cut.mkdir()
    return alone, cut


def kill(root: Path, kills: int = 20, seed: int = 0) -> dict:
    """A training run that is killed so many times: in turn while it writes, in its first second, at any moment."""
    alone, cut = places(root)
    words = f"{TRAIN} --epochs {4 + kills // 2}"
    began = time.monotonic()
    finish(alone, words)
    length = time.monotonic() - began
    generator, reached = random.Random(seed), []
    for number in range(kills):
        kind = number % 3
        child = start(cut, words, dawdle=0.1 if kind == 0 else 0)
        moment = writing(cut, generator.randrange(4)) if kind == 0 else after(
            generator.uniform(0, 1 if kind == 1 else length / 4))
        kill_when(child, moment)
        reached.append(steps_done(cut))
    finish(cut, words)
    return {"identical": same(outcome(alone), outcome(cut)), "steps": reached, "seconds": time.monotonic() - began}


def signals(root: Path) -> dict:
    """A training run that is signalled to stop, twice; and one signalled twice at once, while it writes."""
    alone, cut = places(root)
    finish(alone, TRAIN)
    statuses, reached = [], []
    for number in (signal.SIGTERM, signal.SIGINT):
        child, before = start(cut, TRAIN), steps_done(cut)
        while steps_done(cut) <= before:
            time.sleep(0.002)
        os.kill(child, number)
        statuses.append(wait(child))
        reached.append(steps_done(cut))
    finish(cut, TRAIN)
    identical = same(outcome(alone), outcome(cut))
    third = root / "third"
    third.mkdir()
    child, due = start(third, TRAIN, dawdle=LONGEST), writing(third, 0)
    while not due():
        time.sleep(0.002)
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child, number)
        time.sleep(0.2)
    return {"identical": identical, "statuses": statuses, "steps": reached, "second": wait(child),
            "second_seconds": time.monotonic() - began,
            "said": (cut / "output.txt").read_text().count("the same command goes on")}


def images(root: Path) -> dict:
    """eval_fid, killed in the middle and run again, beside one left alone; and one of another setting in the end."""
    alone, cut = places(root)
    for folder in (alone, cut):
        os.chdir(folder)
        tiny.checkpoint("--model vanilla")
    finish(alone, IMAGES)
    kill_when(start(cut, IMAGES, dawdle=0.02), lambda: len(list(cut.rglob("0*.png"))) >= 9)
    halfway = read_images(cut)
    finish(cut, IMAGES)
    identical = read_images(alone) == read_images(cut)
    finish(cut, IMAGES + " --r_seed 5 --sampling_number 8")
    other = read_images(cut)
    return {"identical": identical, "halfway": len(halfway), "others": sorted(other),
            "mixed": len(set(other.values()) & set(halfway.values()))}


def read_images(root: Path) -> dict[str, bytes]:
    (folder,) = root.rglob("eval-fid-fast")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        what = {"kill": kill, "signals": signals, "images": images}[sys.argv[1]]
        result = what(Path(place), *map(int, sys.argv[2:]))
        os.chdir("/")
        print(json.dumps(result))
