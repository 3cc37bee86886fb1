"""What is made from a checkpoint: refused where it holds what training never writes, or belongs to something else."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import eval_disentanglement
import run
import train_classifier
import training
from utils import load_checkpoint

MODEL = "--dataset line --kld_weight 0.1"
FLAGS = f"{tiny.SMALL} --num_workers 0 {MODEL} --sampling_number 2"
EXP = "line_2d_0.1kld_0.1mmd_4steps_4unet_4enc"
ADVICE = ("weights_only", "safe_globals", "trust the source")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The bytes of a sound checkpoint."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("sound"))
    try:
        return tiny.checkpoint(MODEL).read_bytes()
    finally:
        os.chdir(before)


@pytest.fixture
def path(sound, in_tmp):
    place = Path("models", EXP, "model-1.pth")
    place.parent.mkdir(parents=True)
    place.write_bytes(sound)
    return place


def files() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def refused(capsys, words: str, program=run) -> str:
    """The one line of a command that ends with status 2 and writes nothing."""
    before = files()
    capsys.readouterr()
    assert program.main(words.split()) == 2
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    (line,) = [line for line in said if line and "%|" not in line]  # all but progress bars
    assert files() == before and not any(word in line for word in ADVICE)
    return line


def flag(name, value):
    return lambda record: record["config"].update({name: value})


def entry(name, value):
    return lambda record: record.update({name: value})


def within(part, name, value):
    return lambda record: record[part].update({name: value})


def lacking(part, name):
    return lambda record: (record[part] if part else record).pop(name)


def first_weight(change):
    def spoil(record):
        name = next(iter(record["ema"]))
        record["ema"][name] = change(record["ema"][name])

    return spoil


def huge(record):
    """A megabyte of checkpoint that describes, and seems to hold, gigabytes."""
    record["config"]["unets_channels"] = 4096
    record["ema"] = {name: torch.zeros(1).expand(*(4096 if n == 4 else n for n in value.shape))
                     for name, value in record["ema"].items()}


SPOILT = {
    "config None": entry("config", None), "config list": entry("config", [1]), "config empty": entry("config", {}),
    "lacks a_dim": lacking("config", "a_dim"), "lacks unets_channels": lacking("config", "unets_channels"),
    "unknown flag": flag("colour", 1), "tag that climbs": flag("tag", "../../.."), "tag absolute": flag("tag", "/x"),
    "tag a list": flag("tag", ["x"]), "kernel that climbs": flag("mmd_kernel", "../x"),
    "a_dim text": flag("a_dim", "2"), "a_dim true": flag("a_dim", True),
    "a_dim half": flag("a_dim", 2.5), "a_dim 0": flag("a_dim", 0),
    "a_dim huge": flag("a_dim", 10**9), "steps huge": flag("diffusion_steps", 10**12), "rate NaN": flag(
        "learning_rate", float("nan")), "data set": flag("dataset", "nowhere"), "model vae": flag("model", "vae"),
    "other loss": flag("loss", "itd"), "wide": flag("unets_channels", 4096), "denoiser": flag("denoiser", "iddpm"),
    "a network": entry("network", {"kind": "iddpm"}), "network a list": entry("network", [1]), "huge": huge,
    "ema list": entry("ema", [1]), "ema empty": entry("ema", {}), "ema numbered": entry("ema", {1: torch.zeros(2)}),
    "ema text": first_weight(lambda w: "w"), "ema NaN": first_weight(lambda w: w * torch.nan),
    "ema infinite": first_weight(lambda w: w / 0), "ema sparse": first_weight(lambda w: w.to_sparse()),
    "ema meta": first_weight(lambda w: w.to("meta")), "ema other shape": first_weight(lambda w: w[:1]),
    "model None": entry("model", None), "no model": lacking(None, "model"), "no optimizer": lacking(None, "optimizer"),
    "no scaler": lacking(None, "scaler"), "no sums": lacking(None, "sums"), "sums": within("sums", "loss", "x"),
    "no gaussian": lacking(None, "gaussian"), "gaussian list": entry("gaussian", [1]),
    "gaussian empty": entry("gaussian", {}), "mean long": within("gaussian", "mean", torch.zeros(9).double()),
    "variance NaN": within("gaussian", "variances", torch.tensor([1.0, torch.nan])),
    "variance negative": within("gaussian", "variances", torch.tensor([1.0, -1.0])),
    "basis text": within("gaussian", "basis", "b"), "moments of no rows": within("gaussian", "rows", -1),
    "no shape": lacking(None, "shape"), "shape of strings": entry("shape", ["2"]), "shape long": entry("shape", [2, 2]),
    "shape huge": entry("shape", [10**9]), "shape None": entry("shape", None), "step -5": entry("step", -5),
    "step text": entry("step", "5"), "step true": entry("step", True), "epoch -1": entry("epoch", -1),
    "no rows": entry("rows", 0), "unit": entry("unit", 5), "data": entry("data", 5), "kind": entry("kind", "x" * 999),
    "kind a tensor": entry("kind", torch.zeros(2)), "format": entry("format", "1"),
}


@pytest.mark.parametrize("spoil", [  # every third by default
    name if number % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for number, name in enumerate(SPOILT)])
def test_a_well_formed_checkpoint_with_wrong_content_is_one_line(path, capsys, spoil):
    record = load_checkpoint(path)
    SPOILT[spoil](record)
    torch.save(record, path)
    line = refused(capsys, f"--mode eval --split_step 0 {FLAGS}")
    assert len(line) < 500 and (path.name in line or EXP in line)


STATES = {
    "empty": lambda o: o.clear(), "a list": lambda o: o.update(state=[]), "one lacks": lambda o: o["state"].pop(0),
    "text": lambda o: o["state"][0].update(exp_avg="x"), "shape": lambda o: o["state"][0].update(exp_avg=torch.ones(3)),
    "NaN": lambda o: o["state"][0]["exp_avg_sq"].fill_(torch.nan),
}


@pytest.mark.slow
def test_a_state_of_the_optimiser_that_is_none_ends_training_before_it_begins(in_tmp, capsys):
    words = f"--mode train {FLAGS} --batch_size 4000"
    assert run.main(f"{words} --max_steps 1".split()) == 0
    (path,) = Path("models").rglob("last.pth")
    for spoil in STATES.values():
        record = load_checkpoint(path)
        spoil(record["optimizer"])
        torch.save(record, path)
        assert "last.pth" in refused(capsys, f"{words} --max_steps 2")
        shutil.copy(path.with_name("model-1.pth"), path)


# ---------------------------------------------------------------------------------------------------------------------
# Stale files


def retrained(path: Path) -> Path:
    """Another checkpoint, of two epochs more."""
    record = load_checkpoint(path)
    record["ema"] = {name: value + 0.01 for name, value in record["ema"].items()}
    other = path.with_name("model-3.pth")
    torch.save({**record, "epoch": 3}, other)
    return other


def digits(words="") -> str:
    return f"{tiny.SMALL} --num_workers 0 --dataset digits {words}"


def test_codes_of_another_checkpoint_are_refused_by_name_until_it_is_meant(in_tmp, capsys):
    path = tiny.checkpoint("--dataset digits")
    assert run.main(f"--mode save_latent --num_images 40 {digits()}".split()) == 0
    retrained(path)
    for program in (eval_disentanglement, train_classifier):
        line = refused(capsys, digits("--folds 2 --jobs 1"), program)
        assert "latents.npz" in line and "model-3.pth" in line and "--epochs 1" in line and "save_latent" in line
    assert train_classifier.main(digits("--epochs 1 --folds 2 --jobs 1 --inputs z").split()) == 0
    np.savez("models/digits_2d_0.1mmd_4steps_4unet_4enc/latent_quality.npz", x_T=np.zeros((9, 4)),
             labels=np.arange(9) % 3, checkpoint_hash=np.array("0" * 16))
    line = refused(capsys, digits("--epochs 1 --folds 2 --jobs 1 --inputs x_T"), train_classifier)
    assert "latent_quality.npz" in line and "latent_quality again" in line


@pytest.mark.slow
def test_a_latent_diffusion_of_another_decoder_is_refused_by_name(path, capsys):
    assert run.main(f"--mode train_latent_ddim {FLAGS} --max_steps 1 --batch_size 4000".split()) == 0
    assert run.main(f"--mode eval --is_latent {FLAGS}".split()) == 0
    retrained(path)
    line = refused(capsys, f"--mode eval --is_latent {FLAGS}")
    assert f"{EXP}_latent" in line and "model-3.pth" in line and "train_latent_ddim" in line
    line = refused(capsys, f"--mode train_latent_ddim {FLAGS} --max_steps 2 --batch_size 4000")
    assert "last.pth" in line and "--no-resume" in line


# ---------------------------------------------------------------------------------------------------------------------
# The data, the results, the newest state


def folder_of(place: str, colour) -> None:
    Path(place).mkdir()
    for k in range(20):
        Image.new("RGB", (16, 16), tuple(max(0, value - 5 * k) for value in colour)).save(f"{place}/{k}.png")


@pytest.mark.slow
def test_another_folder_of_as_many_pictures_is_another_data_set(in_tmp, capsys, monkeypatch):
    monkeypatch.setattr(training, "show_samples", lambda *_: None)
    monkeypatch.setattr(training.plots, "training_curve", lambda *_: None)
    folder_of("a", (255, 0, 0))
    folder_of("b", (0, 0, 255))
    shutil.copytree("a", "moved")
    words = (f"{tiny.SMALL} --num_workers 0 --dataset folder --input_size 16 --model vae --batch_size 4 "
             "--max_steps 2")
    assert run.main(f"--mode train {words} --data_dir a".split()) == 0
    for more in ("--mode train", "--mode train --epochs 40", "--mode save_latent", "--mode interpolate"):
        steps = "none" if "train" in more else "--max_steps 2"
        line = refused(capsys, f"{more} {words.replace(steps, '')} --data_dir b")
        assert "other data" in line and "--tag" in line and "b" in line
    assert run.main(f"--mode save_latent {words.replace('--max_steps 2', '')} --data_dir moved".split()) == 0
    path = next(Path("models").rglob("model-1.pth"))
    record = load_checkpoint(path)
    del record["data"]  # from before identities were stored
    torch.save(record, path)
    assert run.main(f"--mode save_latent {words.replace('--max_steps 2', '')} --data_dir b".split()) == 0


@pytest.mark.slow
def test_a_result_says_how_the_model_was_trained_and_how_it_was_called(in_tmp):
    words = "--unets_channels 4 --diffusion_steps 4 --device cpu --dataset digits --model vanilla --sampling_number 3"
    fit = "--epochs 1 --learning_rate 3e-3 --dropout 0 --batch_size 1000"
    assert run.main(f"--mode train {words} {fit}".split()) == 0
    assert run.main(f"--mode eval {words} --sampler ddim".split()) == 0
    record = json.loads(next(Path("results").rglob("eval.json")).read_text())
    assert {name: record["config"][name] for name in ("epochs", "learning_rate", "dropout", "batch_size")} == {
        "epochs": 1, "learning_rate": 3e-3, "dropout": 0, "batch_size": 1000}
    assert record["call"]["mode"] == "eval" and record["call"]["sampler"] == "ddim"
    assert record["call"]["sampling_number"] == 3 and "epochs" not in record["call"]
    assert record["data"]


def test_results_of_one_model_do_not_replace_another_s(path, capsys):
    assert run.main(f"--mode eval --split_step 0 {FLAGS}".split()) == 0
    shutil.copytree("models", "others")
    assert run.main(f"--mode eval --split_step 0 {FLAGS}".split()) == 0  # its own are
    line = refused(capsys, f"--mode eval --split_step 0 {FLAGS} --model_folder others")
    assert "eval.json" in line and str(path) in line
    assert run.main(f"--mode export {FLAGS}".split()) == 0  # of the same model
    words = f"--mode eval --split_step 0 --from {path.parent}/export --device cpu --sampling_number 2"
    assert run.main(words.split()) == 0
    shutil.rmtree("models")  # the model was moved
    assert run.main(f"--mode eval --split_step 0 {FLAGS} --model_folder others".split()) == 0


def test_files_of_codes_with_one_name_do_not_replace_each_other_s_scores(in_tmp, capsys):
    rng = np.random.default_rng(0)
    for place in "ab":
        Path(place).mkdir()
        np.savez(f"{place}/codes.npz", all_a=rng.normal(size=(60, 2)), all_attr=rng.integers(0, 3, (60, 2)))
    assert eval_disentanglement.main(["--codes", "a/codes.npz", "--metrics", "mig", "--jobs", "1"]) == 0
    line = refused(capsys, "--codes b/codes.npz --metrics mig --jobs 1", eval_disentanglement)
    assert "a/codes.npz" in line


def test_a_state_that_is_newer_than_the_checkpoint_used_is_named(path, capsys):
    record = load_checkpoint(path)
    last = path.with_name("last.pth")
    torch.save(record, last)
    assert run.main(f"--mode eval --split_step 0 {FLAGS}".split()) == 0
    assert "last.pth" not in capsys.readouterr().out  # a finished run
    torch.save({**record, "step": record["step"] + 7}, last)
    assert run.main(f"--mode eval --split_step 0 {FLAGS}".split()) == 0
    said = capsys.readouterr().out
    assert "last.pth is newer" in said and str(record["step"] + 7) in said
    assert run.main(f"--mode eval --split_step 0 --epochs 1 {FLAGS}".split()) == 0
    assert "last.pth" not in capsys.readouterr().out
