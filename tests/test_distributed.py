"""Two processes do what one does: training, samples and measurements, and ends that are no hang.

Each run is a real torchrun with gloo on the CPU; a process takes seconds to start, so most of this file is slow.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny

import run
from utils import load_checkpoint

pytestmark = pytest.mark.usefixtures("full_networks")  # as torchrun's own processes have them
HERE = Path(__file__).parent.parent
POINTS = (
    "--mode train --dataset line --device cpu --a_dim 2 --kld_weight 0.5 --mmd_weight 0.5 --z_dropout 0.2 "
    "--unets_channels 16 --encoder_channels 16 --batch_size 100 --diffusion_steps 10 --sampling_number 3 "
    "--learning_rate 1e-3 --max_steps 40 --lr_schedule constant"
)


def launch(words: str, folder: Path, program: str = "") -> subprocess.Popen:
    """Two processes of run.py, or of a program's text, with the words, in `folder`."""
    path = HERE / "run.py"
    if program:
        path = folder.parent / f"{folder.name}.py"
        path.write_text(program)
    order = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(path)]
    return subprocess.Popen([*order, *words.split()], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)})


def torchrun(words: str, folder: Path, program: str = "") -> tuple[int, str, str]:
    """(exit status, stdout, stderr)"""
    process = launch(words, folder, program)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def folders(tmp_path: Path) -> tuple[Path, Path]:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    return one, two


def alone(words: str, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    assert run.main(words.split()) == 0


def last(folder: Path) -> dict:
    (path,) = (folder / "models").rglob("last.pth")
    return load_checkpoint(path)


def distance(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path, monkeypatch):
    """KL and MMD over the latents of both, with their gradients; the global batch, noise and log are the same."""
    one, two = folders(tmp_path)
    alone(POINTS, one, monkeypatch)
    start = load_checkpoint(tiny.checkpoint(POINTS.removeprefix("--mode train")))["model"]
    status, out, err = torchrun(POINTS, two)
    assert status == 0, err
    a, b = last(one), last(two)
    assert distance(a["model"], start) > 0.01  # training moves the weights a thousand times as far
    assert distance(a["model"], b["model"]) < 1e-5 and distance(a["ema"], b["ema"]) < 1e-5
    lines = [json.loads(next((folder / "logs").rglob("metrics.jsonl")).read_text()) for folder in (one, two)]
    for part in ("train", "val"):
        assert lines[0][part] == pytest.approx(lines[1][part], abs=1e-5)
    assert out.count("trained:") == 1  # one process writes and prints


@pytest.mark.slow
@pytest.mark.parametrize("model", ["diff", "vanilla", "vae"])
def test_two_processes_train_every_model_on_images(tmp_path, monkeypatch, model):
    one, two = folders(tmp_path)
    words = (f"--mode train --model {model} --dataset digits {tiny.SMALL} --dropout 0 --max_steps 5 --batch_size 16 "
             f"--sampling_number 2 --lr_schedule constant --learning_rate 1e-3 "
             f"{'' if model == 'vanilla' else '--kld_weight 0.1'}")
    alone(words, one, monkeypatch)
    status, _, err = torchrun(words, two)
    assert status == 0, err
    assert distance(last(one)["model"], last(two)["model"]) < 1e-4


@pytest.mark.slow
def test_two_processes_draw_the_files_that_one_draws(tmp_path, monkeypatch):
    one, two = folders(tmp_path)
    words = f"--model vanilla --dataset digits --batch_size 4 --sampling_number 18 {tiny.SMALL}"
    for folder in (one, two):
        monkeypatch.chdir(folder)
        tiny.checkpoint("--model vanilla --dataset digits")
    for mode in ("eval_fid", "eval"):
        alone(f"--mode {mode} {words}", one, monkeypatch)
        status, out, err = torchrun(f"--mode {mode} {words}", two)
        assert status == 0, err
        assert out.count("model: ") == 1
    images = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")} for folder in (one, two)]
    assert len(images[0]) == 18 + 18 + 1 and images[0] == images[1]


@pytest.mark.slow
def test_two_processes_measure_the_likelihood_that_one_measures(tmp_path, monkeypatch):
    one, two = folders(tmp_path)
    words = f"--mode nll --model vanilla --dataset digits --num_images 21 --npoints 4 {tiny.SMALL}"
    for folder in (one, two):
        monkeypatch.chdir(folder)
        tiny.checkpoint("--model vanilla --dataset digits")
    alone(words, one, monkeypatch)
    status, out, err = torchrun(words, two)
    assert status == 0, err
    entries = [json.loads(next(folder.rglob("nll.json")).read_text())["entries"] for folder in (one, two)]
    for a, b in zip(*entries, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == (pytest.approx(b[name], rel=1e-5) if isinstance(a[name], float) else b[name])
    assert out.count("results: ") == 1


def children(process: subprocess.Popen) -> list[int]:
    """The workers of a torchrun."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(number) for number in text.split() if "run.py" in Path(f"/proc/{number}/cmdline").read_text()]


def wait_for(folder: Path, pattern: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not list(folder.rglob(pattern)):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


LONG = POINTS.replace("--max_steps 40", "--epochs 9999 --save_epochs 5000 --display_epochs 9999 --save_minutes 0.001")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_message(tmp_path):
    process = launch(LONG, tmp_path)
    wait_for(tmp_path, "last.pth", process)
    began = time.monotonic()
    os.kill(children(process)[1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and time.monotonic() - began < 60
    said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("run.py: ")]
    assert len(said) == 1 and "process 0 lost another one; the same command goes on" in said[0], err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves_and_ends_every_process(tmp_path, number):
    process = launch(LONG, tmp_path)
    wait_for(tmp_path, "last.pth", process)
    workers = children(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert err.count("run.py: stopped by") == 1
    assert not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers)
    log = [json.loads(line) for path in tmp_path.rglob("metrics.jsonl") for line in path.read_text().splitlines()]
    assert last(tmp_path)["step"] >= max([line["step"] for line in log], default=1)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    status, _, err = torchrun(POINTS.replace("--batch_size 100", "--batch_size 101"), tmp_path)
    assert status != 0 and "--batch_size 101 does not divide among 2 processes" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_modes_that_are_not_shared_are_one_process_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.checkpoint("--dataset digits")
    status, out, err = torchrun(f"--mode save_latent --dataset digits {tiny.SMALL}", tmp_path)
    assert status == 0, err
    assert out.count("latents of digits") == 1
    with np.load(next(tmp_path.rglob("latents.npz"))) as latents:
        assert len(latents["all_a"]) == len(latents["all_attr"]) > 100


BROKEN_PICTURE = """
import sys
import distributed, run, training
from utils import CommandError

plain = training.Run._batches

def breaking(self):
    for step, batch in enumerate(plain(self), 1):
        if step == 5 and distributed.rank() == 1:
            raise CommandError("a.png is not a readable image")
        yield batch

training.Run._batches = breaking
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_picture_that_one_process_cannot_read_stops_all_with_the_state_saved(tmp_path):
    status, out, err = torchrun(POINTS, tmp_path, program=BROKEN_PICTURE)
    said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("run.py: ")]
    assert status != 0 and sorted(said) == [
        "run.py: error: a.png is not a readable image",
        "run.py: stopped, since another process could not read its batch; the same command goes on from here"], err
    assert out.count("last.pth, step 4") == 1 and last(tmp_path)["step"] == 4
    status, out, err = torchrun(POINTS, tmp_path)
    assert status == 0 and "going on at step 4 of 40" in out, err


LOGGED = POINTS.replace("--max_steps 40", "--epochs 2 --save_minutes 1e-9").replace("--batch_size 100",
                                                                                 "--batch_size 2000")


@pytest.mark.slow
def test_a_resumed_epoch_logs_what_an_uncut_one_logs(tmp_path, monkeypatch):
    """The running sums of both processes are stored, not rank 0's for both."""
    one, two = folders(tmp_path)
    status, _, err = torchrun(LOGGED, one)
    assert status == 0, err
    cut = launch(LOGGED.replace("--epochs 2", "--epochs 2 --display_epochs 9"), two)
    wait_for(two, "last.pth", cut)
    cut.send_signal(signal.SIGTERM)
    cut.communicate(timeout=300)
    reached = last(two)["step"]
    assert reached % (last(two)["rows"] // 2000), "the cut has to be within an epoch"
    status, out, err = torchrun(LOGGED, two)
    assert status == 0 and "going on at step" in out, err
    logs = [[json.loads(line) for line in next((folder / "logs").rglob("metrics.jsonl")).read_text().splitlines()]
            for folder in (one, two)]
    for a, b in zip(*logs, strict=True):
        assert a["train"] == pytest.approx(b["train"], rel=1e-12) and a["val"] == pytest.approx(b["val"], rel=1e-12)


SLOW_VALIDATION = """
import datetime, sys, time
import distributed, run, training
distributed.LIMIT = datetime.timedelta(seconds=3)
validation = training.validation
training.validation = lambda *args: time.sleep(8) or validation(*args)
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_validation_that_takes_longer_than_the_limit_of_the_group_is_waited_for(tmp_path):
    status, _, err = torchrun(POINTS.replace("--max_steps 40", "--max_steps 90"), tmp_path, program=SLOW_VALIDATION)
    assert status == 0, err
    assert last(tmp_path)["step"] == 90
