"""The modes nll and mutual_info, from a model to its result files: refusals, names of numbers, provenance."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from oracles import GaussianDenoiser, PairDenoiser
from torch import nn

import commandline
import config as config_module
import plots
from dataset import points, registry
from diffusion import Gaussian, LogSNRProposal
from experiment import Trained, batches_of, build_fresh, fit_gaussian, load_data, measuring, prepare
from experiment.measuring import Sample
from information import interval
from modes import by_logsnr, maps, mutual_info, nll
from run import main
from run import main as run_main
from scripts import plot_results
from utils import CommandError, file_hash


@pytest.fixture(autouse=True)
def small_mixtures(monkeypatch):
    """Narrow networks, mixtures of two components at most, fitted to few rows, and coarse maps: what is made of them
    is tested here."""
    for name in ("digits", "moons", "shapes3d"):
        monkeypatch.setitem(registry.SPECS, name, replace(registry.SPECS[name], width=8))
    monkeypatch.setattr(interval, "SIZES", (1, 2))
    monkeypatch.setattr(interval, "FITTED_ROWS", 1000)
    monkeypatch.setattr(maps, "POINTS", 1)
    monkeypatch.setattr(by_logsnr, "GRID", 4)


class Oracle(nn.Module):
    """A closed-form denoiser in the place of a model's network."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_noisy, logsnr, z=None):
        return self.denoiser(x_noisy, logsnr, z)


def trained(tmp_path, *flags, network=None):
    """An untrained model of a command line, as if from a checkpoint."""
    folders = ["--result_folder", str(tmp_path / "results")]
    command = commandline.parse([*flags, "--device", "cpu", *folders], "run.py", registry.SPECS)
    dataset = load_data(command.config, "train")
    gaussian = fit_gaussian(dataset, 0)
    model = build_fresh(command.config, dataset.shape, gaussian, torch.device("cpu")).eval().requires_grad_(False)
    if network is not None:
        model.network = Oracle(network)
    path = tmp_path / "model-1.pth"
    path.write_bytes(b"weights")
    return Trained(command.config, command.by_hand, model, path, 1, 10, torch.device("cpu"))


def results(run, name):
    return json.loads((config_module.folder(run.config, "results") / name).read_text())


def test_nll_of_points_names_the_exact_excess(tmp_path):
    oracle = GaussianDenoiser(torch.zeros(2), torch.from_numpy(points.mvn_covariance(2)[:2, :2]))
    run = trained(tmp_path, "--mode", "nll", "--model", "vanilla", "--dataset", "mvn", "--a_dim", "2", "--loss", "itd",
                  "--npoints", "16", "--num_images", "3000", network=oracle)
    nll.measure_likelihood(run)
    record = results(run, "nll.json")
    (entry,) = record["entries"]
    assert entry["kind"] == "continuous"
    assert entry["nll_bpd"] == pytest.approx(entry["nll_nats"] / (2 * np.log(2)))
    assert abs(entry["excess_nats"]) < 3 * entry["excess_se"]
    assert entry["excess_se"] < entry["se_nats"]  # paired
    assert entry["reported_on"] == "test"
    assert (entry["low"], entry["high"]) == tuple(record["logsnr_range"])
    assert record["num_images"] == 3000


@pytest.mark.slow
def test_the_estimator_is_chosen_with_other_noise_than_it_is_reported_with(tmp_path, monkeypatch):
    seeds, measure = [], nll.error_curve

    def watched(estimators, batches, gaussian, proposal, npoints, seed, **more):
        seeds.append(seed)
        return measure(estimators, batches, gaussian, proposal, npoints, seed, **more)

    monkeypatch.setattr(nll, "error_curve", watched)
    words = "--mode nll --model vanilla --npoints 2 --num_images 4"
    nll.measure_likelihood(trained(tmp_path, *words.split()))
    assert len(seeds) == len(set(seeds)) == 2


def test_nll_of_lattice_data_reports_every_bound_under_its_own_name(tmp_path):
    run = trained(tmp_path, "--mode", "nll", "--model", "vanilla", "--unets_channels", "32", "--npoints", "2",
                  "--num_images", "6", "--soft")
    nll.measure_likelihood(run)
    entries = {entry["bound"]: entry for entry in results(run, "nll.json")["entries"]}
    kinds = [entry["kind"] for entry in entries.values()]
    assert {"dequantised", "lattice", "discrete"} == set(kinds)
    lattice = entries["lattice value (no bound)"]
    assert "nll_bpd" not in lattice
    assert "nll_lattice_bpd" in lattice
    best = entries["discrete, best at each log-SNR"]
    assert (best["chosen_on"], best["reported_on"]) == ("val", "test")
    assert {"discrete, soft-rounded", "VDM, continuous time", "VDM, 1000 steps",
            "DDPM, 1000 steps, fixed variance"} <= set(entries)
    # Trained with the simple loss: only within its schedule is the model asked.
    assert best["low"] >= run.model.schedule.logsnr_range[0]
    assert best["high"] <= run.model.schedule.logsnr_range[1]
    assert (config_module.folder(run.config, "results") / "nll_errors.png").stat().st_size > 1000


@pytest.mark.slow
def test_every_discrete_bound_of_shapes3d_stands_beside_its_entropy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "GAUSSIAN_ROWS", 500)
    run = trained(tmp_path, "--mode", "nll", "--model", "vanilla", "--dataset", "shapes3d", "--input_size", "8",
                  "--unets_channels", "4", "--diffusion_steps", "4", "--npoints", "2", "--num_images", "4")
    nll.measure_likelihood(run)
    for entry in results(run, "nll.json")["entries"]:
        if entry["kind"] == "lattice":
            assert "entropy_nats" not in entry
            continue
        assert entry["entropy_nats"] == pytest.approx(math.log(480_000))
        assert entry["excess_nats"] == pytest.approx(entry["nll_nats"] - math.log(480_000))
        assert entry["excess_nats"] > -3 * entry["excess_se"]
    assert "| 13.0815 |" in capsys.readouterr().out


@pytest.mark.slow
def test_no_bound_of_a_trained_network_lies_under_the_entropy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "vanilla", "--dataset", "shapes3d", "--input_size", "8", "--unets_channels", "16", "--device",
             "cpu", "--loss", "itd"]
    assert run_main(["--mode", "train", *flags, "--epochs", "1", "--max_steps", "150", "--learning_rate", "1e-3",
                     "--ema_decay", "0.9"]) == 0
    assert run_main(["--mode", "nll", *flags, "--npoints", "16", "--num_images", "64"]) == 0
    (path,) = Path("results").rglob("nll.json")
    entries = [entry for entry in json.loads(path.read_text())["entries"] if "entropy_nats" in entry]
    assert len(entries) > 5
    for entry in entries:
        assert entry["excess_nats"] > -3 * entry["excess_se"]
    assert min(entry["excess_nats"] for entry in entries) < 900  # and the network has learnt: log(256) * 192 is 1,065


def test_an_ensembles_likelihood_is_no_result_of_one_model(tmp_path, monkeypatch):
    """Fault: it took the place of the model's own, and stood in its card."""
    monkeypatch.chdir(tmp_path)
    member = tiny.checkpoint("--dataset moons --model vanilla --tag other")
    words = f"--mode nll --model vanilla --dataset moons --npoints 2 --num_images 4 --ensemble {member}"
    run = trained(tmp_path, *words.split(), "--unets_channels", "4", "--diffusion_steps", "4")
    nll.measure_likelihood(run)
    assert not (config_module.folder(run.config, "results") / "nll.json").exists()
    (other,) = results(run, "nll-ensemble.json")["ensemble"]
    assert other["checkpoint"] == str(member) and other["checkpoint_hash"] == file_hash(member)


def test_a_conditional_likelihood_is_never_printed_as_the_likelihood(tmp_path):
    flags = ("--mode", "nll", "--model", "diff", "--a_dim", "2", "--npoints", "2", "--num_images", "4")
    with pytest.raises(CommandError, match="--z_dropout"):
        nll.measure_likelihood(trained(tmp_path, *flags))
    run = trained(tmp_path, *flags, "--kld_weight", "1")
    nll.measure_likelihood(run)
    assert {entry["branch"] for entry in results(run, "nll.json")["entries"]} == {"elbo"}
    run = trained(tmp_path, *flags, "--kld_weight", "1", "--z_dropout", "0.1")
    nll.measure_likelihood(run)
    assert {entry["branch"] for entry in results(run, "nll.json")["entries"]} == {"elbo", "unconditional"}


def test_mutual_information_of_given_pairs_is_the_known_value(tmp_path):
    covariance = torch.from_numpy(points.mvn_covariance(2))
    run = trained(tmp_path, "--mode", "mutual_info", "--dataset", "mvn", "--a_dim", "2", "--loss", "itd", "--z_dropout",
                  "0.1", "--npoints", "32", "--num_images", "3000", network=PairDenoiser(covariance, 2))
    mutual_info.measure_information(run)
    record = results(run, "mutual_info.json")
    assert record["exact_nats"] == pytest.approx(0.2939, abs=1e-4)
    assert record["usable_nats"]["difference"] == pytest.approx(0.2939, abs=0.03)
    assert record["usable_nats"]["orthogonal"] == pytest.approx(0.2939, abs=0.03)
    low, high = record["bracket_nats"]["interval"]
    assert low < 0.2939 < high < low + 0.2
    assert record["usable_nats"]["inside"]
    assert all(check["passed"] for check in record["checks"])


@pytest.mark.parametrize("flags", [
    ("--model", "vae"), ("--z_dropout", "0.1", "--mi_steps", "0"),
    pytest.param(("--model", "diff"), marks=pytest.mark.slow)])
def test_the_interval_needs_no_denoiser(tmp_path, flags, capsys):
    run = trained(tmp_path, "--mode", "mutual_info", "--a_dim", "2", "--num_images", "200", "--r_seed", "1", *flags)
    mutual_info.measure_information(run)
    record = results(run, "mutual_info.json")
    assert [part["tau"] for part in record["over_tau"]] == [1.0, 2.0, 4.0]
    for part in record["over_tau"]:
        found = part["bracket_nats"]
        assert found["interval"][0] < 0.5 * math.log1p(1 / part["tau"] ** 2) * 2 + 0.1  # capacity of two dimensions
        assert found["interval"][0] <= found["interval"][1]
        assert (found["chosen_on"], found["rows"], found["log_n"]) == ("val", 200, pytest.approx(math.log(200)))
        assert len(part["per_dimension_nats"]) == 2
    assert all(check["passed"] for check in record["checks"])
    assert "usable_nats" not in record
    assert "not measured" in record["usable"]
    assert "usable information not measured" in capsys.readouterr().out


def test_mutual_information_of_a_stochastic_encoder(tmp_path):
    run = trained(tmp_path, "--mode", "mutual_info", "--a_dim", "2", "--kld_weight", "1", "--z_dropout", "0.1",
                  "--npoints", "2", "--num_images", "30")
    mutual_info.measure_information(run)
    record = results(run, "mutual_info.json")
    found = record["bracket_nats"]
    assert {"left-out", "rate", "capacity", "mixture"} == set(found["upper_bounds"])
    assert record["rate_nats"] == found["upper_bounds"]["rate"]["mean"]
    assert found["log_n"] == pytest.approx(np.log(30))
    assert len(record["per_dimension_nats"]) == len(record["reliance_nats"]) == 2
    assert record["over_tau"] is None
    # Fresh weights end in zeros: with and without z the network says the same.
    assert record["usable_nats"]["orthogonal"] == pytest.approx(0, abs=1e-6)
    assert record["lost_below_range_nats"] > 0


@pytest.mark.slow
def test_mutual_information_of_a_deterministic_encoder_is_a_curve_over_tau(tmp_path):
    run = trained(tmp_path, "--mode", "mutual_info", "--dataset", "moons", "--a_dim", "2", "--z_dropout", "0.1",
                  "--npoints", "2", "--num_images", "30", "--mi_steps", "2", "--tau", "1", "0.1")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    mutual_info.measure_information(run)
    record = results(run, "mutual_info.json")
    assert [part["tau"] for part in record["over_tau"]] == [0.1, 1.0]
    assert record["over_tau"][0]["bracket_nats"]["upper"] > record["over_tau"][1]["bracket_nats"]["upper"]
    assert any("larger tau" in check["name"] for check in record["checks"])
    # Trained by the schedule's steps, measured over the data's own range: the twin's, for both branches.
    assert record["logsnr_range"] == list(run.model.gaussian.logsnr_range)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(("flags", "truth"), [
    pytest.param(("--dataset", "blobs", "--pair_nats", "3"), 3.0, marks=pytest.mark.slow),
    (("--dataset", "rectangles", "--pair_nats", "0"), 0.0),
    pytest.param(("--dataset", "digits", "--z_from", "class"), None, marks=pytest.mark.slow),
])
def test_the_interval_of_z_that_comes_with_images(tmp_path, flags, truth):
    run = trained(tmp_path, "--mode", "mutual_info", *flags, "--unets_channels", "4", "--num_images", "500")
    mutual_info.measure_information(run)
    record = results(run, "mutual_info.json")
    low, high = record["bracket_nats"]["interval"]
    assert record["exact_nats"] == truth
    if truth is not None:
        assert low - 0.1 <= truth <= high + 0.1
        assert high - low < 0.5
    else:
        assert 2.2 < low <= high < 2.35  # log 10, less a little for uneven classes


def test_the_curve_over_logsnr_of_codes_and_labels(tmp_path, capsys):
    run = trained(tmp_path, "--mode", "mutual_info", "--a_dim", "2", "--num_images", "30", "--curve_steps", "2")
    mutual_info.measure_information(run)
    record = results(run, "mutual_info.json")
    assert set(record["by_logsnr"]) == {"z, tau 1", "class"}
    for curve in record["by_logsnr"].values():
        assert len(curve["logsnr"]) == len(curve["nats"]) == len(curve["se"]) == len(curve["slope"]) + 1
        assert "exact" not in curve
    assert (config_module.folder(run.config, "results") / "information.png").stat().st_size > 1000
    assert set(record["maps"]["of"]) == {"z, tau 1", "class"}
    assert (config_module.folder(run.config, "results") / "information_maps.png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert "I(x_a; class) >=" in shown and "where the information lies" in shown


def test_the_two_networks_of_a_curve_are_fitted_to_different_rows(tmp_path, monkeypatch):
    """Fault: what both had learnt by heart of the same rows stood in the maps as information."""
    run = trained(tmp_path, "--mode", "mutual_info", "--dataset", "moons", "--a_dim", "2", "--num_images", "60")
    curves, fitted = by_logsnr.Curves(run, Sample.of(run, "test")), []

    def fit(network, batch_at, count, *rest):
        fitted.append(batch_at(torch.arange(count))[0])
        return network

    monkeypatch.setattr(by_logsnr, "fit", fit)
    z = torch.zeros(len(curves.x), 2)
    curves.nats(lambda: curves.critic(z), lambda x, index: torch.zeros(len(x), 2), z, ["z"])
    rows = [{tuple(row.tolist()) for row in x} for x in fitted]
    assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == curves.training.count


@pytest.mark.slow
def test_maps_of_labels_and_of_what_the_denoiser_uses_stand_beside_the_renderer_s_masks(tmp_path):
    run = trained(tmp_path, "--mode", "mutual_info", "--dataset", "shapes3d", "--input_size", "8", "--z_from",
                  "floor_hue", "--z_dropout", "0.1", "--num_images", "30", "--curve_steps", "2", "--npoints", "2")
    for weight in run.model.parameters():  # a fresh network's output is zero, with z and without
        weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    mutual_info.measure_information(run)
    record, folder = results(run, "mutual_info.json"), config_module.folder(run.config, "results")
    assert {"z", "floor hue", "object hue"} < set(record["maps"]["of"])
    with np.load(folder / "usable_maps.npz") as stored:
        assert stored["z"].shape == (6, 8, 8) and stored["z"].min() > 0
        assert stored["z"].sum() == pytest.approx(record["usable_maps"]["of"]["z"]["nats"])
    for key in ("maps", "usable_maps"):
        for one in record[key]["of"].values():
            assert set(one["share_on"]) == {"floor", "wall", "object"}
    assert (folder / "usable_maps.png").stat().st_size > 1000


@pytest.mark.parametrize("stochastic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_interval_of_a_file_of_codes(tmp_path, stochastic, monkeypatch, capsys):
    # Three standard normal entries with noise: the capacity is the truth, 3/2 log(1 + 1/tau^2).
    codes = np.random.default_rng(1).normal(size=(2000, 3))
    arrays = {"all_a": codes} | ({"all_logvar": np.zeros((2000, 3))} if stochastic else {})
    np.savez(tmp_path / "codes.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    assert run_main(["--mode", "mutual_info", "--codes", "codes.npz", "--tau", "1"]) == 0
    record = json.loads((tmp_path / "results" / "codes-codes" / "mutual_info.json").read_text())
    low, high = record["bracket_nats"]["interval"]
    assert low <= 1.5 * math.log(2) <= high
    assert high - low < 0.25
    assert record["tau"] == (None if stochastic else 1.0)
    np.savez(tmp_path / "broken.npz", all_a=np.full((30, 2), np.nan))
    assert run_main(["--mode", "mutual_info", "--codes", "broken.npz"]) == 2
    assert "broken.npz" in capsys.readouterr().err


@pytest.mark.slow
def test_plot_results_draws_from_result_files_alone(tmp_path, capsys, monkeypatch):
    oracle = GaussianDenoiser(torch.zeros(3), torch.from_numpy(points.mvn_covariance(3)[:3, :3]))
    run = trained(tmp_path, "--mode", "nll", "--model", "vanilla", "--dataset", "mvn", "--a_dim", "3", "--loss", "itd",
                  "--npoints", "4", "--num_images", "50", network=oracle)
    nll.measure_likelihood(run)
    covariance = torch.from_numpy(points.mvn_covariance(2))
    run = trained(tmp_path, "--mode", "mutual_info", "--dataset", "mvn", "--a_dim", "2", "--loss", "itd", "--z_dropout",
                  "0.1", "--npoints", "4", "--num_images", "50", network=PairDenoiser(covariance, 2))
    mutual_info.measure_information(run)
    output = tmp_path / "figures"
    for by, place in (("a_dim", 2), ("step", 10)):
        series = {}
        monkeypatch.setattr(plots, "lines", lambda found, *rest, series=series, **options: series.update(found))
        assert plot_results.main([str(tmp_path / "results"), "--output", str(output), "--by", by]) == 0
        assert series["I(x; z), exact"] == ((place,), (pytest.approx(0.2939, abs=1e-4),))
    monkeypatch.undo()
    assert plot_results.main([str(tmp_path / "results"), "--output", str(output), "--by", "a_dim"]) == 0
    drawn = {path.name for path in output.iterdir()}
    assert {"errors.png", "bounds.md", "information.md", "information.png"} == drawn
    shutil.copytree(tmp_path / "results", tmp_path / "other")
    records = plot_results.gather([str(tmp_path / "results"), str(tmp_path / "other")])
    assert len({record["name"] for record in records if record["mode"] == "nll"}) == 2  # one experiment, two files
    assert plot_results.main([str(tmp_path / "nothing"), "--output", str(output)]) == 2
    assert "nothing is no result file" in capsys.readouterr().err


def test_a_reference_from_few_rows_is_said_beside_the_numbers_it_enters(tmp_path):
    run = trained(tmp_path, "--mode", "nll", "--model", "vanilla", "--unets_channels", "32", "--num_images", "4")
    rows = batches_of(load_data(run.config, "train"), 40, "cpu", range(40))
    run.model.gaussian = Gaussian.fit((x for _, x in rows), 2 / 16)
    reference = measuring.reference_of(run.model.gaussian)
    assert reference["rows"] == 40 and 0 < reference["shrinkage"] < 1
    assert "from 40 rows in 64 dimensions" in reference["note"]
    sample, proposal = measuring.Sample.of(run, "test"), measuring.proposal_of(run.model)
    likelihood = nll.Likelihood(run.model, sample, proposal, 1, 0, False, nll.UNCONDITIONAL, 0.0)
    touched, apart = (likelihood._entry("bound", "discrete", torch.zeros(4), tails=tails)
                      for tails in ("Gaussian left, softmax decoder right", "N(0, I) left, softmax decoder right"))
    assert (touched["cautions"], apart["cautions"]) == (["reference from 40 rows"], [])
    table = nll.bounds_table([touched, apart]).splitlines()
    assert "caution" in table[0] and "reference from 40 rows" in table[2] and "reference" not in table[3]
    before = [{key: value for key, value in entry.items() if key != "cautions"} for entry in (touched, apart)]
    assert "caution" not in nll.bounds_table(before)


def test_a_range_that_leaves_nats_outside_is_said_beside_the_number():
    gaussian = Gaussian(torch.zeros(3).double(), torch.tensor([0.01, 1.0, 1.0]).double(), None)
    wide, narrow = LogSNRProposal(0, 1, -12, 14), LogSNRProposal(0, 1, -3, 4)
    assert measuring.cautions(gaussian, wide, True, True) == []
    assert measuring.cautions(gaussian, narrow, False, False) == []
    assert measuring.cautions(gaussian, narrow, True, False) == ["under -3.0 the Gaussian alone"]
    assert measuring.cautions(gaussian, narrow, False, True) == ["over 4.0 the Gaussian alone"]


def test_an_untuned_network_is_measured_where_it_was_trained(tmp_path):
    """--loss itd would set the range from the data; a pretrained network has seen its own schedule alone."""
    model = trained(tmp_path, "--mode", "nll", "--model", "vanilla", "--unets_channels", "32", "--loss", "itd").model
    asked, seen = measuring.proposal_of(model), measuring.proposal_of(model, tuned=False)
    low, high = model.schedule.logsnr_range
    assert asked.low < low and (asked.low, asked.high) == model.gaussian.logsnr_range
    assert seen.low == low and seen.high <= high
    assert "trained on" in measuring.range_note(model, seen)


@pytest.mark.slow
def test_what_a_head_can_use_is_measured_of_a_checkpoint(in_tmp, capsys):
    """Fault: codes of a model that was read back had a graph, which two steps of the head would go through."""
    tiny.checkpoint("--dataset digits --z_dropout 0.1")
    words = f"--mode mutual_info --z_dropout 0.1 --mi_steps 2 --npoints 3 --num_images 30 {tiny.SMALL}"
    assert main(words.split()) == 0
    assert "usable" in capsys.readouterr().out
