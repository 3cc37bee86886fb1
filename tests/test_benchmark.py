"""scripts/benchmark.py: rivals do our work, figures mean what they say, absent packages are said."""

import sys

import pytest
import torch

from config import Config
from dataset import registry
from models import build_denoiser, build_encoder, multipliers, parameter_count
from scripts import benchmark, contenders
from utils import read_json

pytestmark = pytest.mark.usefixtures("full_networks")

SLOW = pytest.mark.slow


@torch.no_grad()
def _work(network, *inputs) -> int:
    return benchmark.flops(lambda: network(*inputs))


def _ours(config: Config, shape, levels):
    """(parameters, FLOPs an image) of denoiser and encoder."""
    width, z_dim = registry.SPECS[config.dataset].width, config.a_dim if config.model == "diff" else 0
    x, logsnr = torch.zeros(1, *shape), torch.zeros(1)
    network = build_denoiser(config, shape, width, levels, z_dim)
    z = torch.zeros(1, z_dim) if z_dim else None
    parameters, work = parameter_count(network), _work(network, x, logsnr, z)
    if z_dim:
        encoder = build_encoder(config, shape, width, levels)
        parameters, work = parameters + parameter_count(encoder), work + _work(encoder, x)
    return parameters, work


@pytest.mark.parametrize("size", ["fmnist", pytest.param("cifar10", marks=SLOW), pytest.param("celeba", marks=SLOW)])
@pytest.mark.parametrize(("model", "rival"), [("vanilla", "diffusers"), ("diff", "diffusers"),
                                              ("vanilla", "denoising_diffusion_pytorch")])
def test_rivals_have_our_parameters_and_our_work_within_a_tenth(size, model, rival):
    pytest.importorskip(rival)
    config, spec = Config(model=model, dataset=size), registry.SPECS[size]
    shape, levels = (spec.channels, spec.size, spec.size), multipliers(Config(model=model), spec.size, spec.depth)
    parameters, work = _ours(config, shape, levels)
    if rival == "diffusers":
        z_dim = config.a_dim if model == "diff" else 0
        network = contenders.Diffusers(shape, spec.width, levels, config.dropout, z_dim)
    else:
        network = contenders.DenoisingDiffusionPytorch(shape, spec.width, levels, config.dropout)
    x = torch.zeros(1, *shape)
    assert parameter_count(network) == pytest.approx(parameters, rel=0.1)
    assert _work(network, x, torch.zeros(1), x) == pytest.approx(work, rel=0.1)


@pytest.mark.slow
def test_one_run_leaves_every_figure_and_says_what_is_not_installed(in_tmp, monkeypatch, capsys):
    for module in (benchmark, contenders):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    status = benchmark.main(["--sizes", "digits", "--precisions", "fp32", "--batch_size", "2", "--repeats", "1",
                             "--seconds", "0.01", "--device", "cpu"])
    record = read_json("results/benchmark.json")
    assert status == 0
    assert [row["network"] for row in record["networks"]] == ["ours", "ours"]
    assert set(record["not_installed"]) == set(contenders.RIVALS)
    printed = capsys.readouterr().out
    assert all(name in printed for name in contenders.RIVALS)
    for row in record["networks"]:
        assert row["train_times_ours"] == row["evaluate_times_ours"] == [1, 1, 1]
        assert row["kept_bytes"] > 10_000 and 0 < row["evaluate_share"] < 1.5
        assert row["train_images_per_second"] == pytest.approx(2 / row["step_seconds"])
        assert 0 < row["peak_share"] < 1.5
    assert {row["sampler"]: row["network_calls"] for row in record["sampling"]} == {"ddpm": 1000, "dpmpp": 20}
    assert {row["sampler"]: row["measured_steps"] for row in record["sampling"]} == {"ddpm": 20, "dpmpp": 20}


class OneNumber(torch.nn.Module):
    """A rival that learns one number."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x_noisy, logsnr, x):
        return x_noisy * self.number


@pytest.mark.slow
def test_compiled_rivals_stand_beside_the_others_and_have_no_peak(monkeypatch):
    device, config = torch.device("cpu"), Config(model="vanilla", dataset="digits", precision="fp32", batch_size=2)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: compiled.append(network))
    monkeypatch.setattr(benchmark, "peak_bytes", lambda config, number, device, published: 100)
    monkeypatch.setattr(benchmark, "contenders", lambda config, device, published: [
        lambda: contenders.Ours(config, (1, 8, 8), device),
        lambda: contenders.Rival("rival", OneNumber(), None, device)])
    clock = benchmark.Clock(device, repeats=1, seconds=0)
    rows = benchmark.measure_networks(config, benchmark.build_parser().parse_args(["--compiled"]), 1e12, clock)
    assert [row["network"] for row in rows] == ["ours", "rival", "rival, compiled"]
    assert [row["peak_bytes"] for row in rows] == [100, 100, None]
    assert len(compiled) == 2 and all(isinstance(network, OneNumber) for network in compiled)  # and its average
    assert rows[0]["train_times_ours"] == [1, 1, 1] != rows[2]["train_times_ours"]
    assert "| rival, compiled |" in benchmark.rival_table(rows)


PUBLISHED = """
import torch
from modules import shift
class Encoder(torch.nn.Module):
    def __init__(self, ch, ch_mult, attn, num_res_blocks, dropout, a_dim, shape):
        super().__init__()
        self.to_a = torch.nn.Linear(shape[0] * shape[1] * shape[2], a_dim)
    def forward(self, x):
        a = self.to_a(x.flatten(1))
        return a, a, a, a
class AuxiliaryUNet(torch.nn.Module):
    def __init__(self, T, ch, ch_mult, attn, num_res_blocks, dropout, a_dim, shape):
        super().__init__()
        self.of_a, self.of_t = torch.nn.Linear(a_dim, 1), torch.nn.Embedding(T, 1)
    def forward(self, x, t, a):
        return shift(x) + (self.of_t(t) + self.of_a(a))[:, :, None, None]
"""


def test_a_checkout_of_the_authors_code_has_a_row_and_leaves_our_modules_alone(tmp_path, monkeypatch):
    (tmp_path / "models.py").write_text(PUBLISHED)
    (tmp_path / "modules.py").write_text("def shift(x): return x + 1")
    (tmp_path / "utils.py").write_text("")
    monkeypatch.setattr(contenders, "find_spec", lambda name: None)
    device, config = torch.device("cpu"), Config(model="diff", dataset="fmnist", precision="fp32")
    ours = {name: sys.modules[name] for name in ("models", "modules", "utils")}
    rival = contenders.contenders(config, device, str(tmp_path))[1]()
    assert {name: sys.modules[name] for name in ours} == ours
    weight = rival.network.encoder.to_a.weight.detach().clone()
    rival.train(torch.rand(2, 1, 32, 32))
    assert not torch.equal(weight, rival.network.encoder.to_a.weight)
    assert rival.evaluate(torch.rand(2, 1, 32, 32), torch.zeros(2)).shape == (2, 1, 32, 32)
    for other in (Config(model="vanilla", dataset="fmnist"), Config(model="diff", dataset="digits")):
        assert len(contenders.contenders(other, device, str(tmp_path))) == 1


def test_a_row_of_training_changes_the_weights_and_evaluation_does_not():
    config = Config(model="vanilla", dataset="digits", precision="fp32")
    ours = contenders.Ours(config, (1, 8, 8), torch.device("cpu"))
    before = [p.detach().clone() for p in ours.stepper.model.parameters()]
    ours.evaluate(torch.zeros(2, 1, 8, 8), torch.zeros(2))
    assert all(torch.equal(a, b) for a, b in zip(before, ours.stepper.model.parameters(), strict=True))
    ours.train(torch.zeros(2, 1, 8, 8))
    assert not all(torch.equal(a, b) for a, b in zip(before, ours.stepper.model.parameters(), strict=True))


def test_contenders_take_turns_and_the_budget_ends_the_rounds():
    turns = []
    clock = benchmark.Clock(torch.device("cpu"), repeats=3, seconds=60)
    took = clock.rounds([lambda: turns.append("a"), lambda: turns.append("b")])
    assert turns == ["a", "b"] * 4  # a warm-up and three rounds
    assert [len(seconds) for seconds in took] == [3, 3]
    hurried = benchmark.Clock(torch.device("cpu"), repeats=3, seconds=0)
    assert [len(seconds) for seconds in hurried.rounds([lambda: None])] == [1]
