"""The mode manipulate: names of labels, the direction, the files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SMALL, checkpoint

import plots
from commandline import parse
from dataset import registry
from experiment import open_trained
from metrics import classification
from modes import manipulate as module
from modes.latents import encode_split
from run import main
from utils import CommandError

WORDS = "--dataset digits --model {} --mode manipulate --label 3 --num_images 200 --sample_steps 3"


def labelled(kind, names, labels, **more):
    spec = SimpleNamespace(labels=kind, name="made", factor_sizes=(), **{"value_names": (), **more})
    return SimpleNamespace(spec=spec, label_names=names, labels=labels)


def test_names_stand_for_classes_attributes_and_values_of_factors():
    assert module.chosen_label(registry.load("digits", "val"), "3") == (0, 3)
    people = labelled("attributes", ("Young", "Smiling"), np.array([[0, 1], [1, 0]]))
    assert module.chosen_label(people, "Smiling") == (1, 1)
    words = labelled("attributes", ("glasses", "Young"), np.array([[0, 1]]),
                     value_names=(("with", "without"), ("-1", "1")))
    assert module.known_labels(words) == {"glasses=with": (0, 0), "glasses=without": (0, 1), "Young": (1, 1)}
    scenes = labelled("factors", ("scale", "shape"), np.array([[0, 1]]), value_names=(("0", "1"), ("cube", "ball")))
    assert module.known_labels(scenes) == {"scale=0": (0, 0), "scale=1": (0, 1), "shape=cube": (1, 0),
                                           "shape=ball": (1, 1)}
    for dataset, name, culprit in ((people, "Smilling", "did you mean Smiling?"), (people, None, "--label is needed"),
                                   (labelled("none", (), None), "x", "no labels")):
        with pytest.raises(CommandError) as error:
            module.chosen_label(dataset, name)
        assert culprit in str(error.value)


@pytest.mark.parametrize("model", ["diff", pytest.param("vae", marks=pytest.mark.slow)])
def test_the_image_moves_along_the_direction_and_stays_at_0(in_tmp, monkeypatch, capsys, model):
    """At 0 it is the reconstruction; away from it the code has moved by s sqrt(a_dim) deviations towards the label."""
    path = checkpoint(f"--dataset digits --model {model}")
    seen = []
    decode = module.decode_all
    monkeypatch.setattr(module, "decode_all", lambda coder, z, x_T, size: seen.append((z, x_T)) or decode(
        coder, z, x_T, size))
    folder = Path("imgs", path.parent.relative_to("models"), "manipulate-5-7-3")
    folder.mkdir(parents=True)
    (folder / "7_+0.3.png").touch()  # of other strengths
    words = WORDS.format(model).replace(" --sample_steps 3", "" if model == "vae" else " --sample_steps 3").split()
    assert main([*SMALL.split(), *words, "--img_id", "5", "7", "--strengths", "-0.5", "0", "1"]) == 0
    assert "AUROC of z" in capsys.readouterr().out
    assert {file.name for file in folder.iterdir()} == {"all.png", *(
        f"{name}_{s}.png" for name in "57" for s in ("-0.5", "+0", "+1"))}

    trained = open_trained(parse([*SMALL.split(), *words], "run.py", registry.SPECS), path)
    coder = trained.autoencoder()
    x = trained.load_data("test").batch([5])
    z, x_T = coder.encode(x)
    shown = np.asarray(Image.open(folder / "5_+0.png"))
    assert np.array_equal(shown, plots.to_uint8(coder.decode(z, x_T))[0, :, :, 0])

    train = trained.load_data("train")
    codes = encode_split(trained, train, 200).numpy()
    towards = classification.direction(codes, (train.labels[:200, 0] == 3).astype(int))
    moved, noise = seen[0]
    assert torch.allclose(moved, z + torch.tensor([[-0.5], [0], [1]]) * 2**0.5 * torch.from_numpy(towards), atol=1e-5)
    assert noise is None if model == "vae" else torch.allclose(noise, x_T, atol=1e-5)


@pytest.mark.parametrize("more, culprit", [
    ("--label nine", "--label nine"), ("--num_images 12", "too few"), ("--strengths far", "--strengths"),
    ("--img_id 5 99999", "99999"),
])
def test_mistakes_are_one_line_and_leave_nothing(in_tmp, capsys, more, culprit):
    checkpoint("--dataset digits --model diff")
    assert main([*SMALL.split(), *WORDS.format("diff").split(), *more.split()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and culprit in error
    assert not (in_tmp / "imgs").exists()


def test_files_of_one_name_are_told_apart():
    assert module._told_apart(["x", "y", "x", "x"]) == ["x", "y", "x-2", "x-3"]


def test_more_images_are_advised_where_there_are_more():
    for there, cure in ((18, "another label"), (500, "--num_images")):
        with pytest.raises(CommandError, match=cure):
            module._refuse_constant(np.arange(18) < 5, "3", there)
