"""Frechet and kernel distances against closed forms, loops and pytorch-fid; the two programs from end to end."""

import json
import subprocess
import sys
from itertools import combinations
from unittest import mock

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

import calc_fid
import gen_fid_stats
from dataset import registry
from metrics import extractors, fid
from modules import Classifier
from scripts import summary
from utils import CommandError, file_hash, save_checkpoint, write_npz


def rng(seed=0):
    return np.random.default_rng(seed)


def covariance(dims, rank, seed):
    root = rng(seed).standard_normal((dims, rank))
    return root @ root.T / rank


def moments(rows):
    result = fid.Moments(rows.shape[1])
    result.update(rows)
    return result


def frechet(x, y):
    return fid.frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))


# ---------------------------------------------------------------------------------------------------------------------
# Moments


@pytest.mark.parametrize("batch", [1, 7, 300, 1000])
def test_moments_do_not_depend_on_the_batch_size(batch):
    rows = 1e5 + rng().standard_normal((1000, 5)) @ rng(1).standard_normal((5, 5))
    streamed = fid.Moments(5)
    for start in range(0, 1000, batch):
        streamed.update(rows[start : start + batch])
    assert streamed.count == 1000
    np.testing.assert_allclose(streamed.mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(streamed.covariance, np.cov(rows, rowvar=False), rtol=1e-9)


def test_merging_equals_one_pass_and_taking_out_undoes_it():
    rows = 3 + rng().standard_normal((90, 4))
    whole, part = moments(rows[:60]), moments(rows[60:])
    whole.merge(fid.Moments(4))
    whole.merge(part)
    np.testing.assert_allclose(whole.covariance, np.cov(rows, rowvar=False), rtol=1e-12)
    rest = whole.without(part)
    assert rest.count == 60
    np.testing.assert_allclose(rest.mean, rows[:60].mean(0), rtol=1e-12)
    np.testing.assert_allclose(rest.covariance, np.cov(rows[:60], rowvar=False), rtol=1e-11)


def test_memory_of_moments_does_not_grow_with_the_rows():
    streamed = fid.Moments(3)
    for _ in range(50):
        streamed.update(rng().standard_normal((100, 3)))
        assert sum(map(len, streamed._pending)) < streamed.GATHER


# ---------------------------------------------------------------------------------------------------------------------
# Frechet distance


@pytest.mark.parametrize("rank", [6, 3])
def test_equal_covariances_give_the_squared_distance_of_the_means(rank):
    cov = covariance(6, rank, seed=0)
    shift = np.arange(6.0)
    assert fid.frechet_distance(shift, cov, np.zeros(6), cov) == pytest.approx(55, abs=1e-9)


def test_commuting_covariances_have_a_closed_form():
    """Also singular ones: then it is exact where the square root of a product loses half of the digits."""
    basis = np.linalg.qr(rng().standard_normal((40, 40)))[0]
    a, b = rng(1).uniform(0.1, 5, 40), rng(2).uniform(0.1, 5, 40)
    for zeros_a, zeros_b in [([], []), ([0, 1], []), (range(10), range(5, 15)), (range(20), range(20, 40))]:
        a0, b0 = a.copy(), b.copy()
        a0[list(zeros_a)], b0[list(zeros_b)] = 0, 0
        expected = ((np.sqrt(a0) - np.sqrt(b0)) ** 2).sum()
        found = fid.frechet_distance(np.zeros(40), basis * a0 @ basis.T, np.zeros(40), basis * b0 @ basis.T)
        assert found == pytest.approx(expected, rel=1e-12)


def test_fewer_samples_than_dimensions():
    x = rng().standard_normal((20, 100))
    assert frechet(x, x) == pytest.approx(0, abs=1e-10)
    # The rank is 19 at most, so the nuclear norm of the centred rows' product is the trace of the root.
    y = rng(1).standard_normal((30, 100)) + 1
    centred = (x - x.mean(0)) / 19**0.5, (y - y.mean(0)) / 29**0.5
    root = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (centred[0] ** 2).sum() + (centred[1] ** 2).sum() - 2 * root
    assert frechet(x, y) == pytest.approx(expected, rel=1e-12)


def test_constant_features_are_points():
    zero = np.zeros((3, 3))
    assert fid.frechet_distance(np.zeros(3), zero, np.ones(3), np.eye(3)) == pytest.approx(6)
    assert fid.frechet_distance(np.zeros(3), zero, np.ones(3), zero) == pytest.approx(3)


def test_frechet_agrees_with_the_matrix_square_root():
    a, b = covariance(64, 200, seed=1), covariance(64, 90, seed=2)
    root = np.trace(scipy.linalg.sqrtm(a @ b)).real
    found = fid.frechet_distance(np.zeros(64), a, np.zeros(64), b)
    assert found == pytest.approx(np.trace(a) + np.trace(b) - 2 * root, rel=1e-10)
    assert found == pytest.approx(fid.frechet_distance(np.zeros(64), b, np.zeros(64), a), rel=1e-10)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        fid.frechet_distance(np.zeros(2), np.full((2, 2), np.nan), np.zeros(2), np.eye(2))


# ---------------------------------------------------------------------------------------------------------------------
# Standard error and kernel distance


def test_jackknife_of_a_mean_is_its_textbook_error():
    rows = rng().standard_normal((40, 1))
    blocks = [moments(row[None]) for row in rows]
    error = fid.jackknife_error(blocks, lambda part: part.mean[0])
    assert error == pytest.approx(rows.std(ddof=1) / 40**0.5, rel=1e-9)


def test_jackknife_error_of_the_distance_is_its_spread():
    truth = np.array([0.5, 0, 0]), np.diag([1.0, 2, 3])
    values, errors = [], []
    for seed in range(100):
        rows = rng(seed).standard_normal((400, 3))
        blocks = [moments(rows[k::10]) for k in range(10)]
        values.append(fid.frechet_distance(rows.mean(0), np.cov(rows, rowvar=False), *truth))
        errors.append(fid.jackknife_error(blocks, lambda p: fid.frechet_distance(p.mean, p.covariance, *truth)))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.25)


def test_kernel_distance_agrees_with_a_double_loop():
    x, y = rng().standard_normal((7, 3)), rng(1).standard_normal((7, 3)) + 1

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    pairs = list(combinations(range(7), 2))
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i, j in pairs) / len(pairs)
    between = sum(kernel(a, b) for a in x for b in y) / 49
    value, deviation = fid.kernel_distance(x, y)
    assert value == pytest.approx(within - 2 * between, rel=1e-12)
    assert np.isnan(deviation)


def test_kernel_distance_is_unbiased_about_zero():
    values = [fid.kernel_distance(*rng(seed).standard_normal((2, 20, 4)))[0] for seed in range(1000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 1000**0.5
    assert np.mean(np.array(values) < 0) > 0.4


def test_kernel_distance_over_subsets():
    x, y = rng().standard_normal((200, 4)), rng(1).standard_normal((300, 4)) + 0.5
    whole, _ = fid.kernel_distance(x, y[:200])
    value, deviation = fid.kernel_distance(x, y, subsets=50, subset_size=60)
    assert value == pytest.approx(whole, abs=4 * deviation / 50**0.5 + 0.1)
    assert (value, deviation) == fid.kernel_distance(x, y, subsets=50, subset_size=60)
    assert deviation > 0
    with pytest.raises(ValueError, match="two rows"):
        fid.kernel_distance(x[:1], y)


# ---------------------------------------------------------------------------------------------------------------------
# Images


def save_images(folder, count, shape=(8, 8, 3), seed=0, brightness=255):
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(rng(seed).integers(0, brightness, (count, *shape), dtype=np.uint8)):
        Image.fromarray(pixels.squeeze()).save(folder / f"{i:03d}.png")
    return folder


def pool_extractor(channels=3, size=None):
    """A stand-in for a network: every channel's mean, deviation and corner."""

    def features(pixels):
        x = pixels.float()
        return torch.stack([x.mean((2, 3)), x.std((2, 3)), x[:, :, 0, 0]], 1).flatten(1)

    return extractors.Extractor(features, "classifier", "none", "0" * 16, 3 * channels, channels, size)


def test_images_are_read_in_the_order_of_their_names_as_the_channels_asked_for(tmp_path):
    folder = save_images(tmp_path / "grey", 5, (8, 6, 1))
    (folder / "notes.txt").write_text("no image")
    (folder / ".003.1.partial.png").write_text("half an image")
    grey, rgb = fid.folder_images(folder, 1), fid.folder_images(folder, 3, num_workers=3)
    assert (grey.count, grey.shape, rgb.shape) == (5, (1, 8, 6), (3, 8, 6))
    np.testing.assert_array_equal(rgb.read([4, 0]), grey.read([4, 0]).repeat(3, axis=1))
    np.testing.assert_array_equal(grey.read([2])[0, 0], np.asarray(Image.open(folder / "002.png")))
    colour = fid.folder_images(save_images(tmp_path / "colour", 2, (8, 6, 3)), 3)
    np.testing.assert_array_equal(colour.read([1])[0].transpose(1, 2, 0), Image.open(tmp_path / "colour/001.png"))


def cut_outs(folder, turned=False):
    """12 transparent pictures of 12x16 pixels, black where nothing shows; `turned` as upright by their tag alone."""
    folder.mkdir(parents=True)
    for k, (height, *colour) in enumerate(rng().integers(4, 256, (12, 4))):
        pixels = np.zeros((12, 16, 4), np.uint8)
        pixels[: 4 + height % 6, 3:13] = (*colour, 255)
        picture, tag = Image.fromarray(pixels), Image.Exif()
        tag[0x0112] = 6
        if turned:
            picture.rotate(90, expand=True).save(folder / f"{k:02d}.png", exif=tag)
        else:
            picture.save(folder / f"{k:02d}.png")
    return folder


def test_pictures_are_read_as_training_reads_them(in_tmp):
    plain, turned = cut_outs(in_tmp / "plain/deep/er"), cut_outs(in_tmp / "turned", turned=True)
    flat = in_tmp / "flat"
    flat.mkdir()
    for path in plain.iterdir():
        canvas = Image.new("RGB", (16, 12), "white")
        picture = Image.open(path)
        canvas.paste(picture, mask=picture.getchannel("A"))
        canvas.save(flat / f"{path.stem}.bmp")
    for channels in (1, 3):
        expected = fid.folder_images(flat, channels).read(np.arange(12))
        for folder in ("plain", turned):
            np.testing.assert_array_equal(fid.folder_images(folder, channels).read(np.arange(12)), expected)
    (in_tmp / "square").mkdir()
    for path in flat.iterdir():
        Image.open(path).crop((2, 0, 14, 12)).save(f"square/{path.stem}.png")
    data = registry.load("folder", "train", root=plain, size=12)
    rows = fid.folder_images("square", 3).read(data.rows)
    np.testing.assert_array_equal(data.raw(np.arange(len(data))).numpy(), rows)


def test_a_sheet_beside_its_samples_is_not_a_sample(tmp_path):
    folder = save_images(tmp_path / "eval", 3)
    for path in list(folder.iterdir()):
        path.rename(folder / f"sample-000{path.name}")
    Image.new("RGB", (50, 50)).save(folder / "grid.png")
    assert [path.name for path in fid.image_files(folder)] == [f"sample-{k:06d}.png" for k in range(3)]
    Image.new("RGB", (50, 50)).save(save_images(tmp_path / "own", 2) / "grid.png")
    assert len(fid.image_files(tmp_path / "own")) == 3
    (folder / ".hidden").mkdir()
    Image.new("RGB", (8, 8)).save(folder / ".hidden/a.png")
    assert len(fid.image_files(folder)) == 3


def test_statistics_do_not_depend_on_the_batch_size(tmp_path):
    images = fid.folder_images(save_images(tmp_path / "a", 45), 3, num_workers=2)
    one, other = (fid.measure(images, pool_extractor(), batch_size) for batch_size in (1, 16))
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-10)
    np.testing.assert_array_equal(one.features, other.features)
    reference = fid.measure(fid.folder_images(save_images(tmp_path / "b", 30, seed=1), 3), pool_extractor())
    first, second = fid.compare(reference, one), fid.compare(reference, other)
    for name in ("fid", "fid_se", "kid", "kid_sd"):
        assert first[name] == pytest.approx(second[name], rel=1e-7)
    assert (first["count"], first["reference_count"], first["size"]) == (45, 30, [8, 8])


def test_kept_features_are_bounded_and_drawn_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(fid, "KEPT_FEATURES", 10)
    images = fid.folder_images(save_images(tmp_path / "a", 40), 3)
    everything = pool_extractor()(images.read(np.arange(40)))
    kept = fid.measure(images, pool_extractor(), 7).features
    found = [np.flatnonzero((everything == row).all(1)).item() for row in kept]
    assert len(set(found)) == 10 and min(found) < 20 <= max(found)


def test_too_few_images_have_no_standard_error(tmp_path):
    few = fid.measure(fid.folder_images(save_images(tmp_path / "a", 8), 3), pool_extractor())
    record = fid.compare(few, few)
    assert record["fid"] == pytest.approx(0, abs=1e-6) and record["fid_se"] is None and record["kid_sd"] is None
    json.dumps(record, allow_nan=False)


def broken_folders(tmp_path):
    save_images(tmp_path / "single", 1)
    (tmp_path / "empty").mkdir()
    mixed = save_images(tmp_path / "mixed", 2)
    Image.new("RGB", (9, 8)).save(mixed / "wide.png")
    truncated = save_images(tmp_path / "truncated", 3)
    (truncated / "001.png").write_bytes((truncated / "001.png").read_bytes()[:100])
    text = save_images(tmp_path / "text", 2)
    (text / "zzz.jpg").write_text("hello")
    deep = save_images(tmp_path / "deep", 2)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep / "deep.png")
    return {"absent": "absent does not exist", "empty": "empty holds no images", "single": "000.png",
            "mixed": "wide.png", "truncated": "001.png", "text": "zzz.jpg", "deep": "deep.png"}


def test_a_bad_folder_is_one_line_that_names_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gen_fid_stats, "build_extractor", lambda args: pool_extractor())
    for folder, culprit in broken_folders(tmp_path).items():
        output = tmp_path / f"{folder}.npz"
        assert gen_fid_stats.main(["name", str(tmp_path / folder), "--output", str(output)]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("gen_fid_stats.py: error: ") and culprit in line and "\n" not in line
        assert not output.exists()


def test_images_of_a_data_set_spread_their_levels():
    grey, rgb = (fid.dataset_images("digits", "./data", "train", channels) for channels in (1, 3))
    pixels = grey.read(np.arange(50))
    assert pixels.dtype == np.uint8 and pixels.min() == 0 and pixels.max() == 255
    np.testing.assert_array_equal(rgb.read(np.arange(50)), pixels.repeat(3, axis=1))
    assert rgb.count == grey.count > 1000 and rgb.shape == (3, *grey.shape[1:])
    with pytest.raises(CommandError, match="points"):
        fid.dataset_images("moons", "./data", "train", 3)


# ---------------------------------------------------------------------------------------------------------------------
# The two programs, with the classifier's features


def save_classifier(path, size=8, seed=0):
    torch.manual_seed(seed)
    config = {"channels": 3, "size": size, "classes": 4, "width": 8}
    save_checkpoint(path, {"kind": "classifier", "config": config, "model": Classifier(**config).state_dict()})
    return path


@pytest.fixture
def experiment(in_tmp):
    """A folder of reference images, one of samples, and the data set's classifier."""
    save_images(in_tmp / "celeba_imgs", 30)
    save_images(in_tmp / "imgs/celeba_32d_0.1mmd/eval-fid-latent", 25, seed=1, brightness=200)
    save_classifier(in_tmp / "models/celeba_classifier.pth")
    return in_tmp


SAMPLES = "./imgs/celeba_32d_0.1mmd/eval-fid-latent"
CLASSIFIER = ["--extractor", "classifier"]


def entries(path="results/celeba_32d_0.1mmd/fid.json"):
    with open(path) as file:
        return json.load(file)


def refused(program, arguments, capsys):
    """Run a program that must refuse; return its one line."""
    assert program.main(list(map(str, arguments))) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_reference_by_name_by_file_and_by_folder_agree(experiment, capsys):
    assert gen_fid_stats.main(["celeba", "./celeba_imgs", *CLASSIFIER]) == 0
    weights, found = file_hash("models/celeba_classifier.pth")[:8], []
    for name, place in (("celeba", "fid_stats/celeba_classifier.npz"), ("fid_stats/celeba_classifier.npz",) * 2,
                        ("celeba_imgs",) * 2):
        more = ["--classifier", "models/celeba_classifier.pth", "--batch_size", "7"]
        assert calc_fid.main([name, SAMPLES, *CLASSIFIER, *more]) == 0
        found.append(entries()[f"{SAMPLES[2:]} vs {place} (classifier, none, weights {weights})"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert "not comparable with Inception FID" in line and "resize none" in line
    assert len(entries()) == 2
    assert found[-1]["call"]["batch_size"] == 7 and found[-1]["call"]["name"] == "celeba_imgs"
    for record in found:
        assert record["fid"] == pytest.approx(found[0]["fid"], rel=1e-6)
        assert record["kid"] == pytest.approx(found[0]["kid"], rel=1e-6)
        assert record["fid"] > 3 * record["fid_se"] > 0
        assert (record["count"], record["reference_count"]) == (25, 30)


def test_statistics_of_another_extractor_or_size_are_refused(experiment, capsys):
    save_classifier("models/other.pth", seed=1)
    assert gen_fid_stats.main(["celeba", "./celeba_imgs", *CLASSIFIER, "--classifier", "models/other.pth"]) == 0
    capsys.readouterr()
    line = refused(calc_fid, ["celeba", SAMPLES, *CLASSIFIER], capsys)
    assert "celeba_classifier.npz was measured with weights" in line
    save_images(experiment / "large", 3, (16, 16, 3))
    line = refused(calc_fid, ["celeba", "large", *CLASSIFIER, "--classifier", "models/other.pth"], capsys)
    assert "16x16" in line and "8x8" in line
    reference = fid.measure(fid.folder_images("large", 3), pool_extractor())
    sample = fid.measure(fid.folder_images("celeba_imgs", 3), pool_extractor())
    with pytest.raises(CommandError, match="large is of 16x16"):
        fid.compare(reference, sample)
    assert not (experiment / "results").exists()


def test_what_is_missing_is_named_with_its_cure(experiment, capsys):
    line = refused(calc_fid, ["celeba", SAMPLES], capsys)
    assert "python gen_fid_stats.py celeba ./celeba_imgs" in line
    assert "absent.npz does not exist" in refused(calc_fid, ["absent.npz", SAMPLES], capsys)
    write_npz("partial.npz", mu=np.zeros(3), sigma=np.eye(3), extractor="inception")
    assert "partial.npz has no array 'count'" in refused(calc_fid, ["partial.npz", SAMPLES], capsys)
    assert "train_classifier.py" in refused(gen_fid_stats, ["cats", "celeba_imgs", *CLASSIFIER], capsys)
    save_checkpoint("models/cats_classifier.pth", {"kind": "diff"})
    assert "cats_classifier.pth" in refused(gen_fid_stats, ["cats", "celeba_imgs", *CLASSIFIER], capsys)
    assert "--batch_size" in refused(gen_fid_stats, ["cats", "celeba_imgs", "--batch_size", "0"], capsys)
    assert "--device" in refused(gen_fid_stats, ["cats", "celeba_imgs", "--device", "abacus"], capsys)
    assert "FOLDER" in refused(gen_fid_stats, ["cats"], capsys)
    assert "cannot write" in refused(calc_fid, ["celeba_imgs", SAMPLES, "--output", "celeba_imgs"], capsys)
    assert not (experiment / "fid_stats").exists()


def test_results_of_other_images_are_kept_apart(experiment):
    for seed, run in enumerate(("runA", "runB")):
        folder = save_images(experiment / run / "samples", 25, seed=seed, brightness=200)
        for place in (folder, f"./{run}/../{run}/samples"):  # one place
            command = ["celeba_imgs", str(place), *CLASSIFIER, "--classifier", "models/celeba_classifier.pth"]
            assert calc_fid.main(command) == 0
    found = entries("results/samples/fid.json")
    assert [record["source"] for record in found.values()] == ["runA/samples", "runB/samples"]
    first, second = found.values()
    assert first["fid"] != second["fid"]
    values = [value.measure.split(" vs ")[0] for value in summary.fid_values(found)]
    assert values == ["FID, runA/samples", "KID, runA/samples", "FID, runB/samples", "KID, runB/samples"]


def test_statistics_of_other_programs_are_read_as_of_unknown_settings(experiment, capsys):
    assert gen_fid_stats.main(["celeba", "./celeba_imgs", *CLASSIFIER]) == 0
    ours = fid.read_statistics("fid_stats/celeba_classifier.npz")
    np.savez("theirs.npz", mu=ours.mean, sigma=ours.covariance.astype(np.float32))
    for name in ("celeba", "theirs.npz"):
        assert calc_fid.main([name, SAMPLES, *CLASSIFIER, "--classifier", "models/celeba_classifier.pth"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "unknown" in line and "no KID" in line
    known, unknown = entries().values()
    assert unknown["fid"] == pytest.approx(known["fid"], rel=1e-3)
    assert (unknown["kid"], unknown["reference_extractor"], unknown["reference_count"]) == (None, "unknown", None)
    np.savez("other.npz", mu=np.zeros(5), sigma=np.eye(5))
    other = ["other.npz", SAMPLES, *CLASSIFIER, "--classifier", "models/celeba_classifier.pth"]
    assert "5 features, and not the 32" in refused(calc_fid, other, capsys)


@pytest.mark.parametrize(("change", "culprit"), [
    ({"mu": np.full(3, np.nan)}, "mu holds values that are not finite"),
    ({"sigma": np.diag([1, np.inf, 1])}, "sigma holds values"),
    ({"mu": np.zeros((3, 1))}, "mu must be"),
    ({"sigma": np.eye(4)[:3]}, "sigma must be"),
    ({"sigma": np.eye(4)}, "3 dimensions and sigma 4"),
    ({"mu": np.array(["a", "b", "c"])}, "mu must be"),
    ({"sigma": np.diag([1.0, -30, 1])}, "negative variances"),
    ({"sigma": np.array([[1, 2, 0], [2, 1, 0], [0, 0, 1.0]])}, "negative variances"),
    ({"sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
    ({"features": np.zeros((4, 2), np.float32)}, "features must be"),
    ({"features": np.full((4, 3), np.inf, np.float32)}, "features holds"),
    ({"count": np.array(-1)}, "count"),
    ({"size": np.array([8])}, "size"),
    ({"weights": np.array([1, 2])}, "weights"),
])
def test_statistics_that_no_images_have_are_refused(in_tmp, change, culprit):
    sound = {"mu": np.zeros(3), "sigma": np.eye(3), "count": 9, "features": np.zeros((4, 3), np.float32),
             "size": [8, 8], "extractor": "classifier", "resize": "none", "weights": "0" * 16}
    np.savez("stats.npz", **sound)
    assert fid.read_statistics("stats.npz").count == 9
    np.savez("stats.npz", **{**sound, **change})
    with pytest.raises(CommandError, match=f"^stats.npz.*{culprit}"):
        fid.read_statistics("stats.npz")


def test_a_data_set_is_a_reference_by_its_name(in_tmp, capsys):
    raw = fid.dataset_images("digits", "./data", "test", 3)
    save_classifier("models/digits_classifier.pth", size=raw.shape[-1])
    (in_tmp / "samples").mkdir()
    for number, pixels in enumerate(raw.read(np.arange(raw.count))):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(in_tmp / f"samples/{number:04d}.png")
    assert calc_fid.main(["digits", "samples", "--data_dir", "./data", "--split", "test", *CLASSIFIER]) == 0
    (record,) = entries("results/samples/fid.json").values()
    assert record["fid"] == pytest.approx(0, abs=1e-9) and record["reference"] == "digits (test)"
    capsys.readouterr()
    assert "cats" in refused(gen_fid_stats, ["cats", "--data_dir", "./data", *CLASSIFIER], capsys)


def test_results_go_beside_the_experiment():
    places = {"./imgs/vae/celeba_8d/eval-fid-fast": "results/vae/celeba_8d/fid.json",
              "runs/imgs/celeba/eval": "runs/results/celeba/fid.json", "samples/cats": "results/cats/fid.json",
              "imgs/cats": "results/cats/fid.json"}
    for folder, expected in places.items():
        assert calc_fid.result_path(calc_fid.Path(folder)).as_posix() == expected


def test_flags_are_checked_without_torch():
    code = "import sys, calc_fid; status = calc_fid.main(['a']); sys.exit(status != 2 or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# Inception: agreement with pytorch-fid, with random weights in its format


@pytest.fixture(scope="module")
def inception_home(tmp_path_factory):
    """A torch hub folder that holds a weights file in pytorch-fid's format, made of random numbers."""
    torchvision = pytest.importorskip("torchvision")
    package = pytest.importorskip("pytorch_fid.inception")
    with mock.patch.object(package, "load_state_dict_from_url"), \
            mock.patch.object(torchvision.models.Inception3, "load_state_dict"):
        network = package.fid_inception_v3()
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    home = tmp_path_factory.mktemp("home")
    path = home / "hub/checkpoints" / package.FID_WEIGHTS_URL.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    return home


def weights_file(home):
    return next((home / "hub/checkpoints").iterdir())


def test_inception_features_agree_with_pytorch_fid(inception_home, tmp_path, monkeypatch):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    monkeypatch.setenv("TORCH_HOME", str(inception_home))
    folder = save_images(tmp_path / "a", 3, (40, 32, 3))
    network = fid_score.InceptionV3([3])
    expected = fid_score.get_activations(sorted(folder.iterdir()), network, 3, num_workers=0)
    images = fid.folder_images(folder, 3)
    extractor = extractors.inception()
    found = extractor(images.read([0, 1, 2]))
    assert found.shape == (3, 2048)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * abs(expected).max())
    assert extractor.identity() == extractors.inception(weights_file(inception_home)).identity()


def test_clean_resizing_is_pils_on_unrounded_values(inception_home, tmp_path, monkeypatch):
    package = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setenv("TORCH_HOME", str(inception_home))
    images = fid.folder_images(save_images(tmp_path / "a", 2, (400, 400, 3)), 3)
    pixels = images.read([0, 1]).astype(np.float32)
    side = (299, 299)
    resized = [[Image.fromarray(c).resize(side, Image.Resampling.BICUBIC) for c in image] for image in pixels]
    unit = torch.from_numpy(np.array([[np.asarray(c) for c in image] for image in resized])).clamp(0, 255) / 255
    with torch.no_grad():
        expected = package.InceptionV3([3], resize_input=False).eval()(unit)[0].flatten(1).numpy()
    clean, plain = extractors.inception(resize="clean"), extractors.inception()
    found = clean(images.read([0, 1]))
    np.testing.assert_allclose(found, expected, atol=1e-3 * abs(expected).max())
    assert abs(plain(images.read([0, 1])) - expected).max() > 0.05 * abs(expected).max()
    assert clean.identity() != plain.identity()


def test_weights_that_are_missing_broken_or_out_of_reach(in_tmp, capsys, monkeypatch):
    package = pytest.importorskip("pytorch_fid.inception")
    save_images(in_tmp / "celeba_imgs", 2)
    command = ["celeba", "./celeba_imgs"]
    monkeypatch.setenv("TORCH_HOME", str(in_tmp / "home"))
    monkeypatch.setattr(package, "FID_WEIGHTS_URL", "http://127.0.0.1:9/inception-6726825d.pth")
    assert "--inception_weights PATH" in refused(gen_fid_stats, command, capsys)
    assert "absent.pth" in refused(gen_fid_stats, [*command, "--inception_weights", "absent.pth"], capsys)
    (in_tmp / "text.pth").write_text("hello")
    torch.save({"weight": torch.zeros(1)}, "other.pth")
    torch.save(torch.nn.Linear(1, 1), "code.pth")
    for name in ("text.pth", "other.pth", "code.pth"):
        assert name in refused(gen_fid_stats, [*command, "--inception_weights", name], capsys)
    assert not (in_tmp / "fid_stats").exists()


@pytest.mark.slow
def test_the_published_commands_agree_with_pytorch_fids_own(inception_home, in_tmp, monkeypatch):
    """Also the regression test of: SciPy 1.18 broke pytorch-fid's distance."""
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    monkeypatch.setenv("TORCH_HOME", str(inception_home))
    save_images(in_tmp / "celeba_imgs", 12, (64, 64, 3))
    save_images(in_tmp / SAMPLES, 10, (64, 64, 3), seed=1, brightness=120)
    assert gen_fid_stats.main(["celeba", "./celeba_imgs"]) == 0
    assert calc_fid.main(["celeba", SAMPLES]) == 0
    (record,) = entries().values()
    found = record["fid"]
    assert found > 0
    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18):
        pytest.skip("pytorch-fid 0.3.0 does not run on this SciPy")
    expected = fid_score.calculate_fid_given_paths(["./celeba_imgs", SAMPLES], 5, "cpu", 2048, num_workers=0)
    assert found == pytest.approx(expected, rel=1e-4)
