from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

import commandline
import train_classifier
from dataset import registry
from metrics import classification
from metrics.folds import fold_error
from metrics.measured import classification_values
from modules import Classifier
from utils import CommandError, load_checkpoint, read_json, write_npz

CLASSIFIERS = ("logistic", pytest.param("mlp", marks=pytest.mark.slow))


def blobs(rows, classes, spread=0.3, seed=0, shares=None):
    """Points around the corners of a simplex, with the corner's number as label."""
    generator = np.random.default_rng(seed)
    labels = generator.choice(classes, size=rows, p=shares)
    return np.eye(classes)[labels] + spread * generator.normal(size=(rows, classes)), labels[:, None]


def evaluate(inputs, labels, classifier="logistic", folds=3, **more):
    names = [f"label {k}" for k in range(labels.shape[1])]
    return classification.evaluate(inputs, labels, names, classifier, folds, jobs=1, **more)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_separable_classes_are_told_apart_and_noise_is_not(classifier):
    inputs, labels = blobs(200, 3, spread=0.1)
    assert evaluate(inputs, labels, classifier)["mean"] > 0.99
    noise = np.random.default_rng(1).normal(size=inputs.shape)
    result = evaluate(noise, labels, classifier)
    assert result["measure"] == "accuracy" and result["mean"] == pytest.approx(1 / 3, abs=0.12)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_attributes_are_scored_by_auroc_each_and_on_average(classifier):
    labels = (np.random.default_rng(0).random((400, 3)) < [0.5, 0.3, 0.5]).astype(int)
    inputs = np.random.default_rng(1).normal(size=(400, 4))
    inputs[:, :2] += 3 * labels[:, :2]
    result = evaluate(inputs, labels, classifier)
    first, second, blind = (one["mean"] for one in result["per_label"])
    assert result["measure"] == "auroc" and result["chance"] == 0.5
    # Two normals three deviations apart: AUROC = Phi(3 / sqrt 2) = .983
    assert first == pytest.approx(0.983, abs=0.02) and second == pytest.approx(0.983, abs=0.02)
    assert blind == pytest.approx(0.5, abs=0.1)
    assert result["mean"] == pytest.approx((first + second + blind) / 3)
    assert len(result["folds"]) == 3


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_inputs_are_standardised_inside_the_fold(classifier):
    inputs, labels = blobs(200, 3)
    stretched = inputs * [1e4, 1.0, 1e-4] + [1e5, 0, -3]
    stretched = np.concatenate([stretched, np.full((200, 1), 7.0)], axis=1)  # a dead input does no harm
    plain, scaled = evaluate(inputs, labels, classifier), evaluate(stretched, labels, classifier)
    assert scaled["mean"] == pytest.approx(plain["mean"], abs=0.02)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_scores_are_seeded(classifier):
    inputs, labels = blobs(120, 3, spread=1.0)
    state = torch.random.get_rng_state()
    first, again, other = (evaluate(inputs, labels, classifier, seed=seed)["folds"] for seed in (4, 4, 5))
    assert first == again and first != other
    assert torch.equal(state, torch.random.get_rng_state())  # the global generator is untouched


@pytest.mark.slow
def test_mlp_weights_rare_classes():
    """A class of 4% that overlaps another: unweighted, hardly any row would be called by its name."""
    generator = np.random.default_rng(0)
    labels = (np.arange(1000) % 25 == 0).astype(int)[:, None]
    inputs = (generator.normal(size=(1000, 1)) + 1.5 * labels).astype(np.float32)
    probability = classification._mlp(inputs, inputs, labels, seed=0, device="cpu")[0]
    called = probability.argmax(axis=1)
    assert called[labels[:, 0] == 1].mean() > 0.6
    assert called[labels[:, 0] == 0].mean() < 0.4


def test_folds_hold_each_row_out_once_and_spread_a_class():
    _, labels = blobs(203, 4, shares=[0.6, 0.3, 0.07, 0.03])
    part = classification.fold_numbers(labels, folds=5, seed=0)
    assert np.ptp(np.bincount(part, minlength=5)) <= 1
    for value in range(4):
        assert np.ptp(np.bincount(part[labels[:, 0] == value], minlength=5)) <= 1


@pytest.mark.parametrize("classifier", ["logistic", pytest.param("mlp", marks=pytest.mark.slow)])
def test_constant_and_rare_labels_are_scored_without_nan(classifier):
    labels = np.zeros((100, 3), dtype=int)
    labels[:50, 0], labels[3, 2] = 1, 1  # balanced, constant, a single positive
    result = evaluate(np.random.default_rng(0).normal(size=(100, 3)), labels, classifier)
    assert [one["mean"] is None for one in result["per_label"]] == [False, True, True]
    assert np.isfinite([result["mean"], result["sd"], *result["folds"]]).all()
    factors = labels.copy()
    factors[:3, 0] = 5  # three rows of one value, others absent
    assert np.isfinite(evaluate(np.random.default_rng(0).normal(size=(100, 3)), factors, classifier)["mean"])


def test_the_average_is_over_labels_that_every_fold_scores():
    """Fault: a fold that could not score the rare label was averaged with those that could."""
    generator = np.random.default_rng(0)
    labels = np.stack([np.arange(200) % 2, np.zeros(200, int)], axis=1)
    labels[:3, 1] = 1  # in three of five folds at most
    codes = labels[:, :1] + 0.1 * generator.normal(size=(200, 1))
    result = evaluate(codes, labels, folds=5)
    assert result["averaged"] == ["label 0"] and None in result["per_label"][1]["folds"]
    assert min(result["folds"]) == result["mean"] == 1
    with pytest.raises(CommandError, match="--folds"):
        evaluate(codes, labels[:, 1:], folds=5)


def test_chance_is_of_the_labels_that_are_scored():
    generator = np.random.default_rng(0)
    labels = np.stack([np.zeros(300, int), np.arange(300) % 3, np.arange(300) % 6], axis=1)  # the first is constant
    assert evaluate(generator.normal(size=(300, 2)), labels)["chance"] == pytest.approx((1 / 3 + 1 / 6) / 2)


@pytest.mark.slow
def test_wide_inputs_lose_only_their_small_axes():
    generator = np.random.default_rng(0)
    factors, labels = blobs(200, 4, spread=0.2)
    wide = factors @ generator.normal(size=(4, 300)) + 0.01 * generator.normal(size=(200, 300))
    narrow = evaluate(wide, labels, axes=20)
    assert narrow["axes"] == 20 and narrow["dimensions"] == 300
    assert narrow["mean"] == pytest.approx(evaluate(wide, labels)["mean"], abs=0.02)


def test_logistic_regression_is_scikit_learns_with_the_penalty_chosen_by_validation():
    generator = np.random.default_rng(0)
    inputs, labels = blobs(400, 3, spread=0.8)
    inputs = inputs @ generator.normal(size=(3, 20)) + 0.01 * generator.normal(size=(400, 20))  # ill-conditioned
    rotated, held = classification._prepare(inputs[:300], inputs[300:], 20, 0, rotate=True)
    for cost in (1e-3, 1.0):
        ours = softmax(classification.logits(held, classification.fit_logistic(rotated, labels[:300, 0], cost)), axis=1)
        theirs = LogisticRegression(C=cost, tol=1e-8, max_iter=5000).fit(rotated.astype(float), labels[:300, 0])
        np.testing.assert_allclose(ours, theirs.predict_proba(held.astype(float)), atol=1e-3)
    noise = generator.normal(size=(300, 100))
    assert classification.choose_cost(noise, labels[:300, 0], 0) == min(classification.COSTS)
    assert classification.choose_cost(rotated, labels[:300, 0], 0) > min(classification.COSTS)


def test_a_direction_is_a_unit_step_of_standardised_codes_along_the_planted_one():
    generator = np.random.default_rng(0)
    label = np.arange(2000) % 2
    planted = np.array([3.0, 4.0, 0.0, 0.0]) / 5
    standard = generator.normal(size=(2000, 4)) + 2 * np.outer(label - 0.5, planted)
    codes = standard * [100.0, 0.01, 1.0, 1.0] + 5
    codes[:, 3] = 7.0  # a dead code
    found = classification.direction(codes, label) / np.where(codes.std(axis=0) > 1e-9, codes.std(axis=0), 1)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    # the optimal normal of equal covariances: in standardised codes, within-class precision times the shift
    scale = standard[:, :2].std(axis=0)
    optimal = planted[:2] * scale
    assert found[:2] @ optimal / np.linalg.norm(optimal) > 0.99 and found[3] == 0


def test_components_are_taken_within_the_fold_of_the_inputs_as_they_are():
    """The class stands in a small direction: lost by two components, kept by all, and by two of standardised inputs."""
    generator = np.random.default_rng(0)
    labels = np.arange(300)[:, None] % 2
    small = 4 * labels + generator.normal(size=(300, 1))
    inputs = np.concatenate([10 * generator.normal(size=(300, 2)), small], axis=1)
    two, three = (evaluate(inputs, labels, components=count) for count in (2, 3))
    assert two["dimensions"] == 2 and two["mean"] < 0.65
    assert three["mean"] == pytest.approx(evaluate(inputs, labels)["mean"], abs=0.01) and three["mean"] > 0.95
    assert evaluate(inputs, labels, components=50)["dimensions"] == 3


def test_errors_are_over_folds_and_differences_are_paired():
    """Nadeau & Bengio's factor for five folds: 1/5 + 1/4."""
    first = {"folds": [0.80, 0.82, 0.84, 0.81, 0.83]}
    second = {"folds": [0.70, 0.72, 0.74, 0.71, 0.73]}
    assert fold_error(first["folds"]) == pytest.approx(np.std(first["folds"], ddof=1) * 0.45**0.5)
    paired = classification.difference(first, second)
    assert paired["mean"] == pytest.approx(0.1) and paired["se"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("spreads", "expected"), [([1, 1, 1, 1], 4), ([1, 0, 0, 0], 1), ([2, 1, 0, 0], 25 / 17),
                                                   ([3], 1), ([0, 0], 0)])
def test_the_participation_ratio_counts_the_directions_that_vary_whatever_the_axes(spreads, expected):
    codes = np.random.default_rng(0).normal(size=(40_000, len(spreads))) * spreads
    turned = codes @ np.linalg.qr(np.random.default_rng(1).normal(size=(len(spreads),) * 2))[0] + 5
    for z in (codes, turned):
        assert classification.participation_ratio(z) == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_factors_share_one_network():
    labels = np.stack([np.arange(300) % 2, np.arange(300) // 2 % 4], axis=1)
    heads = classification.head_sizes(labels)
    assert heads == [2, 4]
    images = torch.full((300, 2, 8, 8), -1.0)  # the first label is a colour, the second the corner that is lit
    for image, (colour, corner) in zip(images, labels, strict=True):
        image[colour, 4 * (corner // 2) : 4 * (corner // 2) + 4, 4 * (corner % 2) : 4 * (corner % 2) + 4] = 1.0
    network = classification.train_images(lambda rows: images[rows], labels, heads, (2, 8, 8), epochs=12, width=16)
    assert classification.right_answers(network, lambda rows: images[rows], labels, heads).mean(axis=0).min() > 0.95


@pytest.mark.parametrize("inputs, labels, culprit", [
    (np.ones((20, 2)), np.zeros((20, 1), int), "constant"),
    (np.ones((20, 2)), np.zeros((19, 1), int), "(20, 2)"),
    (np.ones((4, 2)), np.arange(4)[:, None], "too few"),
    (np.full((20, 2), np.inf), np.arange(20)[:, None], "infinite"),
])
def test_inputs_and_labels_that_do_not_go_together_are_refused(inputs, labels, culprit):
    with pytest.raises(CommandError) as error:
        evaluate(inputs, labels)
    assert culprit in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# The program, on the embedded digits

EXPERIMENT = ["--model", "diff", "--dataset", "digits", "--a_dim", "16"]


@pytest.fixture
def saved(in_tmp):
    """An experiment's files, with latents that are a noisy linear view of the pixels and x_T that is noise."""
    digits = registry.load("digits", "test")
    pixels = digits.batch(np.arange(200)).flatten(1).numpy()
    generator = np.random.default_rng(0)
    folder = in_tmp / "models/digits_16d_0.1mmd"
    z = pixels @ generator.normal(size=(64, 16)) / 8
    write_npz(folder / "latents.npz", all_a=z, all_attr=digits.labels[:200], attr_names=np.array(["digit"]),
              split=np.array("test"))
    write_npz(folder / "latent_quality.npz", z=z[:100], labels=digits.labels[:100],
              x_T=generator.normal(size=(100, 1, 8, 8)))
    return in_tmp


def test_latents_stand_beside_noise_and_pixels(saved, capsys):
    assert train_classifier.main([*EXPERIMENT, "--jobs", "1"]) == 0
    record = read_json(saved / "results/digits_16d_0.1mmd/classification.json")
    scores = {name: result["mean"] for name, result in record["inputs"].items()}
    assert scores["pixels"] > scores["z"] > 0.6 and scores["x_T"] < 0.35
    assert record["inputs"]["pixels"]["dimensions"] == 64 and record["inputs"]["pca"]["dimensions"] == 16
    assert scores["pixels"] > scores["pca"] > scores["untrained"] > 0.3
    assert record["split"] == "test" and record["protocol"] == "200 of 200 images of the test split"
    for name in ("pixels", "pca", "untrained"):
        paired = record["differences"][f"z - {name}"]
        assert paired["mean"] == pytest.approx(scores["z"] - scores[name]) and paired["se"] > 0
    assert "z - x_T" not in record["differences"]  # of other rows
    printed = capsys.readouterr().out
    assert all(f"\n{name} " in printed for name in ("z", "x_T", "pixels", "pca", "untrained"))
    assert "5 folds of 80% to fit and 20% to score" in printed
    assert 2 < record["inputs"]["z"]["participation_ratio"] < 16 and "16 dimensions (" in printed


def test_the_untrained_encoder_is_the_experiments_own_with_weights_of_the_seed(in_tmp):
    command, _ = commandline.parse(EXPERIMENT, train_classifier.PROG, registry.SPECS, extra=train_classifier._flags)
    cfg = command.config
    images = registry.load("digits", "test").batch(np.arange(4)).numpy()
    first, again = (train_classifier._untrained(cfg, images) for _ in range(2))
    other = train_classifier._untrained(replace(cfg, r_seed=1), images)
    assert first.shape == (4, 16) and np.array_equal(first, again) and np.abs(first - other).max() > 1e-3


@pytest.mark.slow
def test_the_training_split_has_a_result_file_of_its_own(in_tmp, capsys):
    digits = registry.load("digits", "train")
    z = digits.batch(np.arange(100)).flatten(1).numpy()[:, 20:36]
    write_npz("models/digits_16d_0.1mmd/latents.npz", all_a=z, all_attr=digits.labels[:100], split=np.array("train"))
    assert train_classifier.main([*EXPERIMENT, "--jobs", "1", "--inputs", "z", "pca", "--rows", "80"]) == 0
    record = read_json("results/digits_16d_0.1mmd/classification_train.json")
    assert record["protocol"] == "80 of 100 images of the train split" and list(record["differences"]) == ["z - pca"]
    assert not Path("results/digits_16d_0.1mmd/classification.json").exists()
    measures = {value.measure: value.se for value in classification_values(record)}
    assert measures["accuracy of classes from z, logistic, train split"] == record["inputs"]["z"]["se"]
    assert measures["z - pca, accuracy, train split"] == record["differences"]["z - pca"]["se"]


@pytest.mark.slow
def test_image_classifier_is_trained_and_saved_for_fid(in_tmp):
    arguments = ["--dataset", "digits", "--images", "--width", "16", "--epochs", "3", "--device", "cpu"]
    assert train_classifier.main(arguments) == 0
    record = load_checkpoint("models/digits_classifier.pth")
    assert record["kind"] == "classifier"
    assert record["config"] == {"channels": 1, "size": 8, "classes": 10, "width": 16}
    network = Classifier(**record["config"]).eval()
    network.load_state_dict(record["model"])
    digits = registry.load("digits", "test")
    with torch.no_grad():
        guesses = network(digits.batch(np.arange(len(digits)))).argmax(1).numpy()
    assert np.mean(guesses == digits.labels[:, 0]) == pytest.approx(record["accuracy"], abs=1e-6)
    assert record["accuracy"] > 0.8


@pytest.mark.parametrize("changed, reason", [
    ({"split": np.array("train")}, "of the train split"),
    ({"x_T": np.zeros((8, 64)), "labels": np.zeros((8, 1))}, "8 rows"),
])
def test_x_T_that_do_not_fit_the_codes_are_left_out_or_refused(saved, capsys, changed, reason):
    place = "models/digits_16d_0.1mmd/latent_quality.npz"
    write_npz(place, **{**np.load(place), **changed})
    assert train_classifier.main([*EXPERIMENT, "--jobs", "1", "--inputs", "z", "x_T"]) == 2
    assert reason in capsys.readouterr().err
    task = train_classifier._gather(*commandline.parse(EXPERIMENT, "", registry.SPECS, extra=train_classifier._flags))
    assert "x_T" not in task.inputs and "z" in task.inputs
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("arguments, culprit", [
    (["--a_dim", "8"], "save_latent"),
    (["--classifier", "svm"], "--classifier"),
    (["--device", "abacus"], "--device"),
    (["--images", "--dataset", "moons"], "moons"),
    (["--inputs", "x_T", "--tag", "copy"], "latent_quality"),
    (["--inputs", "pixels", "--tag", "other"], "latents.npz"),
])
def test_mistakes_are_one_line_and_leave_nothing(saved, capsys, arguments, culprit):
    latents = dict(np.load("models/digits_16d_0.1mmd/latents.npz"))
    write_npz("models/digits_16d_0.1mmd_copy/latents.npz", **latents)
    write_npz("models/digits_16d_0.1mmd_other/latents.npz", **{**latents, "all_attr": latents["all_attr"][::-1]})
    assert train_classifier.main([*EXPERIMENT, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train_classifier.py: error:") and error.count("\n") == 1 and culprit in error
    assert not (saved / "results").exists()
