"""The pictures of z and x_T: what is set to what, which files, and in which format."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import plots
from experiment import load
from modes import reconstructions
from run import main
from utils import CommandError, locked

MODEL = f"{tiny.SMALL} --dataset digits"


def test_a_traversal_changes_one_entry_at_a_time():
    z = torch.tensor([[5.0, 6.0, 7.0]])
    found = reconstructions.traversed(z, np.array([0, 2]), np.array([[-1.0, 1.0], [-2.0, 2.0]]))
    assert found.tolist() == [[-1, 6, 7], [1, 6, 7], [5, 6, -2], [5, 6, 2]]


def test_sheets_of_traversals_show_the_dimensions_that_move(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "labelled_sheet", lambda pixels, heads, rows, title, path: drawn.update(
        {path.name: (pixels, heads, rows)}))
    pixels = np.zeros((2, 70, 3, 4, 4, 1), np.uint8)
    pixels[:, 3:67, -1] = 9  # 64 dimensions move
    kinds = ["inferred x_T", "random x_T, 1"]
    reconstructions.draw_traversals(pixels, kinds, np.array([-1.5, 0, 1.5]), tmp_path, "pdf")
    assert set(drawn) == {"all.pdf", "all-random-1.pdf", *(f"sample{d}.pdf" for d in range(70))}
    assert drawn["all.pdf"][1:] == (["-1.5", "0", "+1.5"], [f"z{d}" for d in range(3, 67)])
    assert drawn["sample3.pdf"][2] == kinds and len(drawn["sample3.pdf"][0]) == 6


@pytest.mark.parametrize("model, kinds", [("diff", 3), ("vae --kld_weight 1 --mmd_weight 0", 1)])
def test_disentangle_has_a_row_an_x_T(in_tmp, model, kinds, monkeypatch):
    path = tiny.checkpoint(f"--model {model} --dataset digits")
    seen = []
    monkeypatch.setattr(reconstructions, "draw_traversals", lambda *args: seen.append(args))
    assert main(f"{MODEL} --model {model} --mode disentangle --range 0.5 --sample_steps 2".split()
                if kinds > 1 else f"{MODEL} --model {model} --mode disentangle --range 0.5".split()) == 0
    (pixels, names, values, folder, form), = seen
    assert pixels.shape == (kinds, 2, 11, 8, 8, 1) and len(names) == kinds and form == "png"
    assert values[[0, -1]].tolist() == [-0.5, 0.5] and folder.name == "disentangle-0" and path.exists()


def test_there_is_nothing_to_reconstruct_where_z_comes_with_the_data(in_tmp, capsys):
    path = tiny.checkpoint("--dataset digits --z_from class --a_dim 10")
    assert main(f"--mode latent_quality --from {path.parent} --device cpu".split()) == 2
    assert "--z_from class: z comes with the data" in capsys.readouterr().err
    with pytest.raises(CommandError, match="comes with the data"):
        load(path, "cpu").reconstruct(np.zeros((8, 8), np.uint8))


def test_two_measurements_at_once_are_not_mixed(in_tmp, capsys):
    path = tiny.checkpoint("--dataset digits")
    folder = Path("imgs", path.parent.name, "latent_quality")
    with locked(folder):
        assert main(f"{MODEL} --mode latent_quality".split()) == 2
    assert f"{folder} is in use by another run" in capsys.readouterr().err.replace(f"{Path.cwd()}/", "")


def test_a_labelled_sheet_cuts_no_title_and_leaves_no_half_file(tmp_path, full_pictures):
    pixels = np.full((4, 8, 8, 3), 200, np.uint8)
    for form, head in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        plots.labelled_sheet(pixels, ["a", "$b"], ["one", "two"], "a title of many more words than columns", tmp_path
                             / f"sheet.{form}")
        assert (tmp_path / f"sheet.{form}").read_bytes().startswith(head)
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    assert (picture[:, :3] == 255).all() and (picture[:, -3:] == 255).all()  # the title ends within the picture
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.png", "sheet.pdf"}


def test_tiny_images_are_enlarged_smoothly():
    step = np.zeros((1, 2, 2, 1), np.uint8)
    step[0, :, 1] = 255
    shown = plots.enlarged(step, 64)
    assert shown.shape == (1, 64, 64, 1) and len(np.unique(shown)) > 8
    assert (np.diff(shown[0, 5, :, 0].astype(int)) >= 0).all() and shown[0, 5, 0, 0] < 20 < 235 < shown[0, 5, -1, 0]
    large = np.zeros((2, 80, 80, 3), np.uint8)
    assert plots.enlarged(large, 64) is large
