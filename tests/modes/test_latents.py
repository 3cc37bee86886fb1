"""Codes on a plane, and what their labels are called."""

import numpy as np
import pytest
import tiny
from PIL import Image

import plots
import run
from dataset import registry
from modes.latents import class_names, label_arrays, label_column, principal_plane
from utils import CommandError, read_npz


def test_two_components_hold_the_variance_that_they_say():
    generator = np.random.default_rng(0)
    plane = generator.normal(size=(50, 2)) * (3, 1)
    turned, _ = np.linalg.qr(generator.normal(size=(4, 4)))
    found, share = principal_plane(np.concatenate([plane, np.zeros((50, 2))], 1) @ turned + 5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(plane - plane.mean(0), axis=1))
    assert share == pytest.approx(1)


@pytest.mark.parametrize("codes", [np.ones((1, 4)), np.ones((5, 3)), np.arange(8.0).reshape(2, 4)])
def test_few_or_equal_codes_have_a_plane_too(codes):
    found, share = principal_plane(codes)
    assert found.shape == (len(codes), 2) and np.isfinite(found).all() and share == pytest.approx(1)


@pytest.fixture
def animals(in_tmp):
    """Twelve pictures with two attributes."""
    lines = []
    for k in range(12):
        path = in_tmp / "set" / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (20 * k, 7, 100)).save(path)
        lines.append(f"{k},{('cat', 'dog')[k % 2]},{('night', 'day', 'dusk')[k % 3]}")
    (in_tmp / "set" / "labels.csv").write_text("id,animal,light\n" + "\n".join(lines))
    return in_tmp


def test_labels_keep_the_names_of_their_columns_and_classes(animals):
    train = registry.load("folder", "train", root=animals / "set", size=8)
    assert [label_column(train, name) for name in (None, "animal", "light")] == [1, 0, 1]
    assert class_names(train) == (("cat", "dog"), ("day", "dusk", "night"))
    arrays = label_arrays(train, 5)
    assert arrays["all_attr"].shape == (5, 2) and arrays["attr_names"].tolist() == ["animal", "light"]
    assert arrays["class_names"].tolist() == [["cat", "dog", ""], ["day", "dusk", "night"]]
    with pytest.raises(CommandError, match="--label colour: the labels of folder are animal, light"):
        label_column(train, "colour")
    clothes = registry.Dataset(registry.SPECS["fmnist"], "test", np.arange(2), None, np.array([[0], [9]]))
    assert label_column(clothes, None) == 0 and class_names(clothes)[0][9] == "Ankle boot"
    assert class_names(registry.load("shapes3d", "val", size=8, limit=3))[4] == ("0", "1", "2", "3")
    with pytest.raises(CommandError, match="none"):
        label_column(registry.load("moons", "val"), "kind")


@pytest.mark.slow
def test_codes_are_plotted_by_the_column_and_words_that_are_asked_for(animals, monkeypatch):
    words = f"{tiny.SMALL} --model vae --dataset folder --data_dir set --input_size 8 --num_workers 0 --a_dim 4"
    tiny.checkpoint(words)
    drawn = []
    plain = plots.scatter
    monkeypatch.setattr(plots, "scatter", lambda *args: drawn.append(args) or plain(*args))
    for more in ("--label animal --split train", "--num_images 1"):
        assert run.main(["--mode", "plot_latent", *words.split(), *more.split()]) == 0
    assert drawn[0][2].endswith("coloured by animal") and drawn[0][4] == ("cat", "dog") and len(drawn[0][0]) == 10
    assert drawn[1][2].endswith("coloured by light") and drawn[1][0].shape == (1, 2)
    assert run.main(["--mode", "save_latent", *words.split()]) == 0
    saved = read_npz(next(animals.rglob("latents.npz")))
    assert saved["class_names"].tolist() == [["cat", "dog", ""], ["day", "dusk", "night"]]
