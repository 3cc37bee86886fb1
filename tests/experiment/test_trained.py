"""A model from Python: `load`, and what can be asked of it; the same numbers as the modes."""

import copy
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import run
import train_classifier
from diffusion import SimpleObjective, linear_schedule
from experiment import load
from experiment.measuring import Sample, codes_of, stratified_se
from experiment.validation import _over_rows, validation, validation_curve
from rng import Rng
from utils import CommandError, load_checkpoint, read_json, read_npz, save_checkpoint

EXP, VANILLA = "digits_2d_0.1mmd_4steps_4unet_4enc", "digits_4steps_4unet"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("place"))
        tiny.checkpoint("--dataset digits --learning_rate 2e-3")
        for model in ("vanilla", "vae"):
            tiny.checkpoint(f"--dataset digits --model {model}")
        tiny.checkpoint("--dataset moons --model vanilla")
        yield


@pytest.fixture(scope="module")
def model(place):
    return load(f"models/{EXP}", "cpu")


def test_a_folder_and_a_file_are_the_same_model(place, model):
    other = load(f"models/{EXP}/model-1.pth", "cpu")
    assert (other.path, other.hash) == (model.path, model.hash)
    with pytest.raises(CommandError, match="nowhere"):
        load("models/nowhere")


def test_codes_are_those_of_save_latent(place, model):
    assert run.main(f"--mode save_latent {tiny.SMALL} --num_images 5".split()) == 0
    codes = torch.from_numpy(read_npz(f"models/{EXP}/latents.npz")["all_a"])
    x = model.load_data("test").batch(range(5))
    assert torch.allclose(model.encode(x), codes, atol=1e-6)
    assert torch.allclose(torch.cat([model.encode(one[None]) for one in x]), codes, atol=1e-5)


def test_samples_are_those_of_eval(place, model):
    words = f"--mode eval {tiny.SMALL} --sampler dpmpp --sample_steps 3 --sampling_number 3 --batch_size 2 --r_seed 4"
    assert run.main(words.split()) == 0
    samples = model.sample(3, steps=3, seed=4)
    assert model.encode(samples).shape == (3, 2) and samples.abs().max() <= 1
    drawn = model.pictures(samples)
    for i, picture in enumerate(drawn):
        stored = np.asarray(Image.open(f"imgs/{EXP}/eval/sample-{i:06d}.png")).astype(int)
        assert np.abs(stored - np.asarray(picture)).max() <= 1


@pytest.mark.slow
def test_decoding_a_z_with_its_own_noise_gives_the_image_back(model):
    x = model.load_data("test").batch(range(2))
    z = model.encode(x)
    x_T = model.invert(x, z, steps=4)
    assert x_T.shape == x.shape
    again = model.decode(z, x_T, steps=4)
    assert torch.allclose(again, model.reconstruct(x, steps=4), atol=1e-5)
    path = model.interpolate(x[:1], x[1:], points=3, steps=4)
    assert torch.allclose(path[[0, 2]], again, atol=1e-4)
    assert torch.equal(model.decode(z, seed=1), model.decode(z, seed=1))
    assert not torch.allclose(model.decode(z, seed=1), model.decode(z, seed=2))


def test_a_model_without_z_or_without_noise_says_so(place):
    vanilla = load("models/vanilla/digits_4steps_4unet", "cpu")
    vae = load("models/vae/digits_2d_0.1mmd_4unet_4enc", "cpu")
    x = np.zeros((8, 8), np.uint8)
    with pytest.raises(CommandError, match="no encoder"):
        vanilla.encode(x)
    with pytest.raises(CommandError, match="no x_T"):
        vae.invert(x)
    assert vanilla.reconstruct(x, steps=4).shape == vae.reconstruct(x).shape == (1, 1, 8, 8)
    assert vanilla.sample(2, steps=4).shape == vae.sample(2).shape == (2, 1, 8, 8)


X, Z = np.zeros((8, 8), np.uint8), torch.zeros(2, 2)


@pytest.mark.parametrize("ask, culprit", [
    (lambda model: model.sample(0), "0 samples"), (lambda model: model.sample(1, steps=5), "5 steps: .* has 4"),
    (lambda model: model.decode(Z, steps=0), "0 steps"), (lambda model: model.decode(Z[0]), r"\[B, 2\], not \[2\]"),
    (lambda model: model.decode(torch.zeros(1, 3)), r"z is \[B, 2\], not \[1, 3\]"),
    (lambda model: model.sample(3, z=Z), r"z is \[3, 2\], not \[2, 2\]"),
    (lambda model: model.invert(X, z=Z), r"z is \[1, 2\], not \[2, 2\]"),
    (lambda model: model.interpolate([X, X], X), "between two images"),
    (lambda model: model.interpolate(X, X, points=1), "two points or more"),
    (lambda model: model.load_data("tset"), "no split 'tset': train, val, test"),
    (lambda model: model.information(split="tset"), "no split 'tset'"),
    (lambda model: model.batch(np.zeros((5, 16, 16), np.uint8)), r"\[5, 16, 16\]: .* a batch \[B, H, W, C\]"),
    (lambda model: load("models/typo"), "no checkpoint in models/typo"),
])
def test_what_makes_no_sense_is_refused_in_one_line(model, ask, culprit):
    with pytest.raises(CommandError, match=culprit):
        ask(model)


def test_latents_and_noise_may_be_arrays_and_one_code_serves_all(model):
    z, x_T = np.zeros((1, 2), np.float32), np.zeros((1, 1, 8, 8))
    assert model.invert([X, X], z=z, steps=2).shape == model.sample(2, z=z, steps=2).shape == (2, 1, 8, 8)
    assert torch.equal(model.decode(z, x_T, steps=2), model.decode(Z, torch.zeros(1, 1, 8, 8), steps=2)[:1])
    x, one = torch.rand(3, 1, 8, 8), torch.zeros(1)  # one log-SNR for all rows
    each = model.model.denoise(x, one.expand(3), Z[:1].expand(3, -1))
    assert torch.allclose(model.model.denoise(x, one, Z[:1]), each, atol=1e-5)


def test_where_z_comes_with_the_data_samples_have_that_of_training_rows(place, capsys):
    """Fault: they were drawn given a standard normal z, towards which nothing had pulled it."""
    tiny.checkpoint("--dataset shapes3d --z_from shape --input_size 8 --tag z --a_dim 4")
    (folder,) = Path("models").glob("shapes3d*z")
    model = load(folder, "cpu")
    z = model.prior(Rng(0, torch.arange(20)))
    assert set(z.sum(1).tolist()) == {1.0} and len(z.unique(dim=0)) > 1  # one-hot, and not the same row
    assert torch.equal(model.sample(2, steps=4), model.sample(2, z=z[:2], steps=4))
    assert run.main(f"--mode eval --from {folder} --sampling_number 2 --device cpu".split()) == 0
    assert "note: samples start from pure noise, and the schedule ends at log-SNR" in capsys.readouterr().out


def test_a_model_is_known_by_its_folder_and_survives_a_pickle(model):
    assert "models/" in repr(model) and len(repr(model)) < 200
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.encode(X), model.encode(X))
    assert (model.config.learning_rate, model.config.unets_channels) == (2e-3, 4)  # as it was trained


def test_points_come_as_floats(place):
    model = load("models/vanilla/moons_4steps_4unet", "cpu")
    assert model.sample(3, steps=4).shape == (3, 2)
    assert model.batch([0.1, 0.2]).shape == (1, 2)
    with pytest.raises(CommandError, match="points are floats"):
        model.batch(np.zeros((3, 3)))


def test_what_is_measured_is_of_full_precision(place):
    """Fault: a model's own autocast won, so that a run in bf16 logged a bound, and drew codes, of bf16."""
    found = []
    for path in (f"models/{EXP}", tiny.checkpoint("--dataset moons --model vanilla --loss itd")):
        model = load(path, "cpu")
        held_out = model.load_data("val")
        for lower in (None, torch.bfloat16):
            model.model.lower = lower
            if model.config.loss == "itd":
                found.append(validation_curve(model.model, held_out, model.config, model.device, range(50))[0].mean)
            else:
                found.append(codes_of(model.model, Sample(held_out, "val", 20, model.device, 0))[0])
            assert model.model.lower is lower
    assert torch.equal(found[0], found[1]) and found[2] == found[3]


def test_log_prob_is_the_row_of_nll(place):
    path = tiny.checkpoint("--dataset digits --z_dropout 0.1")
    model = load(path, "cpu")
    words = f"--mode nll --z_dropout 0.1 {tiny.SMALL} --num_images 6 --npoints 5"
    assert run.main(words.split()) == 0
    entries = read_json(f"results/{path.parent.name}/nll.json")["entries"]
    (row,) = [entry for entry in entries if entry["bound"] == "dequantised"]
    found = model.log_prob(model.load_data("test").batch(range(6)), npoints=5)
    assert found.kind == "dequantised" and found.nats.shape == found.se.shape == (6,)
    assert -found.mean.mean == pytest.approx(row["nll_nats"], rel=1e-6)
    assert found.mean.se == pytest.approx(row["se_nats"], rel=1e-6)


def test_the_error_of_a_mean_over_strata_does_not_count_their_slope():
    generator = torch.Generator().manual_seed(0)
    slope = torch.linspace(0, 30, 50)
    terms = slope + torch.randn(400, 50, generator=generator)
    true, found = terms.mean(1).std().item(), stratified_se(terms)
    assert true < found.mean().item() < 1.2 * true < terms.std(1).mean().item() / 50**0.5 / 5
    assert stratified_se(terms[:, :1]).isnan().all()
    ends = torch.randn(4000, 4, generator=generator) * torch.tensor([4.0, 1.0, 1.0, 4.0])
    assert stratified_se(ends).square().mean().sqrt() > 0.75 * ends.mean(1).std()  # with half the weight: .66


def test_the_error_of_a_held_out_loss_is_its_spread_over_noise(place):
    """Fault: log-SNRs that are spread evenly over the rows were taken for independent ones."""
    trained = load(f"models/vanilla/{VANILLA}", "cpu")
    ideal = copy.deepcopy(trained.model)
    del ideal.network
    ideal.network = ideal.gaussian.denoise  # its error rises from 0 to 1 with the log-SNR
    ideal.objective = SimpleObjective(linear_schedule(1e-4, 0.02, 1000))
    held_out, found = trained.load_data("val"), []
    for seed in range(16):
        found.append(validation(ideal, held_out, replace(trained.config, r_seed=seed), torch.device("cpu"), 1.0))
    spread = np.std([one["val"]["denoise"] for one in found], ddof=1)
    assert 0.7 * spread < np.mean([one["val_se"]["denoise"] for one in found]) < 1.4 * spread
    assert all(one["val_se"]["loss"] == one["val_se"]["denoise"] for one in found)  # it is nothing else


def test_the_error_of_a_sum_has_that_of_its_parts():
    """Fault: the loss had the spread of three batches' means, and less of an error than one of its terms."""
    generator = torch.Generator().manual_seed(0)
    denoise, mmd = (list(torch.rand(3, size, generator=generator).double()) for size in (8, 1))
    loss = [rows.mean()[None] + one for rows, one in zip(denoise, mmd, strict=True)]
    _, errors = _over_rows({"loss": loss, "denoise": denoise, "mmd": mmd}, [torch.rand(8)] * 3, [8] * 3)
    assert errors["loss"] == pytest.approx(np.hypot(errors["denoise"], errors["mmd"]))
    one = [torch.ones(1).double()]
    assert _over_rows({"loss": one, "denoise": one}, [torch.rand(1)], [1]) == ({"loss": 1.0, "denoise": 1.0}, {})


def test_what_has_no_likelihood_says_so(place, model):
    x = np.zeros((8, 8), np.uint8)
    with pytest.raises(CommandError, match="z_dropout"):
        model.log_prob(x)
    with pytest.raises(CommandError, match="VAE"):
        load("models/vae/digits_2d_0.1mmd_4unet_4enc", "cpu").log_prob(x)
    points = load("models/vanilla/moons_4steps_4unet", "cpu").log_prob([0.1, 0.2], npoints=4)
    assert points.kind == "continuous" and points.se[0] > 0


def test_intervals_are_those_of_mutual_info(place, model):
    assert run.main(f"--mode mutual_info {tiny.SMALL} --tau 2".split()) == 0
    record = read_json(f"results/{EXP}/mutual_info.json")
    (found,) = model.information(taus=(2.0,))
    for name in ("lower", "upper", "log_n"):
        assert found["bracket_nats"][name] == pytest.approx(record["bracket_nats"][name], rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of every kind


def test_every_kind_of_the_same_picture_is_the_same_to_the_model(model, tmp_path):
    x = model.load_data("test").batch([3])
    (picture,) = model.pictures(x)
    picture.save(tmp_path / "x.png")
    pixels = np.asarray(picture)
    kinds = [picture, [picture], str(tmp_path / "x.png"), tmp_path / "x.png", picture.convert("RGB"),
             picture.convert("RGBA"), pixels, pixels[:, :, None], pixels[None, :, :, None],
             torch.from_numpy(pixels.copy())[None], x, x[0], x.numpy(), x.double()]
    for kind in kinds:
        assert torch.allclose(model.batch(kind), x, atol=1e-6), type(kind)


def test_other_sizes_are_cut_to_a_square_and_resized(model):
    wide = np.full((16, 40, 3), 255, np.uint8)
    wide[:, :8] = 0  # outside the central square
    assert model.batch(wide).min() == 1 and model.batch(wide).shape == (1, 1, 8, 8)
    assert model.batch([wide, Image.new("L", (9, 9))]).shape == (2, 1, 8, 8)
    assert model.batch(torch.ones(1, 3, 16, 16)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("images, culprit", [
    ([], "no images"), (np.zeros((8, 8)) + 200.0, "[-1, 1]"), (np.zeros((8, 8), np.int64), "uint8"),
    (np.zeros((2, 8, 8, 8, 3), np.uint8), "shape"), (np.full((8, 8), np.nan), "[-1, 1]"),
    ("nowhere.png", "nowhere.png"), (np.zeros((1, 8, 8, 5), np.uint8), "channels"), ({"a": 1}, "dict"),
    (np.zeros((0, 8), np.uint8), "shape"),
])
def test_what_is_no_picture_is_refused_by_what_it_is(model, images, culprit):
    with pytest.raises(CommandError) as caught:
        model.batch(images)
    assert culprit in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# In place of the model's flags


@pytest.mark.parametrize("path", [EXP, f"{EXP}/model-1.pth", "vanilla/digits_4steps_4unet"])
def test_a_folder_stands_for_the_flags_of_its_model(place, path, capsys):
    assert run.main(f"--mode eval --from models/{path} --sampling_number 1 --img_folder from --device cpu".split()) == 0
    name = path.removesuffix("/model-1.pth")
    assert f"models/{name}/model-1.pth" in capsys.readouterr().out
    assert Path(f"from/{name}/eval/sample-000000.png").is_file()


def test_a_folder_of_another_name_is_found_and_a_contradiction_is_refused(place, capsys):
    shutil.copytree(f"models/{EXP}", "copies/mine")
    assert run.main(["--mode", "save_latent", "--from", "copies/mine", "--num_images", "3", "--device", "cpu"]) == 0
    assert Path("copies/mine/latents.npz").is_file()
    assert run.main(["--mode", "save_latent", "--from", "copies/mine", "--a_dim", "3", "--device", "cpu"]) == 2
    assert "--a_dim 3 contradicts copies/mine" in capsys.readouterr().err
    assert run.main(["--mode", "eval", "--from", "copies"]) == 2
    assert "no checkpoint in copies" in capsys.readouterr().err


@pytest.mark.slow
def test_a_program_without_modes_leaves_the_flags_of_training_aside(place, capsys):
    flags = "--dataset digits --diffusion_steps 4 --unets_channels 4 --encoder_channels 4 --a_dim 3 --device cpu"
    assert run.main(f"--mode train {flags} --dropout 0 --max_steps 1 --sampling_number 2".split()) == 0
    folder = "models/digits_3d_0.1mmd_4steps_4unet_4enc"
    assert run.main(f"--mode=save_latent --from={folder} --device cpu".split()) == 0
    assert train_classifier.main(f"--from {folder} --inputs z --folds 2 --jobs 1".split()) == 0
    assert "accuracy" in capsys.readouterr().out


def test_training_goes_on_from_a_folder(place, capsys):
    words = "--mode train --dataset line --model vanilla --unets_channels 4 --diffusion_steps 4 --device cpu " \
            "--batch_size 4000 --epochs 1 --learning_rate 1e-3 --sampling_number 2"
    assert run.main(words.split()) == 0
    words = "--mode train --from models/vanilla/line_4steps_4unet --epochs 2 --sampling_number 2 --device cpu"
    assert run.main(words.split()) == 0
    assert "extended from 1 to 2 epochs" in capsys.readouterr().out
    again = words.replace("--epochs 2 ", "")
    assert run.main(again.split()) == 0  # of as many epochs as the run has
    assert "this run is finished (2 epochs" in capsys.readouterr().out
    last = Path("models/vanilla/line_4steps_4unet/last.pth")  # as of a run extended to 7 epochs, and interrupted
    record = load_checkpoint(last)
    save_checkpoint(last, {**record, "config": {**record["config"], "epochs": 7}})
    assert run.main(again.split()) == 0
    assert "step 4 of 14" in capsys.readouterr().out and Path("models/vanilla/line_4steps_4unet/model-7.pth").exists()


def test_a_missing_checkpoint_names_what_is_like_it(place, capsys):
    assert run.main(["--mode", "eval", "--dataset", "digits", "--a_dim", "3", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert EXP in err and "--a_dim 2" in err
