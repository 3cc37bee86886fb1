"""--spacing fitted: a grid searched for once, kept beside the checkpoint, and never that of another one."""

import math

import numpy as np
import pytest
import tiny

import run
from experiment import load
from modes.samples import starts_of
from utils import file_hash, read_json

FLAGS = ("--mode eval --model vanilla --dataset moons --unets_channels 4 --diffusion_steps 4 --device cpu "
         "--sampling_number 3 --sampler unipc --spacing fitted --sample_steps 3")
WORDS = FLAGS.split()


@pytest.fixture
def path(in_tmp):
    return tiny.checkpoint("--model vanilla --dataset moons")


@pytest.mark.slow
def test_a_grid_is_fitted_once_for_a_checkpoint(path, capsys):
    grids = path.with_name("model-1.grids.json")
    assert run.main(WORDS) == 0
    assert "3 levels fitted on 32 samples: error" in capsys.readouterr().out
    kept = read_json(grids)
    assert kept["checkpoint_hash"] == file_hash(path)
    (fit,) = kept["grids"].values()
    assert len(fit["levels"]) == 3 and np.all(np.diff(fit["levels"]) > 0) and math.isfinite(fit["levels"][-1])
    assert fit["errors"]["fitted"] == min(fit["errors"].values())
    assert run.main(WORDS) == 0
    assert "fitted on" not in capsys.readouterr().out and read_json(grids) == kept
    assert run.main([*WORDS, "--order", "2"]) == 0  # another solver has a grid of its own
    assert len(read_json(grids)["grids"]) == 2


@pytest.mark.slow
def test_a_grid_of_another_checkpoint_is_fitted_again(path, capsys):
    grids = path.with_name("model-1.grids.json")
    assert run.main(WORDS) == 0
    before = read_json(grids)
    tiny.checkpoint("--model vanilla --dataset moons --r_seed 1")
    assert file_hash(path) != before["checkpoint_hash"]
    assert run.main([*WORDS, "--r_seed", "1"]) == 0
    assert "fitted on" in capsys.readouterr().out
    assert read_json(grids)["checkpoint_hash"] == file_hash(path)
    grids.write_text("{}")  # and where the file says nothing
    assert run.main([*WORDS, "--r_seed", "1"]) == 0
    assert len(read_json(grids)["grids"]) == 1


@pytest.mark.parametrize("words, said", [
    ("--model vanilla --dataset moons", {}), ("--dataset digits", {}),
    ("--model vanilla --dataset moons --schedule cosine --diffusion_steps 100", {"first_logsnr": -10.2}),
    ("--dataset digits --z_from class --a_dim 10", {"z_from": "training rows"}),
])
def test_a_record_tells_samples_from_those_of_before(in_tmp, words, said):
    """Models that start where the schedule ends draw what they drew: their folders and grids stay."""
    assert starts_of(load(tiny.checkpoint(words), "cpu")) == said
