"""run.py: exit statuses, one line for every mistake, what is made and what is not."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import models
import run
from config import MODES
from utils import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]
TINY = "--dataset digits --unets_channels 8 --encoder_channels 8 --diffusion_steps 10 --a_dim 4 --device cpu"
EXP = "digits_4d_0.1mmd_10steps_8unet_8enc"


def call(words):
    return run.main(f"{TINY} {words}".split())


def files(folder="."):
    return {str(path) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a model that was trained for two steps, from the command line alone."""
    place = tmp_path_factory.mktemp("trained")
    before = os.getcwd()
    os.chdir(place)
    try:
        assert call("--mode train --max_steps 2 --epochs 1 --sampling_number 2 --model_folder kept") == 0
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def beside(trained, tmp_path, monkeypatch):
    """An empty folder whose `kept` is a copy of the trained model's."""
    monkeypatch.chdir(tmp_path)
    for name in files(trained / "kept"):
        target = tmp_path / Path(name).relative_to(trained)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(name).read_bytes())
    return tmp_path


def mistake(words, capsys):
    """The one line on stderr of a command that is refused with status 2."""
    capsys.readouterr()
    assert call(words) == 2
    err = capsys.readouterr().err.splitlines()
    err = [line for line in err if "%|" not in line]
    assert len(err) == 1 and err[0].startswith("run.py: error: ")
    return err[0]


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize("words, culprit", [
    ("--no_such_flag 1", "--no_such_flag"), ("--dataset moon", "moon"), ("--a_dim -4", "--a_dim"),
    ("--mode save_latent --model vanilla", "save_latent"), ("--mode nll --model vae", "nll"),
    ("--mode latent_quality --model vae", "latent_quality"), ("--mode mutual_info --model vanilla", "mutual_info"),
    ("--mode eval_fid --dataset moons", "moons"), ("--mode interpolate --dataset line", "line"),
    ("--device cuda:99", "--device"), ("--device tpu", "--device"),
    ("--dataset celeba --data_dir nowhere", "nowhere"),
    ("--mode eval", EXP), ("--mode eval --epochs 3", "model-3.pth"), ("--model_folder blocked", "blocked"),
])
def test_a_mistake_is_one_line_with_nothing_written(words, culprit, in_tmp, capsys):
    Path("blocked").write_text("")
    assert culprit in mistake(words, capsys)
    assert files() == {"blocked"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_a_function_and_refuses_the_models_it_is_not_for(mode):
    assert callable(run.function_of(mode))
    assert MODES[mode].about and set(MODES[mode].models) <= {"diff", "vae", "vanilla"}


def test_without_words_there_is_an_overview_and_nothing_is_made(in_tmp, capsys):
    for words in ([], ["--help"]):
        assert run.main(words) == 0
        out = capsys.readouterr().out
        assert all(f"  {mode} " in out for mode in MODES) and len(out.splitlines()) < 30
    assert not files()


@pytest.mark.parametrize("model", ["diff", "vanilla", "vae"])
def test_a_dry_run_shows_what_would_be_made_and_makes_nothing(model, in_tmp, capsys):
    assert call(f"--model {model} --dry_run") == 0
    out = capsys.readouterr().out
    wanted = ("parameters", "learning_rate", "models/", "imgs/", "1x8x8, 1,078 train, 180 val, 539 test")
    assert all(name in out for name in wanted)
    assert not files()


def test_a_dry_run_refuses_what_the_run_would_refuse(in_tmp, capsys, monkeypatch):
    monkeypatch.setitem(models.MULTIPLIERS, "diff", (1, 2))
    assert "--input_size 7" in mistake("--dry_run --input_size 7", capsys)


# ---------------------------------------------------------------------------------------------------------------------
# A trained model


def pictures(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("sample-*.png"))}


def test_as_many_images_as_were_asked_for_each_its_own_file_whatever_the_batch(beside):
    drawn = []
    for number, batch in ((4, 2), (4, 64), (3, 1)):
        words = f"--img_folder b{batch} --batch_size {batch} --sampling_number {number} --sample_steps 3"
        assert call(f"--mode eval --model_folder kept {words}") == 0
        drawn.append(pictures(f"b{batch}/{EXP}/eval"))
        assert list(drawn[-1]) == [f"sample-{i:06d}.png" for i in range(number)]
    for name, image in drawn[0].items():
        assert np.abs(image.astype(int) - drawn[1][name]).max() <= 1  # float tolerance, on 256 levels
    assert np.abs(drawn[2]["sample-000002.png"].astype(int) - drawn[0]["sample-000002.png"]).max() <= 1
    assert len({image.tobytes() for image in drawn[0].values()}) == 4


def test_the_model_folder_is_respected(beside, capsys):
    assert "models" in mistake("--mode eval", capsys)
    assert not Path("models").exists()
    capsys.readouterr()
    assert call("--mode eval --model_folder kept --sampling_number 1") == 0
    assert f"kept/{EXP}/model-1.pth" in capsys.readouterr().out  # the newest, named


def test_another_seed_gives_other_images_and_deterministic_ones_repeat(beside):
    for name, words in (("a", "--sampler ddpm"), ("b", "--sampler ddpm --r_seed 1"), ("c", "--deterministic"),
                        ("d", "--deterministic")):
        assert call(f"--mode eval --model_folder kept --img_folder {name} --sampling_number 1 {words}") == 0
    a, b, c, d = (pictures(f"{name}/{EXP}/eval")["sample-000000.png"] for name in "abcd")
    assert not np.array_equal(a, b) and not np.array_equal(a, c) and np.array_equal(c, d)


def test_sampling_leaves_global_generators_and_plot_styles_alone(beside):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), dict(matplotlib.rcParams)
    assert call("--mode eval --model_folder kept --sampling_number 2") == 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert dict(matplotlib.rcParams) == before[2]


@pytest.mark.parametrize("spoil", ["missing", "shape", "kind", "truncated", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("extra", "format"))])
def test_checkpoints_that_do_not_fit_are_refused(spoil, beside, capsys):
    path = beside / "kept" / EXP / "model-1.pth"
    record = load_checkpoint(path)
    name = next(iter(record["ema"]))
    if spoil == "missing":
        del record["ema"][name]
    elif spoil == "extra":
        record["ema"]["network.more"] = torch.zeros(1)
    elif spoil == "shape":
        record["ema"][name] = record["ema"][name][:1]
    elif spoil == "kind":
        record["kind"] = "latent"
    if spoil == "format":
        torch.save({**record, "format": 0}, path)
    elif spoil == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        save_checkpoint(path, record)
    line = mistake("--mode eval --model_folder kept", capsys)
    assert "checkpoint" in line or "model-1.pth" in line
    assert not Path("imgs").exists()


def test_a_flag_that_contradicts_the_checkpoint_is_named(beside, capsys):
    (beside / "kept" / "digits_4d_0.1mmd_itd_10steps_8unet_8enc").mkdir()
    source = beside / "kept" / EXP / "model-1.pth"
    (beside / "kept" / "digits_4d_0.1mmd_itd_10steps_8unet_8enc" / "model-1.pth").write_bytes(source.read_bytes())
    assert "--loss" in mistake("--mode eval --model_folder kept --loss itd", capsys)


# ---------------------------------------------------------------------------------------------------------------------
# As a program


def test_the_program_reports_a_mistake_by_its_status_and_without_a_traceback(in_tmp):
    done = subprocess.run([sys.executable, str(ROOT / "run.py"), "--dataset", "moon"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "moon" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_importing_the_suite_draws_nothing_and_changes_no_style():
    modules = ", ".join(path.stem for path in ROOT.glob("*.py"))
    program = (
        "import matplotlib, numpy, torch, random\n"
        "states = lambda: (torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate(),"
        " {k: str(v) for k, v in matplotlib.rcParams.items() if k != 'backend'}, torch.get_default_dtype())\n"
        f"before = states()\nimport {modules}\nassert states() == before\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
