"""Samplers against closed forms and against diffusers' schedulers on the same noise estimates."""

import inspect
import math
from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from oracles import FiniteSetDenoiser, GaussianDenoiser, MixtureDenoiser

import config
import diffusion
from diffusion import cosine_schedule, linear_schedule, predict_x
from rng import Rng
from sampling import (
    SAMPLERS,
    cheapest_path,
    ddim,
    ddpm,
    deis,
    dpmpp,
    dpmpp3m,
    dpmpp_sde,
    fit_grid,
    generate,
    guided,
    heun,
    invert,
    ipndm,
    sample,
    switch,
    unipc,
)
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


def against(scheduler, steps, run):
    """How far `run` ends from diffusers' scheduler, on its own levels. sigma is noise over signal, 0 in clean data."""
    scheduler.set_timesteps(steps)
    grid, x = -2 * scheduler.sigmas.double().log(), start().double()
    theirs = reference(scheduler, x, lambda i, t: grid[i].item())
    return error(run(MIXTURE, x, grid), theirs)


def options(**more):
    return {"num_train_timesteps": T, "trained_betas": SCHEDULE.betas.numpy(), "timestep_spacing": "linspace"} | more


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_agrees_with_diffusers(diffusers, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(**options(
        algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", final_sigmas_type="zero"))
    assert against(scheduler, steps, dpmpp) < 1e-4


@pytest.mark.parametrize("steps", [5, 12])
def test_third_order_dpm_solver_is_that_of_diffusers_with_the_other_half_of_its_last_term(diffusers, steps):
    """Theirs weighs the second difference D_2 = h^2 x_hat''/2 with phi_3, the expansion wants 2 phi_3."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**options(
        algorithm_type="dpmsolver++", solver_order=3, final_sigmas_type="zero"))
    scheduler.set_timesteps(steps)
    grid, x = -2 * scheduler.sigmas.double().log(), start().double()
    theirs, known = x, []
    for i, t in enumerate(scheduler.timesteps):
        logsnr = torch.full((16,), grid[i].item(), dtype=torch.float64)
        eps_hat = MIXTURE(theirs, logsnr)
        known = [predict_x(theirs, logsnr, eps_hat), *known]
        theirs = scheduler.step(eps_hat, t, theirs).prev_sample
        if 2 <= i < steps - 2:
            (h, h0, h1), signal = grid[i - 2 : i + 2].diff().flip(0) / 2, torch.sigmoid(grid[i + 1]).sqrt()
            second = ((known[0] - known[1]) / h0 - (known[1] - known[2]) / h1) * h**2 / (h0 + h1)
            theirs = theirs + signal * (0.5 - (torch.expm1(-h) + h) / h**2) * second
    assert error(dpmpp3m(MIXTURE, x, grid), theirs) < 1e-4


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_agrees_with_diffusers(diffusers, steps, order):
    scheduler = diffusers.UniPCMultistepScheduler(**options(solver_order=order, final_sigmas_type="zero"))
    assert against(scheduler, steps, partial(unipc, order=order)) < 1e-4


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_agrees_with_diffusers(diffusers, order):
    scheduler = diffusers.DEISMultistepScheduler(**options(solver_order=order, lower_order_final=False))
    assert against(scheduler, 8, partial(deis, order=order)) < 1e-4


def test_the_stochastic_dpm_solver_agrees_with_diffusers(diffusers):
    scheduler = diffusers.DPMSolverMultistepScheduler(**options(
        algorithm_type="sde-dpmsolver++", solver_order=2, final_sigmas_type="zero"))
    scheduler.set_timesteps(12)
    grid, x, rng = -2 * scheduler.sigmas.double().log(), start().double(), Rng(0, torch.arange(16))
    noise = {"variance_noise": lambda i: rng.at(i + 1).normal("sampler", 3)}
    theirs = reference(scheduler, x, lambda i, t: grid[i].item(), **noise)
    assert error(dpmpp_sde(MIXTURE, x, grid, rng=rng), theirs) < 1e-4


def test_ipndm_agrees_with_diffusers(diffusers):
    """Theirs is given v = alpha eps - sigma x_hat, and here our levels in place of its own."""
    scheduler, grid, x = diffusers.IPNDMScheduler(T), SCHEDULE.grid(13)[:-1], start().double()
    scheduler.set_timesteps(12)
    scheduler.alphas, scheduler.betas = torch.sigmoid(grid).sqrt(), torch.sigmoid(-grid).sqrt()
    theirs = x
    for i, t in enumerate(scheduler.timesteps):
        logsnr = torch.full((16,), grid[i].item(), dtype=torch.float64)
        eps_hat = MIXTURE(theirs, logsnr)
        v = scheduler.alphas[i] * eps_hat - scheduler.betas[i] * predict_x(theirs, logsnr, eps_hat)
        theirs = scheduler.step(v, t, theirs).prev_sample
    assert error(ipndm(MIXTURE, x, grid), theirs) < 1e-4


def test_heun_agrees_with_diffusers(diffusers):
    scheduler = diffusers.HeunDiscreteScheduler(**options())
    scheduler.set_timesteps(6)
    sigmas, grid = scheduler.sigmas.double(), -2 * scheduler.sigmas.double()[[0, *range(1, 11, 2), 11]].log()
    scaled = start().double() * (1 + sigmas[0] ** 2).sqrt()  # theirs walks x over its signal
    for t in scheduler.timesteps:
        sigma = scheduler.sigmas[scheduler.step_index or 0].double()
        x = scaled / (1 + sigma**2).sqrt()
        scaled = scheduler.step(MIXTURE(x, (-2 * sigma.log()).expand(16)), t, scaled).prev_sample
    assert error(heun(MIXTURE, start().double(), grid), scaled) < 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


@pytest.mark.parametrize("name", [
    name if name in ("ddpm", "heun", "unipc", "dpmpp_sde") else pytest.param(name, marks=pytest.mark.slow)
    for name in SAMPLERS])
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


GAUSSIAN = GaussianDenoiser([0.3, -0.2, 0.0], torch.diag(torch.tensor([1.5, 0.3, 0.05])))


def even(low, high, steps):
    return torch.linspace(low, high, steps + 1, dtype=torch.float64)


def even_in_rho(steps):
    return -2 * torch.linspace(math.exp(1.5), math.exp(-1.0), steps + 1, dtype=torch.float64).log()


def flow(x, a, b):
    """The probability flow of GAUSSIAN from log-SNR a to b keeps quantiles: (x - mean)/deviation."""
    signal, noise = torch.sigmoid(torch.tensor([a, b]).double()), torch.sigmoid(-torch.tensor([a, b]).double())
    mean = signal.sqrt()[:, None] * GAUSSIAN.means[0]
    deviation = (signal[:, None] * GAUSSIAN.covariances[0].diag() + noise[:, None]).sqrt()
    return (x - mean[0]) * deviation[1] / deviation[0] + mean[1]


@pytest.mark.parametrize("name, order, rate", [
    ("ddim", None, 1), ("heun", None, 2), ("dpmpp", None, 2), ("dpmpp3m", None, 3),
    ("unipc", 3, 4),  # the corrector adds one
    ("deis", 3, 3), ("ipndm", 4, 4),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("unipc", 1, 2), ("unipc", 2, 3), ("deis", 1, 1), ("deis", 2, 2), ("deis", 4, 4), ("ipndm", 1, 1),
        ("ipndm", 2, 2), ("ipndm", 3, 3))),
])
def test_doubling_the_steps_divides_the_error_by_two_to_the_order(name, order, rate):
    run = partial(SAMPLERS[name], **({"order": order} if order else {}))
    x = start().double()

    def deviation(steps):  # iPNDM's coefficients are of equal steps in rho, and from there its order
        grid = even_in_rho(steps) if name == "ipndm" else even(-14, 6, steps)
        return error(run(GAUSSIAN, x, grid), flow(x, grid[0].item(), grid[-1].item()))

    errors = [deviation(steps) for steps in (40, 80, 160)]
    assert math.log2(errors[0] / errors[2]) / 2 > rate - 0.7
    assert math.log2(errors[1] / errors[2]) > rate - 0.6


PUBLISHED = linear_schedule(1e-5, 1e-2, 1000)
POINTS = FiniteSetDenoiser(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))
NEW = ("dpmpp3m", "unipc", "deis", "ipndm")


def ends(denoiser, top, steps, dims):
    """name -> relative distance to the exact flow's end after N evaluations on a grid of the published schedule.

    The end is clean data, or the log-SNR `top`: time is even up to it.
    """
    x, low = start(32, (dims,)).double(), PUBLISHED.logsnr_range[0]
    if top == math.inf:
        grid, fine = PUBLISHED.grid(steps), torch.cat([even(low, 18, 150), torch.tensor([math.inf]).double()])
    else:
        last = PUBLISHED.step_of(torch.tensor([top])).item()
        grid, fine = PUBLISHED.logsnr(even(1000, last, steps)), even(low, top, 100)
    exact = deis(denoiser, x, fine, order=4)
    assert error(exact, heun(denoiser, x, fine)) < 0.01
    return {name: error(SAMPLERS[name](denoiser, x, grid), exact) for name in ("ddim", "dpmpp", *NEW)}


@pytest.mark.parametrize("denoiser, top, dims", [
    (GAUSSIAN, math.inf, 3), pytest.param(MIXTURE, math.inf, 3, marks=pytest.mark.slow), (POINTS, 0.0, 4)],
                         ids=["gaussian", "mixture", "finite set"])
def test_at_five_steps_a_new_solver_errs_at_most_half_as_much(denoiser, top, dims):
    """A finite set up to log-SNR 0: beyond, x falls to one of its points, and the error is a matter of which."""
    five, ten = ends(denoiser, top, 5, dims), ends(denoiser, top, 10, dims)
    assert min(five[name] for name in NEW) <= 0.5 * five["dpmpp"]
    assert min(ten[name] for name in NEW) <= 0.5 * ten["dpmpp"]
    assert all(ten[name] < five[name] for name in five)


@pytest.mark.parametrize("sampler, steps", [
    ("ddim", 50), pytest.param("ddim", 200, marks=pytest.mark.slow), ("heun", 50)])
def test_encode_then_decode_with_z_returns_the_image(sampler, steps):
    """A Gaussian whose mean is z: dropping z on either way would shift the result."""
    base = GaussianDenoiser(torch.zeros(4), torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.02])))

    def denoiser(x, logsnr, z=None):
        return base(x - torch.sigmoid(logsnr).sqrt()[:, None] * z, logsnr)

    z = start(8, (4,), seed=2)
    x = z + base.sample(8, seed=0)
    grid = linear_schedule(1e-5, 1e-2, 1000).grid(steps)
    decode, x_T = SAMPLERS[sampler], invert(denoiser, x, grid, z, sampler)
    back = decode(denoiser, x_T, grid, z)
    assert error(back, x) < (1e-4 if steps == 200 else 1e-3)
    assert error(decode(denoiser, x_T, grid, z + 0.5), x) > 0.1
    assert error(decode(denoiser, invert(denoiser, x, grid, z, sampler, iterations=1), grid, z), x) > error(back, x)


def test_second_order_inversion_finds_the_noise_of_the_exact_flow():
    grid, clean = PUBLISHED.grid(20), flow(start().double(), PUBLISHED.logsnr_range[0], 40.0)
    noise = {name: error(invert(GAUSSIAN, clean, grid, sampler=name), start().double()) for name in ("ddim", "heun")}
    assert noise["heun"] < 0.5 * noise["ddim"]


def test_inversion_visits_every_step_down_to_pure_noise():
    counting = Counting()
    grid = SCHEDULE.grid(10)
    invert(counting, start(), grid, torch.ones(16, 2), iterations=3)
    visited = torch.tensor(counting.levels[::3]).double()
    assert len(counting.levels) == 30
    assert torch.allclose(visited, grid[:-1].flip(0), atol=1e-5)
    assert all(z is not None for z in counting.z)


@pytest.mark.slow
def test_the_inverse_of_noise_is_about_standard_normal():
    x = invert(MIXTURE, MIXTURE.sample(3000, seed=1), linear_schedule(1e-4, 0.1, 200).grid(200))
    assert x.mean(0).abs().max() < 0.1 and (x.std(0) - 1).abs().max() < 0.1


# ---------------------------------------------------------------------------------------------------------------------
# Grids


def test_karras_spaces_the_seventh_root_of_noise_over_signal_evenly():
    grid = PUBLISHED.grid(9, "karras")
    assert grid[[0, -2]].tolist() == pytest.approx(PUBLISHED.logsnr_range)
    assert torch.allclose(torch.exp(-grid[:-1] / 14).diff(), (torch.exp(-grid[8] / 14) - torch.exp(-grid[0] / 14)) / 8)


def test_the_cheapest_path_is_that_of_trying_all():
    cost = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).double()
    cost[torch.ones(8, 8).tril().bool()] = math.inf
    for growth in (1.0, 1.3):
        paths = [[0, *middle, 7] for middle in combinations(range(1, 7), 3)]
        total = [sum(growth**n * cost[i, j].item() for n, (i, j) in enumerate(pairwise(path))) for path in paths]
        assert cheapest_path(cost, 4, growth) == paths[int(np.argmin(total))]


@pytest.mark.slow
@pytest.mark.parametrize("denoiser, run, margin", [
    pytest.param(GAUSSIAN, unipc, 0.6, marks=pytest.mark.slow), (MIXTURE, ipndm, 1.0)], ids=["gaussian", "mixture"])
def test_a_fitted_grid_errs_less_than_the_usual_ones_on_other_samples(denoiser, run, margin):
    grids = {spacing: PUBLISHED.grid(5, spacing) for spacing in config.SPACINGS if spacing != "fitted"}
    fitted, errors = fit_grid(denoiser, run, start(32, seed=1).double(), None, grids)
    assert len(fitted) == 6 and fitted[0] == pytest.approx(PUBLISHED.logsnr_range[0]) and fitted[-1] == math.inf
    assert (fitted.diff() > 0).all() and errors["fitted"] == min(errors.values())
    x = start(64, seed=2).double()
    exact = deis(denoiser, x, torch.cat([even(grids["time"][0].item(), 18, 150), torch.tensor([math.inf]).double()]))

    def mean_error(grid):
        return ((run(denoiser, x, grid) - exact).norm(dim=1).mean() / exact.norm(dim=1).mean()).item()

    fresh = {name: mean_error(grid) for name, grid in grids.items()}
    assert mean_error(fitted) < margin * min(fresh.values())
    assert errors["time"] == pytest.approx(fresh["time"], rel=0.3)


# ---------------------------------------------------------------------------------------------------------------------
# What is called, when and with what


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [5, T])
def test_a_sampler_calls_its_denoiser_once_a_step_and_never_on_clean_data(name, steps):
    counting, ticks = Counting(), []
    grid = SCHEDULE.grid(steps)
    sample(name, counting, Rng(0, torch.arange(3)), (2,), grid, on_step=lambda: ticks.append(1))
    wanted = grid[:-1]
    if name == "heun":  # at both ends of every step but the last
        wanted = torch.cat([grid[:-1].unfold(0, 2, 1).flatten(), grid[-2:-1]])
    assert torch.allclose(torch.tensor(counting.levels).double(), wanted, atol=1e-5)
    assert len(ticks) == steps


@pytest.mark.parametrize("split", [0, 1, 23, T])
def test_two_phase_sampling_gives_each_denoiser_its_steps(split):
    vanilla, info = Counting(), Counting()
    z = torch.ones(4, 2)
    at = SCHEDULE.logsnr(torch.tensor([T - split + 0.5])).item()
    ddpm(switch(vanilla, info, at), start(4), SCHEDULE.grid(T), z, Rng(0, torch.arange(4)))
    assert (len(vanilla.levels), len(info.levels)) == (split, T - split)
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
    assert set(config.SAMPLERS) == set(SAMPLERS)
    assert set(config.SPACINGS) == {"time", "fitted", *diffusion.SPACINGS}
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


@pytest.mark.parametrize("name, steps", [("ddpm", T), ("ddim", T), ("dpmpp", 20), ("unipc", 20), ("heun", 10)])
def test_a_sampler_takes_its_own_number_of_steps_by_default(name, steps):
    ticks = []
    generate(Model(Counting()), Rng(0, torch.arange(2)), sampler=name, on_step=lambda: ticks.append(1))
    assert len(ticks) == steps


def test_by_default_at_most_twenty_evaluations():
    counting = Counting()
    generate(Model(counting), Rng(0, torch.arange(2)))
    assert len(counting.levels) <= 20


@pytest.mark.parametrize("spacing", ["time", "logsnr"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp", "unipc"])
def test_a_cosine_schedules_far_end_does_not_blow_up_a_small_error(name, spacing):
    """Fault: from log-SNR -20 on x_hat was the network's error times 2e4, the samples' variance 4 to 23 times off."""
    oracle, schedule = GaussianDenoiser([0.0], [[1.0]]), cosine_schedule(1000)

    def denoiser(x, logsnr, z=None):  # as far from ideal as a good network
        return oracle(x, logsnr) + 1e-3 * torch.sin(40 * x)

    x = sample(name, denoiser, Rng(0, torch.arange(500)), (1,), schedule.grid(20, spacing))
    assert 0.8 < x.var() < 1.25


def test_a_grid_repeats_no_level_and_begins_in_noise():
    for schedule, steps in ((SCHEDULE, SCHEDULE.steps), (cosine_schedule(1000), 1000), (cosine_schedule(20), 20)):
        levels = schedule.grid(steps)
        assert (levels.diff() > 0).all() and levels[0] == pytest.approx(max(schedule.logsnr_range[0], -10.2))
    assert len(SCHEDULE.grid(SCHEDULE.steps)) == SCHEDULE.steps + 1


@pytest.mark.parametrize("wanted", [0, SCHEDULE.steps + 1])
def test_more_steps_than_the_models_own_schedule_has_are_refused(wanted):
    """Fault: repeated levels, of which multistep samplers made 100,000 times the right deviation."""
    with pytest.raises(CommandError, match=f"{wanted} steps: the model's schedule has {SCHEDULE.steps}"):
        generate(Model(MIXTURE), Rng(0, torch.arange(2)), steps=wanted)


def test_a_z_that_comes_with_the_data_has_no_prior():
    model = Model(MIXTURE)
    model.latent, model.encoder = object(), None
    with pytest.raises(CommandError, match="comes with the data"):
        generate(model, Rng(0, torch.arange(2)))
