"""A run goes on after any interruption, or says why not."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import (
    EVERYTHING,
    EXP,
    ROOT,
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
    terminate,
    train,
    uncut,
)

import training
from utils import load_checkpoint


@pytest.mark.parametrize("words, exp", [
    (EVERYTHING, EXP),
    (f"{VANILLA} --loss itd", "vanilla/moons_itd_20steps_8unet"),
    pytest.param("--model vae --dataset moons --mmd_weight 0 --kld_weight 1", "vae/moons_4d_1kld_8unet_8enc",
                 marks=pytest.mark.slow),
    pytest.param(f"{EVERYTHING} --compile off", EXP, marks=pytest.mark.slow),
    pytest.param(f"{VANILLA} --compile full", VANILLA_EXP, marks=pytest.mark.slow),
])
def test_an_interrupted_run_ends_bit_for_bit_where_the_uncut_one_ends(words, exp, tmp_path, monkeypatch):
    expected = uncut(words, exp, tmp_path)
    for step, minutes in ((0, 10), (3, 1e-9), (3, 10)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            at_step(patch, step, kill)
            train(f"{words} --save_minutes {minutes}")
    with monkeypatch.context() as patch:
        at_step(patch, 4, terminate)
        assert train(words) == 128 + signal.SIGTERM
    assert train(words) == 0
    assert_equal({**last(exp), "config": 0}, {**expected[0], "config": 0})
    assert_equal(last(exp, "model-3.pth")["ema"], expected[1]["ema"])
    assert metrics(exp) == expected[2]


@pytest.mark.slow
@pytest.mark.parametrize("first, second", [("off", "region"), ("region", "off")])
def test_a_run_goes_on_under_another_compile_setting(first, second):
    words = f"{EVERYTHING} --dropout 0"
    assert train(f"{words} --compile {first} --epochs 1") == train(f"{words} --compile {second}") == 0
    mixed = last(EXP)["ema"]
    assert train(f"{words} --compile {first} --no-resume") == 0
    for name, value in last(EXP)["ema"].items():
        assert torch.allclose(mixed[name], value, atol=1e-4), name


@pytest.mark.parametrize("name, before", [
    ("model-2.pth", False), ("last.pth", True),
    pytest.param("model-2.pth", True, marks=pytest.mark.slow), pytest.param("last.pth", False, marks=pytest.mark.slow)])
def test_killed_around_a_checkpoint_after_the_log_was_written(name, before, tmp_path, monkeypatch):
    expected = uncut(VANILLA, VANILLA_EXP, tmp_path)
    save = training.Run.save

    def cut(self, wanted):
        if not before:
            save(self, wanted)
        if wanted == name and self.stepper.step == 4:
            raise Killed
        if before:
            save(self, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "save", cut)
        with pytest.raises(Killed):
            train(VANILLA)
    with open(f"logs/{VANILLA_EXP}/metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "st')  # half a line
    assert train(VANILLA) == 0
    assert_equal(last(), expected[0])
    assert metrics() == expected[2]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:50] + bytes(100) + b[150:],
                                    pytest.param(lambda b: b"", marks=pytest.mark.slow),
                                    pytest.param(lambda b: b"garbled", marks=pytest.mark.slow)])
def test_a_broken_last_checkpoint_falls_back_to_the_newest_sound_one(damage, tmp_path, capsys):
    expected = uncut(VANILLA, VANILLA_EXP, tmp_path)
    assert train(f"{VANILLA} --save_epochs 1") == 0
    path = Path("models") / VANILLA_EXP / "last.pth"
    path.write_bytes(damage(path.read_bytes()))
    (path.parent / "model-3.pth").unlink()
    capsys.readouterr()
    assert train(VANILLA) == 0
    said = capsys.readouterr()
    assert "last.pth" in said.err and "model-2.pth" in said.out
    assert_equal(last(), expected[0])
    assert metrics() == expected[2]


def test_a_finished_run_says_so_and_changes_nothing(capsys):
    assert train(VANILLA) == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(VANILLA) == 0
    assert "finished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_more_epochs_extend_a_run_and_say_so(capsys):
    assert train(f"{VANILLA} --epochs 1") == 0
    capsys.readouterr()
    assert train(f"{VANILLA} --epochs 2") == 0
    assert "extended from 1 to 2 epochs" in capsys.readouterr().out
    assert [line["epoch"] for line in lines()] == [1, 2]
    assert last()["step"] == 4
    assert {p.name for p in Path("models", VANILLA_EXP).iterdir()} == {"model-1.pth", "model-2.pth", "last.pth"}


def test_a_run_of_other_settings_is_refused_and_left_alone(capsys):
    assert train(f"{VANILLA} --epochs 1") == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    assert train(f"{VANILLA} --learning_rate 1e-3") == 2
    err = capsys.readouterr().err
    assert "--learning_rate" in err and "--tag" in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert train(f"{VANILLA} --learning_rate 1e-3 --tag fast --epochs 1") == 0
    assert last(VANILLA_EXP + "_fast")["config"]["learning_rate"] == 1e-3


@pytest.mark.slow
def test_a_run_that_began_mirrored_goes_on_so_and_says_it(capsys):
    """As folders did before there was a flag; --no-flip is another run."""
    words = "--model vae --dataset digits --unets_channels 4 --encoder_channels 4"
    exp = "vae/digits_4d_0.1mmd_4unet_4enc"
    assert train(f"{words} --flip --max_steps 2") == 0
    capsys.readouterr()
    for steps in (3, 4):
        assert train(f"{words} --max_steps {steps}") == 0
        assert capsys.readouterr().out.count("going on with --flip, as this run began") == 1
        assert last(exp)["config"]["flip"] is True
    assert train(f"{words} --max_steps 5 --no-flip") == 2
    assert "--flip True" in capsys.readouterr().err
    assert train(f"{words} --max_steps 5 --lr_schedule constant") == 2  # the rest is compared as ever
    assert last(exp)["step"] == 4


def test_no_resume_starts_afresh():
    assert train(f"{VANILLA} --epochs 1") == 0
    first = metrics()
    drawn = Path("imgs", VANILLA_EXP, "train", "epoch-0009.png")
    drawn.parent.mkdir(parents=True, exist_ok=True)
    drawn.touch()
    assert train(f"{VANILLA} --epochs 1 --no-resume") == 0
    assert metrics() == first  # one line, not two
    assert not drawn.exists()  # of the run that is replaced


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_exits_with_143(in_tmp):
    words = f"{TINY} --epochs 4000 --save_minutes 1e-9 --sampling_number 1 --diffusion_steps 4 {VANILLA}"
    call = [sys.executable, str(ROOT / "run.py"), *words.split()]
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)
    path = Path("models/vanilla/moons_4steps_8unet/last.pth")
    while not path.exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in err
    assert load_checkpoint(path)["step"] >= 1
