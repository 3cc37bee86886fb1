"""The modes that write pictures: which files they may replace, and when a write that fails is noticed."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import run
import utils
from modes import latents, reconstructions, samples
from utils import locked

FLAGS = f"{tiny.SMALL} --num_workers 0 --dataset digits --model vanilla".replace("--encoder_channels 4", "").replace(
    "--a_dim 2", "")
EXP = "vanilla/digits_4steps_4unet"


@pytest.fixture
def place(in_tmp):
    tiny.checkpoint("--dataset digits --model vanilla")
    return in_tmp


def refused(words, capsys) -> str:
    capsys.readouterr()
    assert run.main(f"{words}".split()) == 2
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    (line,) = [line for line in said if line and "%|" not in line]
    return line


def pictures(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("[!.]*"))}


def originals(folder: str) -> dict[str, bytes]:
    Path(folder).mkdir(parents=True)
    for k in range(12):
        noise = np.random.default_rng(k).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{folder}/holiday_{k}.png")
    return pictures(folder)


@pytest.mark.parametrize("data", ["folder_imgs", ".", "photos"])
def test_originals_in_the_folder_that_is_written_to_stay(in_tmp, capsys, data):
    before = originals("folder_imgs")
    if data == "photos":
        originals("photos")
    line = refused(f"--mode save_original_img --dataset folder --data_dir {data} --input_size 16", capsys)
    assert "folder_imgs" in line and pictures("folder_imgs") == before


def test_its_own_pictures_are_replaced_and_a_link_is_not_followed(in_tmp, capsys):
    words = "--mode save_original_img --dataset digits --num_images"
    assert run.main(f"{words} 5".split()) == 0
    assert run.main(f"{words} 3 --split test".split()) == 0
    assert list(pictures("digits_imgs")) == ["000000.png", "000001.png", "000002.png"]
    os.rename("digits_imgs", "elsewhere")
    os.symlink("elsewhere", "digits_imgs")
    assert "digits_imgs is a link" in refused(f"{words} 2", capsys)
    assert len(pictures("elsewhere")) == 3


@pytest.mark.parametrize("mode, folder, name", [("eval", "eval", "sample-000009.png"), ("eval", "eval", "grid.png"),
                                                ("eval_fid", "eval-fid-fast", "000009.png"),
                                                ("eval_fid", "eval-fid-fast", "notes.txt")])
def test_a_picture_of_somebody_s_among_the_samples_stays(place, capsys, mode, folder, name):
    words = f"--mode {mode} {FLAGS} --sampling_number"
    assert run.main(f"{words} 6".split()) == 0
    assert run.main(f"{words} 4".split()) == 0  # fewer: its own last ones go
    theirs = place / "imgs" / EXP / folder / name
    assert len(pictures(theirs.parent)) == 4 + (mode == "eval")
    theirs.write_bytes(b"mine")
    before = pictures(theirs.parent)
    assert name in refused(f"{words} 2", capsys)
    assert pictures(theirs.parent) == before


def test_two_runs_do_not_draw_into_one_folder(place, capsys):
    folder = place / "imgs" / EXP / "eval-fid-fast"
    with locked(folder):
        line = refused(f"--mode eval_fid {FLAGS} --sampling_number 2", capsys)
    assert "in use by another run" in line and f"process {os.getpid()}" in line


def test_a_disk_that_is_full_ends_the_drawing_at_once(place, capsys, monkeypatch):
    drawn = []
    generate = samples.generate
    monkeypatch.setattr(samples, "generate", lambda *args, **more: drawn.append(1) or generate(*args, **more))
    write = samples.OwnFolder.write

    def full(self, name, content):
        if len(list(self.folder.glob("0*.png"))) >= 3:
            raise samples.CommandError(f"cannot write {name}: {os.strerror(errno.ENOSPC)}")
        write(self, name, content)

    monkeypatch.setattr(samples.OwnFolder, "write", full)
    line = refused(f"--mode eval_fid {FLAGS} --sampling_number 60 --batch_size 2", capsys)
    assert "No space left" in line and 2 <= len(drawn) < 15


@pytest.mark.parametrize("mode", ["save_latent", "train_latent_ddim", "latent_quality"])
def test_a_model_folder_that_cannot_be_written_is_said_before_anything_is_computed(in_tmp, capsys, monkeypatch, mode):
    tiny.checkpoint("--dataset digits")
    check = utils.check_writable

    def read_only(folder):
        if Path(folder).parts[0] == "models":
            raise utils.CommandError(f"cannot write to {folder}: Read-only file system")
        check(folder)

    def computed(*_):
        raise AssertionError("something was computed first")

    for module in (latents, reconstructions):
        monkeypatch.setattr(module, "check_writable", read_only)
        monkeypatch.setattr(module, "batches_of", computed)
    assert "models" in refused(f"--mode {mode} --dataset digits {tiny.SMALL}", capsys)


def test_two_phase_sampling_finds_the_plain_model_from_a_folder_too(place, capsys):
    folder = tiny.checkpoint("--dataset digits").parent
    words = "--mode eval_fid --split_step 2 --sampling_number 3 --device cpu --num_workers 0"
    assert run.main(f"{words} --from {folder}".split()) == 0
    assert run.main(f"{words} --from {folder} --vanilla_from models/{EXP}".split()) == 0
    assert capsys.readouterr().out.count(f"model: models/{EXP}/model-1.pth") == 2
