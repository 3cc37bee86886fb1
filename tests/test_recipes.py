"""The recipes of the README, followed as they stand there, in a copy of what they touch or the suite (recipes.py)."""

import importlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tiny
from recipes import block, follow, python

import config
import modes
import modules
import run
from utils import read_json, write_npz

ROOT = Path(__file__).parents[1]

METRIC = block("Metric")
DATA_SET = {"new": {"dataset/mine.py": block("Data set")},
            "edits": {"dataset/registry.py": ('"folder",', '"folder", "mine",')}}

*REGULARISER, WEIGHT = block("Regulariser").splitlines(keepends=True)
*MODE, ROW = block("Mode").splitlines(keepends=True)
*SAMPLER, SAMPLER_NAME = block("Sampler").splitlines(keepends=True)  # the last line is one of config.SAMPLERS


def load(monkeypatch, name, added=""):
    """The module `name`, with lines added at its end, in place of the one that was imported."""
    importlib.import_module(name)
    file = ROOT / (name.replace(".", "/") + ".py")
    module = types.ModuleType(name)
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, name, module)
    if "." in name:
        package, own = name.rsplit(".", 1)
        monkeypatch.setattr(sys.modules[package], own, module)
    exec(compile(file.read_text() + added, str(file), "exec"), module.__dict__)
    return module


def test_a_new_metric(in_tmp, monkeypatch, capsys):
    load(monkeypatch, "metrics.disentanglement", METRIC)
    program = load(monkeypatch, "eval_disentanglement")
    generator = np.random.default_rng(0)
    factors = generator.integers(0, 3, (40, 2))
    write_npz("seed0.npz", all_a=factors + generator.normal(size=(40, 2)), all_attr=factors)
    assert program.main(["--codes", "seed0.npz", "--metrics", "spread", "mig", "--output", "out"]) == 0
    assert "spread" in capsys.readouterr().out
    record = read_json("out/disentanglement.json")["files"][0]
    assert record["mean"]["spread"] > 0
    assert np.shape(record["matrices"]["spread"]["following"]) == (2, 2)
    assert Path("out/following-0.png").stat().st_size > 1000 and Path("out/mig-information-0.png").is_file()


@pytest.fixture
def with_own_set(tmp_path):
    suite = follow(tmp_path, **DATA_SET)
    np.save(suite / "mine.npy", np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16), dtype=np.uint8))
    return suite


def test_a_data_set_of_ones_own_is_read(with_own_set):
    program = ("from dataset import registry; from commandline import parse;"
               "config = parse(['--dataset', 'mine'], 'run.py', registry.SPECS).config;"
               "parts = [registry.load(config.dataset, split, root='.') for split in registry.SPLITS];"
               "print([len(part) for part in parts], parts[0].shape, parts[0].images.std() > 60)")
    assert python(with_own_set, "-c", program).strip() == "[32, 4, 4] (1, 16, 16) True"


@pytest.mark.slow
def test_a_data_set_of_ones_own_is_trained_on(with_own_set):
    flags = ("--dataset mine --data_dir . --epochs 1 --max_steps 2 --batch_size 8 --unets_channels 4 --a_dim 2"
             " --encoder_channels 4 --diffusion_steps 4 --device cpu --num_workers 0")
    python(with_own_set, "run.py", "--mode", "train", *flags.split())
    assert list((with_own_set / "models").rglob("model-1.pth"))


TINY = ("--dataset digits --batch_size 8 --unets_channels 4 --encoder_channels 4 --a_dim 2 --diffusion_steps 4"
        " --device cpu --num_workers 0")


@pytest.mark.slow
def test_a_new_regulariser(tmp_path):
    suite = follow(tmp_path, new={}, edits={"config/flags.py": ("    # How it is trained\n", WEIGHT)})
    with open(suite / "regularisers.py", "a") as file:
        file.write("".join(REGULARISER))
    words = f"--mode train --epochs 1 --max_steps 1 --sampling_number 1 --l1_weight 0.5 {TINY}"
    python(suite, "run.py", *words.split())
    (log,) = (suite / "logs").rglob("metrics.jsonl")
    assert log.parent.name == "digits_2d_0.1mmd_4steps_4unet_4enc_0.5l1"
    terms = json.loads(log.read_text())["train"]
    assert terms["loss"] == pytest.approx(terms["denoise"] + 0.1 * terms["mmd"] + 0.5 * terms["l1"], rel=1e-4)


def test_a_new_mode(in_tmp, monkeypatch, capsys):
    (in_tmp / "mine.py").write_text("".join(MODE))
    monkeypatch.setattr(modes, "__path__", [*modes.__path__, str(in_tmp)])
    monkeypatch.setitem(config.MODES, *eval(f"{{{ROW}}}", {"Mode": config.Mode}).popitem())
    tiny.checkpoint("--dataset digits")
    assert run.main(f"--mode mine --sampler ddim {tiny.SMALL}".split()) == 0
    assert "(1, 8, 8)" in capsys.readouterr().out
    assert run.main(f"--mode mine --npoints 3 {tiny.SMALL}".split()) == 2  # a flag that its row does not name
    assert "mine" in run.overview()


@pytest.mark.slow
def test_a_new_sampler(tmp_path):
    names = 'SAMPLERS = {\n'
    end = (ROOT / "sampling.py").read_text().splitlines(keepends=True)[-1]
    code = "".join(SAMPLER)
    suite = follow(tmp_path, {}, {"config/modes.py": (names, names + SAMPLER_NAME), "sampling.py": (end, end + code)})
    program = ("import torch, commandline, sampling, diffusion; from dataset import registry; from rng import Rng;"
               "made = commandline.parse(['--mode', 'eval', '--sampler', 'mine'], 'run.py', registry.SPECS).config;"
               "grid = diffusion.linear_schedule(1e-3, 0.2, 60).grid(5); calls = [];"
               "half = lambda x, logsnr, z=None: calls.append(1) or x / 2;"
               "draw = lambda name: sampling.sample(name, half, Rng(0, torch.arange(7)), (3,), grid);"
               "print(len(calls), torch.allclose(draw(made.sampler), draw('ddim'), atol=1e-5), len(calls))")
    assert python(suite, "-c", program).strip() == "0 True 10"
    assert "mine: DDIM once more" in python(suite, "run.py", "--mode", "eval", "--help")


def test_another_unet(monkeypatch):
    lines = block("U-Net")
    for line in lines.splitlines():  # each stands for the line of models.py with that name
        assert (ROOT / "models.py").read_text().count(f"\n{line.split(' = ')[0]} = ") == 1
    models = load(monkeypatch, "models", lines)
    multipliers = models.multipliers(config.Config(), 8, 4)
    network = models.build_denoiser(config.Config(), (1, 8, 8), 8, multipliers, 2)
    # Attention at two of three levels, three blocks down and four up in each, and one in the middle.
    assert multipliers == (1, 2, 4)
    assert sum(isinstance(module, modules.Attention) for module in network.modules()) == 15
