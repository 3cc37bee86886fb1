"""Samplers against closed forms and against diffusers' schedulers on the same noise estimates."""

import inspect
import math

import numpy as np
import pytest
import torch
from oracles import FiniteSetDenoiser, GaussianDenoiser, MixtureDenoiser

import config
from diffusion import linear_schedule
from rng import Rng
from sampling import SAMPLERS, ddim, ddim_invert, ddpm, dpmpp, generate, guided, sample, switch
from utils import CommandError

T = 60
SCHEDULE = linear_schedule(1e-3, 0.2, T)
MIXTURE = MixtureDenoiser([0.3, 0.7], [[-1.0, 0.5, 0.2], [1.0, 0.0, -0.4]], 0.05 * torch.eye(3).expand(2, 3, 3))


class Counting:
    """A denoiser that notes the log-SNRs and the z it is called with."""

    def __init__(self, denoiser=lambda x, logsnr, z=None: torch.zeros_like(x)):
        self.denoiser, self.levels, self.z = denoiser, [], []

    def __call__(self, x, logsnr, z=None):
        self.levels.append(logsnr[0].item())
        self.z.append(z)
        return self.denoiser(x, logsnr, z)


def start(count=16, shape=(3,), seed=0):
    return Rng(seed, torch.arange(count)).normal("x_T", *shape)


def error(x, expected):
    return ((x - expected).norm() / expected.norm()).item()


# ---------------------------------------------------------------------------------------------------------------------
# Agreement with an independent implementation


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def reference(scheduler, x, logsnr_of, **options):
    """diffusers' loop around our noise estimate: every step at the log-SNR that `logsnr_of` gives."""
    for i, t in enumerate(scheduler.timesteps):
        logsnr = torch.full((len(x),), logsnr_of(i, t), dtype=torch.float64)
        eps_hat = MIXTURE(x, logsnr)
        x = scheduler.step(eps_hat, t, x, **{name: value(i) for name, value in options.items()}).prev_sample
    return x


@pytest.mark.parametrize("steps", [T, 20])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_pairs_the_noise_at_t_with_abar_at_t(diffusers, steps, eta):
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=T, trained_betas=SCHEDULE.betas.numpy(),
                                        clip_sample=False, set_alpha_to_one=True)
    scheduler.alphas_cumprod = torch.sigmoid(SCHEDULE.logsnr_table)
    scheduler.set_timesteps(steps)
    grid = torch.cat([SCHEDULE.logsnr_table[scheduler.timesteps], torch.tensor([math.inf])])
    rng, x = Rng(0, torch.arange(16)), start().double()
    drawn = {"eta": lambda i: eta, "variance_noise": lambda i: rng.at(i + 1).normal("sampler", 3)}
    theirs = reference(scheduler, x, lambda i, t: SCHEDULE.logsnr_table[t].item(), **(drawn if eta else {}))
    assert error(ddim(MIXTURE, x, grid, eta=eta, rng=rng), theirs) < 1e-4


def test_ddpm_agrees_with_diffusers(diffusers, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    scheduler = diffusers.DDPMScheduler(num_train_timesteps=T, trained_betas=SCHEDULE.betas.numpy(), clip_sample=False)
    scheduler.alphas_cumprod = torch.sigmoid(SCHEDULE.logsnr_table)
    scheduler.set_timesteps(T)
    rng, x = Rng(0, torch.arange(16)), start().double()
    drawn = iter(rng.at(i + 1).normal("sampler", 3).double() for i in range(T))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(drawn))
    theirs = reference(scheduler, x, lambda i, t: SCHEDULE.logsnr_table[t].item())
    assert error(ddpm(MIXTURE, x, SCHEDULE.grid(T), rng=rng), theirs) < 1e-4


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_agrees_with_diffusers(diffusers, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=T, trained_betas=SCHEDULE.betas.numpy(), algorithm_type="dpmsolver++", solver_order=2,
        solver_type="midpoint", final_sigmas_type="zero", timestep_spacing="linspace",
    )
    scheduler.set_timesteps(steps)
    grid = -2 * scheduler.sigmas.double().log()  # sigma is noise over signal; the last is 0
    theirs = reference(scheduler, start().double(), lambda i, t: grid[i].item())
    assert error(dpmpp(MIXTURE, start().double(), grid), theirs) < 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_from_the_law_of_its_denoiser(name):
    gaussian = GaussianDenoiser([1.0, -0.5], torch.tensor([[0.5, 0.2], [0.2, 0.3]]))
    schedule = linear_schedule(1e-4, 0.1, 200)
    x = sample(name, gaussian, Rng(0, torch.arange(4000)), (2,), schedule.grid(200)).double()
    assert (x.mean(0) - gaussian.means[0]).abs().max() < 0.05
    assert (torch.cov(x.T) - gaussian.covariances[0]).abs().max() < 0.04


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_of_a_finite_set_are_its_points(name):
    points = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.0]])
    x = sample(name, FiniteSetDenoiser(points), Rng(0, torch.arange(600)), (2,), SCHEDULE.grid(40))
    distance, nearest = torch.cdist(x, points).min(1)
    assert distance.max() < 0.02
    assert (torch.bincount(nearest, minlength=3) / 600 - 1 / 3).abs().max() < 0.12


def test_dpm_solver_is_of_second_order_and_ddim_of_first():
    gaussian = GaussianDenoiser([0.0], torch.tensor([[0.3]]))
    low, high = -6.0, 6.0
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def deviation(sampler, steps):  # the probability flow keeps quantiles: x / sd(a) is constant along it
        grid = torch.linspace(low, high, steps + 1, dtype=torch.float64)
        s = torch.sigmoid(grid[[0, -1]])
        sd = (s * 0.3 + 1 - s).sqrt()
        return (sampler(gaussian, x, grid) - x * sd[1] / sd[0]).abs().max().item()

    for sampler, order in ((ddim, 1), (dpmpp, 2)):
        rate = math.log2(deviation(sampler, 40) / deviation(sampler, 80))
        assert rate == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("steps", [50, 200])
def test_encode_then_decode_with_z_returns_the_image(steps):
    """A Gaussian whose mean is z: dropping z on either way would shift the result."""
    base = GaussianDenoiser(torch.zeros(4), torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.02])))

    def denoiser(x, logsnr, z=None):
        return base(x - torch.sigmoid(logsnr).sqrt()[:, None] * z, logsnr)

    z = start(8, (4,), seed=2)
    x = z + base.sample(8, seed=0)
    grid = linear_schedule(1e-5, 1e-2, 1000).grid(steps)
    x_T = ddim_invert(denoiser, x, grid, z)
    back = ddim(denoiser, x_T, grid, z)
    assert error(back, x) < (1e-4 if steps == 200 else 1e-3)
    assert error(ddim(denoiser, x_T, grid, z + 0.5), x) > 0.1
    assert error(ddim(denoiser, ddim_invert(denoiser, x, grid, z, iterations=1), grid, z), x) > error(back, x)


def test_inversion_visits_every_step_down_to_pure_noise():
    counting = Counting()
    grid = SCHEDULE.grid(10)
    ddim_invert(counting, start(), grid, torch.ones(16, 2), iterations=3)
    visited = torch.tensor(counting.levels[::3]).double()
    assert len(counting.levels) == 30
    assert torch.allclose(visited, grid[:-1].flip(0), atol=1e-5)
    assert all(z is not None for z in counting.z)


def test_the_inverse_of_noise_is_about_standard_normal():
    x = ddim_invert(MIXTURE, MIXTURE.sample(3000, seed=1), linear_schedule(1e-4, 0.1, 200).grid(200))
    assert x.mean(0).abs().max() < 0.1 and (x.std(0) - 1).abs().max() < 0.1


# ---------------------------------------------------------------------------------------------------------------------
# What is called, when and with what


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [5, T])
def test_a_sampler_calls_its_denoiser_once_a_step_and_never_on_clean_data(name, steps):
    counting, ticks = Counting(), []
    grid = SCHEDULE.grid(steps)
    sample(name, counting, Rng(0, torch.arange(3)), (2,), grid, on_step=lambda: ticks.append(1))
    assert torch.allclose(torch.tensor(counting.levels).double(), grid[:-1], atol=1e-5)
    assert len(ticks) == steps


@pytest.mark.parametrize("split", [0, 1, 23, T])
def test_two_phase_sampling_gives_each_denoiser_its_steps(split):
    vanilla, info = Counting(), Counting()
    z = torch.ones(4, 2)
    at = SCHEDULE.logsnr(torch.tensor([split + 0.5])).item()
    ddpm(switch(vanilla, info, at), start(4), SCHEDULE.grid(T), z, Rng(0, torch.arange(4)))
    assert (len(vanilla.levels), len(info.levels)) == (T - split, split)
    assert all(given is None for given in vanilla.z) and all(given is z for given in info.z)
    assert max(vanilla.levels, default=-math.inf) < min(info.levels, default=math.inf)


def test_deterministic_sampling_adds_no_noise():
    for sampler in (lambda rng: ddim(MIXTURE, start(), SCHEDULE.grid(20), rng=rng),
                    lambda rng: dpmpp(MIXTURE, start(), SCHEDULE.grid(20))):
        torch.manual_seed(0)
        one = sampler(Rng(0, torch.arange(16)))
        torch.manual_seed(1)
        assert torch.equal(one, sampler(Rng(9, torch.arange(16))))
    noisy = [ddim(MIXTURE, start(), SCHEDULE.grid(20), eta=0.01, rng=Rng(s, torch.arange(16))) for s in (0, 9)]
    assert not torch.equal(*noisy)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(name):
    def draw(rows):
        options = {"eta": 0.5} if "eta" in config.SAMPLERS[name].options else {}
        return sample(name, MIXTURE, Rng(3, rows), (3,), SCHEDULE.grid(15), **options)

    whole = draw(torch.arange(9))
    parts = torch.cat([draw(rows) for rows in torch.arange(9).split(4)])
    assert torch.allclose(whole, parts, atol=1e-6)
    assert len(whole.unique(dim=0)) == 9


def test_flags_and_functions_know_the_same_samplers():
    assert list(config.SAMPLERS) == list(SAMPLERS)
    for name, function in SAMPLERS.items():
        first, *others = inspect.signature(function).parameters
        assert [first, *others[:5]] == ["denoiser", "x", "grid", "z", "rng", "on_step"]
        assert tuple(others[5:]) == config.SAMPLERS[name].options


def test_an_unknown_sampler_is_refused():
    with pytest.raises(CommandError, match="unknown sampler 'euler' .known: ddpm, ddim"):
        sample("euler", MIXTURE, Rng(0, torch.arange(2)), (3,), SCHEDULE.grid(5))


def test_guidance_extrapolates_from_the_unconditional_noise():
    def denoiser(x, logsnr, z=None):
        return torch.zeros_like(x) if z is None else z.expand_as(x)

    x, a, z = start(4), torch.zeros(4), torch.full((4, 1), 2.0)
    for weight, expected in ((0.0, 0.0), (1.0, 2.0), (3.0, 6.0)):
        assert torch.allclose(guided(denoiser, weight)(x, a, z), torch.full_like(x, expected))


class Model:
    """The smallest model that `generate` accepts."""

    def __init__(self, denoiser):
        self.denoise, self.schedule, self.grid, self.shape = denoiser, SCHEDULE, SCHEDULE.grid, (3,)


@pytest.mark.parametrize("count", [1, 5, 23])
def test_as_many_samples_as_were_asked_for(count):
    x = generate(Model(MIXTURE), Rng(0, torch.arange(count)), steps=5)
    assert x.shape == (count, 3)
    assert len(np.unique(x.numpy(), axis=0)) == count


def test_all_steps_of_the_schedule_by_default():
    counting = Counting()
    generate(Model(counting), Rng(0, torch.arange(2)))
    assert len(counting.levels) == T
