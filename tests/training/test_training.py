"""What a run leaves, says and reads, and what it does where one of these fails."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import (
    BATCH,
    EVERYTHING,
    EXP,
    ROOT,
    ROWS,
    TINY,
    VANILLA,
    VANILLA_EXP,
    Killed,
    assert_equal,
    at_step,
    kill,
    last,
    lines,
    metrics,
    part,
    train,
    uncut,
)

import training
from config import Config
from dataset import registry
from experiment import checkpoint, compiling, fit_gaussian, progress
from utils import CommandError, RunError, load_checkpoint, locked

# ---------------------------------------------------------------------------------------------------------------------
# What a run leaves


def test_files_of_a_run():
    assert train(f"{VANILLA} --model_folder m --log_folder l --img_folder i") == 0
    assert {p.name for p in Path("m", VANILLA_EXP).iterdir()} == {"model-2.pth", "model-3.pth", "last.pth"}
    assert Path("l", VANILLA_EXP, "metrics.jsonl").exists()
    assert not Path("models").exists() and not Path("logs").exists() and not Path("imgs").exists()


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_a_step_of_weights_that_lie_channels_last_is_the_same(kind):
    def after(layout):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(4, 6, 3)
        model.weight.data = model.weight.data.contiguous(memory_format=layout)
        stepper = training.Stepper(model, Config(optimizer=kind, precision="fp32"), torch.device("cpu"))
        for _ in range(3):
            model.weight.grad, model.bias.grad = torch.randn(6, 4, 3, 3), torch.randn(6)
            stepper.optimizer.step()
        moment = stepper.optimizer.state[model.weight]["exp_avg"]
        assert moment.shape == model.weight.shape and moment.stride() == model.weight.stride()
        return model.weight.detach()

    assert torch.equal(after(torch.contiguous_format), after(torch.channels_last))


def test_the_log_is_a_mean_over_the_count_and_in_named_terms(monkeypatch):
    seen = []
    update = training.Stepper.update
    monkeypatch.setattr(training.Stepper, "update", lambda *args: seen.append(update(*args)) or seen[-1])
    assert train(EVERYTHING) == 0
    log = lines(EXP)
    assert [line["epoch"] for line in log] == [1, 2, 3]
    for line, steps in zip(log, (seen[0:2], seen[2:4], seen[4:6]), strict=True):
        assert set(line["train"]) == {"loss", "denoise", "kl", "mmd"} == set(line["val"])
        for name, value in line["train"].items():
            assert value == pytest.approx(np.mean([terms[name].item() for terms in steps]), rel=1e-6)
        assert all(error >= 0 for error in line["val_se"].values())


def batches(monkeypatch, words):
    """The batches that a run trains on: list of [B, d] arrays."""
    seen = []
    update = training.Stepper.update

    def spy(self, x, *args):
        seen.append(x.flatten(1).numpy().copy())
        return update(self, x, *args)

    monkeypatch.setattr(training.Stepper, "update", spy)
    assert train(words) == 0
    return seen


def test_training_data_are_shuffled_anew_every_epoch(monkeypatch):
    rows = part("moons", "train").batch(range(ROWS)).flatten(1).numpy()
    seen = batches(monkeypatch, VANILLA)
    order = [int(np.flatnonzero((rows == x).all(1))[0]) for x in np.concatenate(seen)]
    epochs = np.array(order).reshape(3, 2 * BATCH)
    assert all(len(set(epoch)) == 2 * BATCH for epoch in epochs)  # no row twice in an epoch
    assert not (epochs[0] == epochs[1]).all() and not (epochs[0] == np.sort(epochs[0])).all()
    assert len(set(order)) > 2 * BATCH  # the rows left over are not always the same


def test_another_seed_is_another_run(monkeypatch):
    assert train(f"{VANILLA} --epochs 1") == 0
    assert train(f"{VANILLA} --epochs 1 --r_seed 1 --tag b") == 0
    one, two = last()["model"], last(VANILLA_EXP + "_b")["model"]
    assert not torch.equal(one["network.first.weight"], two["network.first.weight"])


def test_max_steps_ends_a_run():
    assert train(f"{VANILLA} --max_steps 3") == 0
    assert last()["step"] == 3 and lines()[-1]["step"] == 3


def test_a_checkpoint_says_what_it_is():
    assert train(f"{VANILLA} --epochs 1") == 0
    record = last()
    assert (record["kind"], record["epoch"], record["step"], record["unit"]) == ("vanilla", 1, 2, "mean squared error")
    assert record["config"]["unets_channels"] == 8 and record["shape"] == [2]
    assert set(record) >= {"model", "ema", "optimizer", "gaussian", "format"}


def test_keep_prunes_all_but_the_newest_and_the_run_is_the_same():
    assert train(f"{VANILLA} --save_epochs 1 --keep 2") == 0
    assert {p.name for p in Path("models", VANILLA_EXP).iterdir()} == {"model-2.pth", "model-3.pth", "last.pth"}
    kept = last()
    assert train(f"{VANILLA} --save_epochs 1 --no-resume") == 0
    assert_equal({**last(), "config": 0}, {**kept, "config": 0})
    assert train(f"{VANILLA} --save_epochs 1 --epochs 4 --keep 1") == 0
    assert {p.name for p in Path("models", VANILLA_EXP).iterdir()} == {"model-4.pth", "last.pth"}


def bases():
    return sorted(Path("models").rglob("gaussian-*.pth"))


@pytest.mark.slow
def test_a_large_covariance_is_stored_once_and_the_run_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys):
    whole = uncut(VANILLA, VANILLA_EXP, tmp_path)[0]
    monkeypatch.setattr(checkpoint, "APART", 1)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 3, kill)
        train(VANILLA)
    assert train(VANILLA) == 0
    (place,) = bases()
    path = place.with_name("last.pth")
    assert place.name == f"gaussian-{last()['gaussian']['basis']}.pth"
    record = checkpoint.open_record(path, ("vanilla",), whole=True)[0]
    assert_equal({**record, "config": 0}, {**whole, "config": 0})
    content = place.read_bytes()
    for broken in (None, content[:-200], content.replace(b"gaussian", b"gauss\0\0\0")):
        place.unlink() if broken is None else place.write_bytes(broken)
        with pytest.raises(CommandError) as caught:
            checkpoint.open_record(path, ("vanilla",))
        assert place.name in str(caught.value) and "\n" not in str(caught.value)
    torch.save({"format": 1, "kind": "gaussian", "basis": torch.eye(2)}, place)
    assert train(f"{VANILLA} --epochs 4") == 2  # every checkpoint needs it
    assert place.name in capsys.readouterr().err
    assert train(f"{VANILLA} --no-resume --epochs 1") == 0
    assert bases() == [place] and place.read_bytes() == content


def test_checkpoints_that_hold_the_covariance_are_gone_on_with(monkeypatch):
    assert train(f"{VANILLA} --epochs 1") == 0
    monkeypatch.setattr(checkpoint, "APART", 1)
    assert train(f"{VANILLA} --epochs 2") == 0
    assert len(bases()) == 1
    for name in ("model-1.pth", "model-2.pth"):
        basis = checkpoint.open_record(Path("models", VANILLA_EXP, name), ("vanilla",))[0]["gaussian"]["basis"]
        assert torch.equal(basis, fit_gaussian(part("moons", "train"), 0).state()["basis"])


# ---------------------------------------------------------------------------------------------------------------------
# What a run says


def test_a_run_says_what_it_trains_and_then_a_line_an_epoch_where_nobody_watches(capsys):
    assert train(EVERYTHING) == 0
    said = capsys.readouterr()
    (start,) = [line for line in said.out.splitlines() if line.startswith(f"{EXP}: ")]
    for words in ("parameters on cpu in fp32", "38 training and 12 validation images of 1x8x8", "10 classes (0, 1, "):
        assert words in start
    epochs = [line for line in said.err.splitlines() if "img/s" in line]
    for number, (line, logged) in enumerate(zip(epochs, lines(EXP), strict=True), 1):
        assert line.startswith(f"epoch {number}/3, step {2 * number}/6: loss {logged['train']['loss']:.4g} ")
        assert f"validation: loss {logged['val']['loss']:.4g}" in line
    assert said.err.splitlines()[-1] == "epoch 3/3: drawing samples"
    assert "%|" not in said.err


@pytest.mark.parametrize("precision, instructions, said", [
    ("bf16", False, True), ("bf16", True, False), ("fp16", False, True), ("auto", False, False)])
def test_arithmetic_that_the_processor_must_emulate_is_said(monkeypatch, capsys, precision, instructions, said):
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: instructions)
    compiling.say_if_emulated.cache_clear()
    compiling.compile_networks(torch.nn.Identity(), Config(precision=precision), torch.device("cpu"))
    assert ("no instructions for" in capsys.readouterr().out) == said


def test_a_person_who_watches_sees_the_epoch_and_the_work_after_the_last_step_in_the_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    assert train(VANILLA) == 0
    err = capsys.readouterr().err
    assert all(f"epoch {k}/3: " in err for k in (1, 2, 3)) and "step 2/6" not in err
    whole = [bar for bar in err.split("\r") if "100%|" in bar]  # after the last step
    for words in ("validating]", "drawing samples]", f"loss {lines()[-1]['train']['loss']:.4g} "):
        assert any(bar.startswith("epoch 3/3: 100%") and words in bar for bar in whole), words


def test_tensorboard_gets_the_rate_the_speed_and_the_pictures_and_the_log_no_timings(monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def draw(model, dataset, config, path, device):
        training.plots.write_png(path, np.full((4, 4, 1), 200, np.uint8))
        return path

    assert train(f"{VANILLA} --epochs 2 --save_epochs 1") == 0
    plain = metrics()
    monkeypatch.setattr(training, "show_samples", draw)
    assert train(f"{VANILLA} --epochs 2 --save_epochs 1 --tb_logger --no-resume") == 0
    assert metrics() == plain
    events = EventAccumulator(f"logs/{VANILLA_EXP}")
    events.Reload()
    rates = [(event.step, event.value) for event in events.Scalars("train/learning rate")]
    assert [step for step, _ in rates] == [2, 4]
    assert [value for _, value in rates] == pytest.approx(
        [training.learning_rate(step - 1, 4, 2, Config()) for step in (2, 4)])
    assert all(event.value > 0 for event in events.Scalars("train/images per second"))
    assert [(one.step, one.width, one.height) for one in events.Images("samples")] == [(2, 4, 4), (4, 4, 4)]


# ---------------------------------------------------------------------------------------------------------------------
# What lies in the folders


@pytest.mark.slow
def test_a_log_with_other_lines_in_it_is_gone_on_with_and_drawn(monkeypatch, tmp_path):
    others = b"\n".join([b"{}", b"[]", b"5", b"\xff\xfe", b'{"step": "x"}', b'{"step": 1}', b"", b"[" * 5000])
    assert train(f"{VANILLA} --epochs 1") == 0
    log = Path("logs", VANILLA_EXP, "metrics.jsonl")
    log.write_bytes(others + b"\n" + log.read_bytes() + others)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert len(training.plots.read_log(log)) == 1
    training.plots.training_curve(log, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
    monkeypatch.setattr(training, "load_data", lambda config, split: part(config.dataset, split))
    monkeypatch.setattr(training, "show_samples", lambda *_: None)
    assert train(f"{VANILLA} --epochs 2") == 0
    assert [line["epoch"] for line in training.plots.read_log(log)] == [1, 2]


def test_a_fifo_in_place_of_the_log_is_one_line(capsys):
    folder = Path("logs", VANILLA_EXP)
    folder.mkdir(parents=True)
    os.mkfifo(folder / "metrics.jsonl")
    assert train(VANILLA) == 2
    assert "metrics.jsonl is not a file" in capsys.readouterr().err


def test_a_run_that_was_stopped_in_its_last_picture_draws_it_when_it_is_called_again(monkeypatch):
    drawn = []

    def stopped(metrics, path):
        raise Killed

    monkeypatch.setattr(training.plots, "training_curve", stopped)
    with pytest.raises(Killed):
        train(f"{VANILLA} --epochs 1")
    monkeypatch.setattr(training.plots, "training_curve", lambda metrics, path: drawn.append(path))
    assert train(f"{VANILLA} --epochs 1") == 0
    assert drawn == [Path("imgs", VANILLA_EXP, "train", "curve.png")]


def test_partial_pictures_of_a_killed_run_are_swept(monkeypatch):
    left = Path("imgs", VANILLA_EXP, "train", ".curve.999999999.partial.png")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert train(f"{VANILLA} --epochs 1") == 0
    assert not left.exists()


def test_two_trainings_do_not_share_a_folder_of_checkpoints_or_of_logs(capsys):
    for place in ("models", "logs"):
        with locked(Path(place, VANILLA_EXP)):
            assert train(VANILLA) == 2
        assert f"{VANILLA_EXP} is in use by another run (process {os.getpid()} on" in capsys.readouterr().err
    assert not list(Path().rglob("*.pth"))


# ---------------------------------------------------------------------------------------------------------------------
# A loss that diverges


def test_a_loss_that_is_not_finite_stops_with_the_old_checkpoint_intact(monkeypatch, capsys):
    def poison(stepper):
        next(stepper.model.parameters()).data.fill_(float("nan"))

    at_step(monkeypatch, 3, poison)
    assert train(VANILLA) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert "no longer finite" in err and "step 4" in err
    assert last()["step"] == 2
    assert all(value.isfinite().all() for value in last()["model"].values())
    assert len(lines()) == 1


def test_weights_that_diverge_in_an_epochs_last_step_are_not_saved(monkeypatch):
    update = training.Stepper.update

    def spoil(self, *args):
        terms = update(self, *args)
        if self.step == 4:  # the loss was computed before the weights broke
            next(self.model.parameters()).data.fill_(float("inf"))
        return terms

    monkeypatch.setattr(training.Stepper, "update", spoil)
    assert train(VANILLA) == 1
    assert last()["step"] == 2
    assert not Path("models", VANILLA_EXP, "model-2.pth").exists()


@pytest.mark.parametrize("flag", ["model_folder", "log_folder", "img_folder"])
def test_folders_that_cannot_be_written_are_refused_before_training(flag, capsys):
    Path("blocked").write_text("")
    assert train(f"{VANILLA} --{flag} blocked") == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1 and "blocked" in err[0]
    assert [p.name for p in Path().iterdir()] == ["blocked"]


# ---------------------------------------------------------------------------------------------------------------------
# What is read


@pytest.mark.parametrize("name, typed, mirrored", [
    ("folder", None, False), ("folder", True, True), ("celeba", None, True), ("celeba", False, False)])
def test_images_are_mirrored_where_the_flag_or_else_the_set_says_so(name, typed, mirrored):
    images = np.zeros((40, 3, 4, 4), np.uint8)
    images[..., :2] = 200  # bright on the left
    dataset = registry.Dataset(replace(registry.SPECS[name], size=4), "train", np.arange(40), images)
    batches = training.Run._batches(SimpleNamespace(
        dataset=dataset, config=Config(dataset=name, flip=typed), batch=20, seed=0,
        stepper=SimpleNamespace(step=0), total=2, epoch_steps=2, device=torch.device("cpu")))
    left = torch.cat([x[..., :2].mean((1, 2, 3)) > x[..., 2:].mean((1, 2, 3)) for _, x, _ in batches])
    assert len(left) == 40 and (5 < left.sum() < 35 if mirrored else left.all())


@pytest.mark.parametrize("error, status", [(CommandError("a.png is not a readable image"), 2),
                                           (RunError("a process that reads images was killed"), 1)])
def test_a_picture_that_breaks_or_a_reader_that_dies_leaves_the_state_saved(monkeypatch, capsys, error, status):
    assert train(VANILLA) == 0
    whole, log = last(), metrics()
    plain = registry.stream

    def breaking(*args):
        for step, batch in enumerate(plain(*args)):
            if step == 3:
                raise error
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(registry, "stream", breaking)
        assert train(f"{VANILLA} --no-resume") == status
    said = capsys.readouterr()
    assert said.err.strip().splitlines()[-1].endswith(str(error)) and "last.pth, step 3" in said.out
    assert last()["step"] == 3
    assert train(VANILLA) == 0
    assert_equal(last(), whole)
    assert metrics() == log


# ---------------------------------------------------------------------------------------------------------------------
# Many processes

WORKER = """
import os, sys, torch
torch.set_num_threads(1)
import run
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains():
    """With the KL and the MMD over the codes of both; only rank 0 writes and validates."""
    words = f"{TINY} --dataset digits --kld_weight 0.1 --dropout 0 --epochs 1 --batch_size 256 --sampling_number 2"
    exp = "digits_4d_0.1kld_0.1mmd_20steps_8unet_8enc"
    for world in (1, 2):
        os.makedirs(f"world{world}")
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000), "WORLD_SIZE": str(world)}
        processes = [
            subprocess.Popen([sys.executable, "-c", WORKER, *words.split()], cwd=f"world{world}",
                             env=os.environ | {"PYTHONPATH": str(ROOT)} | ({} if world == 1 else place | {
                                 "RANK": str(rank), "LOCAL_RANK": str(rank)}))
            for rank in range(world)
        ]
        assert [process.wait(timeout=300) for process in processes] == [0] * world
    one, two = (load_checkpoint(f"world{world}/models/{exp}/last.pth") for world in (1, 2))
    for name, value in one["model"].items():
        assert torch.allclose(value, two["model"][name], atol=2e-5), name
    logs = [json.loads(Path(f"world{world}/logs/{exp}/metrics.jsonl").read_text()) for world in (1, 2)]
    for split in ("train", "val"):
        assert logs[0][split] == pytest.approx(logs[1][split], rel=1e-3)
