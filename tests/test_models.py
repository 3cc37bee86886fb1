"""What models are made of, what they minimise, and what z means to them."""

from dataclasses import replace

import pytest
import torch

import models
import regularisers
import training
from config import FIELDS, Config
from dataset import registry
from diffusion import Gaussian, ITDObjective, SimpleObjective
from models import LatentDiffusion, build_model, multipliers, parameter_count
from regularisers import bandwidth, kl_to_normal, mmd
from rng import Rng
from sampling import generate
from utils import CommandError

pytestmark = pytest.mark.usefixtures("full_networks")

SMALL = Config(a_dim=4, unets_channels=8, encoder_channels=8, diffusion_steps=20)


def build(shape=(1, 8, 8), seed=0, asleep=False, **flags):
    """A small model in evaluation mode; its zero-initialised layers are woken up unless `asleep`."""
    config = replace(SMALL, **flags)
    entries = int(torch.tensor(shape).prod())
    gaussian = Gaussian(torch.zeros(entries).double(), torch.full((entries,), 0.3).double(), None)
    torch.manual_seed(seed)
    model = build_model(config, registry.SPECS[config.dataset], shape, gaussian).eval()
    if not asleep:
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def images(count=6, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("flag, table", [
    ("schedule", models.SCHEDULES), ("loss", models.OBJECTIVES), ("lr_schedule", training.RATES),
    ("prior", regularisers.PRIORS), ("optimizer", training.OPTIMIZERS)])
def test_a_choice_has_its_entry_in_a_table_and_is_not_taken_for_another(flag, table):
    assert set(FIELDS[flag].metadata["options"]["choices"]) == set(table)


def rng(count=6, seed=0):
    return Rng(seed, torch.arange(count))


# ---------------------------------------------------------------------------------------------------------------------
# Losses


@pytest.mark.parametrize("flags", [
    {"model": "vanilla"}, {"model": "vanilla", "loss": "itd"}, {"model": "diff"}, {"model": "diff", "loss": "itd"},
    {"model": "diff", "kld_weight": 0.5, "mmd_weight": 0.0}, {"model": "diff", "mmd_weight": 0.0, "z_dropout": 0.2},
    {"model": "diff", "conditioning": "crossattn"}, {"model": "diff", "is_bottleneck": True},
    pytest.param({"model": "diff", "prior": "10mix"}, marks=pytest.mark.slow),
    pytest.param({"model": "diff", "prior": "roll", "a_dim": 2}, marks=pytest.mark.slow),
    {"model": "vae", "mmd_weight": 0.0}, {"model": "vae", "kld_weight": 1.0, "mmd_weight": 0.0},
    {"model": "vae", "kld_weight": 1.0, "mmd_weight": 0.0, "use_C": True}, {"model": "vae", "kld_weight": 0.5},
    {"model": "diff", "schedule": "cosine"},
], ids=lambda flags: "-".join(map(str, flags.values())))
def test_every_model_can_be_built_and_names_its_terms(flags, capfd):
    model = build(**flags)
    terms = model(images(), rng())
    main = "reconstruction" if flags["model"] == "vae" else "denoise"
    expected = {"loss", main}
    expected |= {"kl"} if flags.get("kld_weight") else set()
    expected |= {"mmd"} if flags["model"] != "vanilla" and flags.get("mmd_weight", 0.1) else set()
    assert set(terms) == expected
    assert terms["loss"].shape == () and terms[main].shape == (6,)
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert capfd.readouterr() == ("", "")  # a loss never prints


@pytest.mark.parametrize("kind", ["diff", "vae"])
def test_kl_is_summed_over_latents_and_averaged_over_the_batch_in_every_model(kind):
    model = build(model=kind, kld_weight=0.5, mmd_weight=0.0)
    terms = model(images(), rng())
    mean, logvar = model.posterior(images())
    assert torch.allclose(terms["kl"], kl_to_normal(mean, logvar), atol=1e-6)
    main = terms["reconstruction" if kind == "vae" else "denoise"]
    assert terms["loss"].item() == pytest.approx((main.mean() + 0.5 * terms["kl"].mean()).item(), rel=1e-5)
    twice = model(torch.cat([images(), images()]), rng(12))
    assert twice["kl"].mean().item() == pytest.approx(terms["kl"].mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", [pytest.param("diff", marks=pytest.mark.slow), "vae"])
def test_kl_and_the_prior_asked_for_stay_when_mmd_is_on(kind):
    both = build(model=kind, kld_weight=0.5, mmd_weight=0.2)
    terms = both(images(), rng())
    main = terms["reconstruction" if kind == "vae" else "denoise"].mean()
    expected = main + 0.5 * terms["kl"].mean() + 0.2 * terms["mmd"]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    mixed = build(model=kind, prior="10mix")
    z = mixed.encode(images())
    expected = mmd(z, mixed.latent.prior(rng()), bandwidth(4, "scaled"))
    assert mixed(images(), rng())["mmd"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert mixed(images(), rng())["mmd"].item() != pytest.approx(build(model=kind)(images(), rng())["mmd"].item())


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_capacity_pulls_kl_towards_its_share_of_c(progress):
    model = build(model="vae", kld_weight=2.0, mmd_weight=0.0, use_C=True, C_max=10.0)
    terms = model(images(), rng(), progress=progress)
    expected = terms["reconstruction"].mean() + 2 * (terms["kl"].mean() - 10 * progress).abs()
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_reconstruction_compares_with_the_clean_image():
    model = build(model="vae", mmd_weight=0.0)
    x = images()
    expected = (model.decode(model.encode(x)) - x).square().mean((1, 2, 3))
    for seed in (0, 1):
        assert torch.allclose(model(x, rng(seed=seed))["reconstruction"], expected, atol=1e-6)


@pytest.mark.slow
def test_untrained_denoising_error_is_that_of_no_guess_in_both_units():
    """A network that answers 0: the simple loss is the mean of eps^2, the itd loss a valid bound on the entropy."""
    simple = build(model="vanilla", asleep=True)(images(400), rng(400))["denoise"]
    assert simple.mean().item() == pytest.approx(1.0, abs=0.05)
    model = build(model="vanilla", loss="itd", asleep=True)
    x = 0.3**0.5 * rng(400).normal("x", 1, 8, 8)
    nats = model(x, rng(400))["denoise"].double()
    assert nats.mean() > model.gaussian.nll_nats(x).mean() + 3 * nats.std() / 20
    assert (model.unit, build(model="vanilla").unit) == ("nats", "mean squared error")
    assert isinstance(model.objective, ITDObjective) and isinstance(build().objective, SimpleObjective)


@pytest.mark.parametrize("kind", ["vanilla", "diff", "vae"])
def test_a_samples_loss_does_not_depend_on_the_rest_of_the_batch(kind):
    model = build(model=kind, kld_weight=0.1, mmd_weight=0.0)
    name = "reconstruction" if kind == "vae" else "denoise"
    whole = model(images(), rng())[name]
    part = model(images()[2:5], Rng(0, torch.arange(2, 5)))[name]
    assert torch.allclose(whole[2:5], part, atol=1e-5)


def test_every_sample_has_its_own_log_snr():
    seen = []
    model = build(model="vanilla")
    model.network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[1]))
    model(images(), rng())
    assert len(seen[0].unique()) == 6


# ---------------------------------------------------------------------------------------------------------------------
# What z is


@pytest.mark.parametrize("kind", ["diff", "vae"])
@pytest.mark.parametrize("kld_weight", [0.0, 0.5])
def test_encode_is_the_mean_everywhere_and_a_sample_is_drawn_only_with_kl(kind, kld_weight):
    model = build(model=kind, kld_weight=kld_weight)
    mean, logvar = model.posterior(images())
    assert torch.equal(model.encode(images()), mean) and mean.shape == (6, 4)
    assert (logvar is None) == (kld_weight == 0)
    draws = [model.latent.draw(mean, logvar, rng(seed=seed)) for seed in (0, 1)]
    assert torch.equal(*draws) == (kld_weight == 0)
    if kld_weight:
        many = Rng(0, torch.arange(20_000))
        z = model.latent.draw(mean[:1].expand(20_000, 4), logvar[:1].expand(20_000, 4), many)
        sd = (logvar[0] / 2).exp()
        assert ((z.mean(0) - mean[0]) / sd).abs().max() < 0.04
        assert (z.std(0) / sd - 1).abs().max() < 0.03


def test_no_z_means_unconditional_and_never_encode_it_yourself():
    x, a = images(), torch.zeros(6)
    with pytest.raises(CommandError, match="--z_dropout"):
        build(z_dropout=0.0).denoise(x, a)
    model = build(z_dropout=0.1)
    model.encoder = None
    with torch.no_grad():
        assert not torch.allclose(model.denoise(x, a), model.denoise(x, a, torch.zeros(6, 4)), atol=1e-4)


def test_z_is_dropped_for_the_share_asked_for():
    kept = []
    model = build(z_dropout=0.3, mmd_weight=0.0)
    model.network.register_forward_hook(lambda _, inputs, __: kept.append(inputs[3]))
    model(images(400), rng(400))
    assert kept[0].float().mean().item() == pytest.approx(0.7, abs=0.09)


@pytest.mark.parametrize("conditioning", ["adanorm", "crossattn"])
def test_a_denoiser_conditioned_on_tau_starts_identical_and_can_learn(conditioning):
    model = build(conditioning=conditioning, z_dropout=0.1)
    twin = model.conditioned_on_tau()
    x, a, z = images(), torch.linspace(-3, 6, 6), rng().normal("z", 4)
    with_tau = torch.cat([z, rng().normal("tau", 1)], dim=1)
    with torch.no_grad():
        assert torch.allclose(twin.denoise(x, a, with_tau), model.denoise(x, a, z), atol=1e-6)
        assert torch.allclose(twin.denoise(x, a), model.denoise(x, a), atol=1e-6)
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    twin.denoise(x, a, with_tau).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        other = torch.cat([z, 1 + with_tau[:, 4:]], dim=1)
        assert not torch.allclose(twin.denoise(x, a, with_tau), twin.denoise(x, a, other), atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_points_with_given_z_need_no_encoder():
    model = build((2,), dataset="mvn", a_dim=2, unets_channels=16, z_dropout=0.1)
    x, z = rng().normal("x", 2), rng().normal("z", 2)
    assert model.encoder is None
    assert set(model(x, rng(), z)) == {"loss", "denoise"}


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def test_published_multipliers():
    assert multipliers(Config(model="diff"), 64, 4) == (1, 2, 2, 2)
    assert multipliers(Config(model="vanilla"), 64, 4) == (1, 2, 4, 8)
    assert multipliers(Config(model="vae"), 32, 4) == (1, 2, 4, 8)
    assert multipliers(Config(model="diff"), 28, 4) == (1, 2, 4)


@pytest.mark.parametrize("kind", ["diff", "vanilla", "vae"])
def test_any_size_that_the_depth_divides_and_one_line_otherwise(kind):
    for size in (4, 12, 20):
        x = torch.zeros(2, 1, size, size)
        assert build((1, size, size), model=kind, mmd_weight=0.0)(x, rng(2))["loss"].isfinite()
    for size in (6, 9):
        with pytest.raises(CommandError, match=f"--input_size {size}.*multiple of 4") as caught:
            build((1, size, size), model=kind)
        assert "\n" not in str(caught.value)


def test_a_network_for_other_data_is_refused():
    with pytest.raises(CommandError, match="--denoiser mlp"):
        build(model="vanilla", denoiser="mlp")
    with pytest.raises(CommandError, match="--denoiser unet"):
        build((2,), model="vanilla", dataset="moons", denoiser="unet")


def test_encoder_width_and_depth_follow_their_flags():
    assert parameter_count(build(encoder_channels=16)) > parameter_count(build(encoder_channels=8))
    assert parameter_count(build(unets_channels=16)) > parameter_count(build(unets_channels=8))


# ---------------------------------------------------------------------------------------------------------------------
# Latent diffusion


def test_latent_diffusion_works_on_standardised_latents_and_undoes_it():
    latents = 5 + torch.tensor([10.0, 0.1, 3.0]) * rng(500).normal("z", 3)
    model = LatentDiffusion(build().schedule, latents).eval()
    seen = []
    model.network.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(latents, rng(500))
    # x_noisy of standardised latents has unit variance at every log-SNR
    assert seen[0].mean(0).abs().max() < 0.2 and (seen[0].std(0) - 1).abs().max() < 0.15
    standard = (latents - latents.mean(0)) / latents.std(0)
    assert torch.allclose(model.to_latents(standard), latents, atol=1e-4)
    again = LatentDiffusion(build().schedule, torch.zeros(2, 3))
    again.load_state_dict(model.state_dict())
    assert torch.allclose(again.to_latents(standard), latents, atol=1e-4)


@pytest.mark.parametrize("kind", ["diff", "vanilla", "vae"])
def test_samples_of_a_model_do_not_depend_on_the_batch(kind):
    model = build(model=kind)
    whole = generate(model, rng(5), steps=4, sampler="ddim")
    parts = torch.cat([generate(model, Rng(0, rows), steps=4, sampler="ddim") for rows in torch.arange(5).split(2)])
    assert whole.shape == (5, 1, 8, 8)
    assert torch.allclose(whole, parts, atol=1e-4)


def test_a_model_is_sampled_over_the_log_snrs_it_was_trained_on():
    simple, itd = build(model="vanilla"), build(model="vanilla", loss="itd")
    assert simple.grid(20)[0] == simple.schedule.logsnr_table[-1]
    low, high = itd.objective.logsnr_range
    assert (itd.grid(7)[0].item(), itd.grid(7)[6].item()) == pytest.approx((low, high))
    assert itd.grid(7)[7] == float("inf") and len(itd.grid(7)) == 8
