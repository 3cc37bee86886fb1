"""The modes `nll` and `mutual_info`: a trained model's curve over log-SNR, turned into result files and figures.

Every number says what it is: which kind of likelihood, over which log-SNRs, with which tails, from which split, chosen
on which, from how many samples and evaluations, with its standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import config as config_module
import curves
import distributed
import told_tau
from assembly import Trained, batches_of, build_fresh, fit_gaussian, load_data, open_trained, pick_device
from config import Command
from data import Dataset
from density import (
    GAUSSIAN,
    Curve,
    Denoiser,
    Estimator,
    Lattice,
    average,
    choose,
    combine,
    conditional,
    continuous_nll,
    dequantise,
    discrete_nll,
    error_curve,
    exact_float32,
    profile,
    unconditional,
)
from diffusion import LogSNRProposal
from information import (
    UNCONDITIONAL,
    Information,
    check_against_encoder,
    check_encoder,
    check_gap,
    check_tau,
    encoder_information,
    information,
    information_curve,
    reliance,
    scramble,
)
from models import Diffusion, InfoDiff
from noise import Noise
from priors import kl_to_normal
from sampling import generate
from utils import CommandError, check_writable, versions, write_json
from variational import DiscreteBounds, discrete_bounds, fixed_variance

DEFAULT_IMAGES = 1_000
BATCH = {"image": 256, "points": 8_192}  # samples evaluated at once
PLANE = 90  # points a side of the grid on which the density of 2-D data is drawn
ELBO, ENSEMBLE = "elbo", "best"


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


@dataclass(frozen=True)
class Sample:
    """The measured rows of one split."""

    dataset: Dataset
    split: str
    count: int
    device: torch.device
    workers: int

    @classmethod
    def of(cls, trained: Trained, split: str) -> Sample:
        dataset = load_data(trained.config, split)
        count = min(trained.config.num_images or DEFAULT_IMAGES, len(dataset))
        if count < distributed.world():
            raise CommandError(f"--num_images: {count} images are too few for {distributed.world()} processes")
        return cls(dataset, split, count, trained.device, trained.config.num_workers)

    def batches(self, rows: range | None = None):
        """(index [B], x [B, *shape]) on the device, of all rows or of some."""
        size = BATCH[self.dataset.spec.kind]
        for index, x in batches_of(self.dataset, size, self.device, rows or range(self.count), self.workers):
            yield index.to(self.device), x

    def own_batches(self):
        """The batches that this process measures; `Curve.concatenate` puts together what all of them find."""
        return self.batches(distributed.part(self.count))

    @property
    def lattice(self) -> Lattice | None:
        levels = self.dataset.levels
        return None if levels is None else Lattice(-1.0, 2 / (levels - 1), levels)


def in_float32(model):
    """The model with every network in full precision."""
    model.lower = None
    return model


def proposal_of(model) -> LogSNRProposal:
    """Where the model's error is integrated: what it was trained on, within what the data's spectrum asks for."""
    trained = getattr(model.objective, "proposal", None)
    if trained is not None:
        return trained
    gaussian, seen = model.gaussian, model.objective.logsnr_range
    wanted = gaussian.logsnr_range
    return LogSNRProposal(gaussian.loc, gaussian.scale, max(wanted[0], seen[0]), min(wanted[1], seen[1]))


def range_note(model, proposal: LogSNRProposal) -> str:
    low, high = model.gaussian.logsnr_range
    if proposal.low > low or proposal.high < high:
        return (f"the data's spectrum asks for log-SNR {low:.1f} .. {high:.1f}; the model was trained on "
                f"{proposal.low:.1f} .. {proposal.high:.1f}, and outside the Gaussian takes over")  # fmt: skip
    return f"log-SNR {proposal.low:.1f} .. {proposal.high:.1f}; outside the Gaussian takes over"


@torch.no_grad()
def codes_of(model: InfoDiff, sample: Sample) -> tuple[Tensor, Tensor | None]:
    """(mean, log-variance) of q(z|x) for all rows: [N, a_dim] each, the second None for a deterministic encoder."""
    with exact_float32(sample.device.type):
        means, logvars = zip(*(model.posterior(x) for _, x in sample.batches()), strict=True)
    return torch.cat(means), None if logvars[0] is None else torch.cat(logvars)


def drawn_codes(mean: Tensor, logvar: Tensor, seed: int) -> Tensor:
    """One z of q(z|x) a row, a function of (seed, row). [N, a_dim]"""
    rows = torch.arange(len(mean), device=mean.device)
    return mean + (logvar / 2).exp() * Noise(seed, rows).normal("z", mean.shape[1])


# ---------------------------------------------------------------------------------------------------------------------
# Mode nll


def nll(command: Command) -> None:
    """Mode `nll`: a tuned or trained checkpoint, or, with --init_from typed, somebody's network as it came."""
    measure_likelihood(open_untuned(command) if "init_from" in command.given else open_trained(command))


def open_untuned(command: Command) -> Trained:
    """The network of --init_from, with the moments of the data it is measured on."""
    config, device = command.config, pick_device(command.config.device)
    dataset = load_data(config, "train")
    model = build_fresh(config, dataset.shape, fit_gaussian(dataset, config.num_workers), device)
    place = Path(config.init_from)
    weights = place if place.is_file() else next(place.rglob("diffusion_pytorch_model.*"))
    return Trained(config, command.given, model.eval().requires_grad_(False), weights, 0, 0, device)


def measure_likelihood(trained: Trained) -> None:
    """Measure every likelihood bound that the model has; leaves results/EXP/nll.json and figures beside it.

    A model with z is measured as p(x) without z where z-dropout trained that branch, and by the ELBO where its encoder
    is stochastic. Raises CommandError, naming --z_dropout, for one that has neither.
    """
    config, model = trained.config, in_float32(trained.model)
    kinds = likelihoods_of(model)
    folder = config_module.folder(config, "results")
    check_writable(folder)
    members = [model, *(open_member(trained, path) for path in config.ensemble)]
    sample, proposal = Sample.of(trained, config.split or "test"), proposal_of(model)
    entries, shapes = [], {}  # of all kinds of likelihood
    for kind in kinds:
        estimators, cost = branches(kind, members, sample, config.r_seed)
        likelihood = Likelihood(model, sample, proposal, config.npoints, config.r_seed, config.soft, kind, cost)
        found, its_shapes = likelihood.entries(estimators, validation_of(trained, kind, members))
        entries, shapes = entries + found, shapes | its_shapes
    if not distributed.is_main():
        return
    write_json(folder / "nll.json", {
        "mode": "nll", **provenance(trained), "split": sample.split, "num_images": sample.count,
        "npoints": config.npoints, "logsnr_range": [proposal.low, proposal.high], "range": range_note(model, proposal),
        "entries": entries, "curves": shapes,
    })  # fmt: skip
    curves.errors(shapes, folder / "nll_errors.png", f"{config.dataset}: denoising error")
    if model.shape == (2,) and UNCONDITIONAL in kinds:
        draw_density(model, sample, proposal, config.npoints, config.r_seed, folder / "nll_density.png")
    print(range_note(model, proposal))
    print(curves.bounds_table(entries))
    print(f"results: {folder}/nll.json")


def provenance(trained: Trained) -> dict:
    """Of the numbers in a result file; epoch 0 stands for somebody's network as it came, averaged or not."""
    record = {**trained.provenance(), "seed": trained.config.r_seed, "versions": versions()}
    return record if trained.epoch else {**record, "ema": None}


def likelihoods_of(model) -> list[str]:
    """Which likelihoods a model has: 'unconditional', 'elbo'. p(x|z) is not p(x), and is never printed as one."""
    if not hasattr(model, "denoise"):
        raise CommandError("--mode nll needs a diffusion model: --model diff or vanilla")
    found = [UNCONDITIONAL] if model.has_unconditional else []
    if isinstance(model, InfoDiff) and model.encoder is not None and model.stochastic:
        found.append(ELBO)
    if not found:
        raise CommandError("--mode nll: this model knows p(x|z) only; train it with --z_dropout 0.1 to measure p(x)")
    return found


def open_member(trained: Trained, path: str):
    """A further model of the same data. Raises CommandError for other data, or a model with no unconditional branch."""
    other = open_trained(Command("nll", trained.config, frozenset()), Path(path))
    if other.config.dataset != trained.config.dataset or tuple(other.model.shape) != tuple(trained.model.shape):
        raise CommandError(f"--ensemble {path} is of other data: {other.config.dataset}, {other.model.shape}")
    if UNCONDITIONAL not in likelihoods_of(other.model):
        raise CommandError(f"--ensemble {path} has no unconditional branch: train it with --z_dropout 0.1")
    return in_float32(other.model)


def branches(kind: str, members: list, sample: Sample, seed: int) -> tuple[dict[str, Estimator], Tensor | float]:
    """The denoisers of one kind of likelihood by name, and what z costs in nats a row: KL(q(z|x) || p(z)) [N], or 0."""
    if kind == UNCONDITIONAL:
        names = [kind] + [f"member {i}" for i in range(2, len(members) + 1)]
        return {name: unconditional(model.denoise) for name, model in zip(names, members, strict=True)}, 0.0
    mean, logvar = codes_of(members[0], sample)
    return {kind: conditional(members[0].denoise, drawn_codes(mean, logvar, seed))}, kl_to_normal(mean, logvar)


def validation_of(trained: Trained, kind: str, members: list):
    """What estimators are chosen on: the validation split and its denoisers. Called only where there is a choice."""

    def load() -> tuple[Sample, dict[str, Estimator]]:
        sample = Sample.of(trained, "train" if trained.config.split == "val" else "val")
        return sample, branches(kind, members, sample, trained.config.r_seed)[0]

    return load


@dataclass(frozen=True)
class Likelihood:
    """All bounds of one kind of likelihood ('unconditional' or 'elbo') of one model on one sample.

    cost    nats a row that z costs, KL(q(z|x) || p(z)) [N]; or 0
    """

    model: Diffusion
    sample: Sample
    proposal: LogSNRProposal
    npoints: int
    seed: int
    soft: bool
    kind: str
    cost: Tensor | float

    def curve(self, estimators: dict[str, Estimator], sample: Sample) -> Curve:
        """The errors on all rows, of which every process measures its part."""
        own = error_curve(
            estimators, sample.own_batches(), self.model.gaussian, self.proposal, self.npoints, self.seed,
            lattice=sample.lattice, soft=self.soft, **self._bar(sample, sample.split),
        )  # fmt: skip
        return Curve.concatenate(distributed.gather_objects(own))

    def _bar(self, sample: Sample, words: str) -> dict:
        progress = f"{self.kind}, {words}" if distributed.is_main() else None
        return {"progress": progress, "count": len(distributed.part(sample.count))}

    def entries(self, estimators: dict[str, Estimator], load_validation) -> tuple[list[dict], dict[str, dict]]:
        """An entry a bound, and the error curves by name."""
        sample, lattice = self.sample, self.sample.lattice
        curve = self.curve(estimators, sample)
        shapes = error_columns(curve, list(estimators))
        names, chosen_on = list(curve.errors), None
        if lattice or len(estimators) > 1:
            others, its_estimators = load_validation()
            choice = choose(self.curve(its_estimators, others), names)
            curve, chosen_on = combine(curve, ENSEMBLE, choice), others.split
        if lattice is None:
            return self._continuous(curve, chosen_on), shapes
        found = self._dequantised(estimators[self.kind]) + self._lattice_value(curve)
        found += self._discrete(curve, names, chosen_on) + self._discrete_time(estimators[self.kind])
        return found, shapes

    def _continuous(self, curve: Curve, chosen_on: str | None) -> list[dict]:
        found = [self._entry("continuous", "continuous", continuous_nll(curve, self.kind), tails="Gaussian",
                             largest_term_nats=curve.largest_term(self.kind))]  # fmt: skip
        if chosen_on:
            found.append(self._entry("continuous, best at each log-SNR", "continuous", continuous_nll(curve, ENSEMBLE),
                                     tails="Gaussian", chosen_on=chosen_on))  # fmt: skip
        return found

    def _dequantised(self, estimator: Estimator) -> list[dict]:
        sample = self.sample
        own = error_curve(
            {self.kind: estimator}, dequantise(sample.own_batches(), sample.lattice, self.seed), self.model.gaussian,
            self.proposal, self.npoints, self.seed, **self._bar(sample, "dequantised"),
        )  # fmt: skip
        curve = Curve.concatenate(distributed.gather_objects(own))
        nll_nats = continuous_nll(curve, self.kind) - self._cells
        return [self._entry("dequantised", "dequantised", nll_nats, tails="Gaussian",
                            largest_term_nats=curve.largest_term(self.kind))]  # fmt: skip

    def _lattice_value(self, curve: Curve) -> list[dict]:
        """A density taken at lattice points, as papers print it: not a bound, so never under the name of one."""
        entry = self._entry("lattice value (no bound)", "lattice", continuous_nll(curve, self.kind) - self._cells,
                            tails="Gaussian")  # fmt: skip
        return [{key.replace("nll_", "nll_lattice_"): value for key, value in entry.items()}]

    def _discrete(self, curve: Curve, choosing: list[str], chosen_on: str) -> list[dict]:
        tails = "Gaussian left, softmax decoder right"
        ways = {"as predicted": self.kind, "hard-rounded": f"{self.kind} hard", "soft-rounded": f"{self.kind} soft"}
        found = [
            self._entry(f"discrete, {way}", "discrete", discrete_nll(curve, name), tails=tails)
            for way, name in ways.items() if name in curve.errors
        ]  # fmt: skip
        found.append(self._entry("discrete, best at each log-SNR", "discrete", discrete_nll(curve, ENSEMBLE),
                                 tails=tails, chosen_on=chosen_on, chosen_from=choosing))  # fmt: skip
        found.append(self._entry("VDM, continuous time", "discrete", discrete_nll(curve, self.kind, left="normal"),
                                 tails="N(0, I) left, softmax decoder right"))  # fmt: skip
        return found

    def _discrete_time(self, estimator: Estimator) -> list[dict]:
        network, schedule = self.model.network, self.model.schedule
        learned = getattr(network, "learns_variance", False)
        predict = fixed_variance(estimator)
        if learned:

            def predict(x_noisy, logsnr, index):
                return network.noise_and_variance(x_noisy, logsnr)

        own = discrete_bounds(predict, self.sample.own_batches(), schedule, self.sample.lattice, self.proposal,
                              self.npoints, self.seed, **self._bar(self.sample, f"{schedule.steps} steps"))  # fmt: skip
        bounds = DiscreteBounds.concatenate(distributed.gather_objects(own))
        low, high = schedule.logsnr_range
        looked_at = f"{self.npoints} importance-sampled of {schedule.steps - 1}, and the last"
        shared = {"low": low, "high": high, "steps": schedule.steps, "steps_evaluated": looked_at}
        variance = "learned" if learned else "fixed"
        return [
            self._entry(f"VDM, {schedule.steps} steps", "discrete", bounds.vdm_nll,
                        tails="N(0, I) left, softmax decoder right", **shared),
            self._entry(f"DDPM, {schedule.steps} steps, {variance} variance", "discrete", bounds.ddpm_nll,
                        tails="N(0, I) left, Gaussian cells right", **shared),
        ]  # fmt: skip

    @property
    def _cells(self) -> float:
        """log of the volume of a lattice cell."""
        return math.prod(self.model.shape) * math.log(self.sample.lattice.step)

    def _entry(self, bound: str, kind: str, nll_nats: Tensor, **more) -> dict:
        nll_nats = nll_nats + (self.cost.double().cpu() if isinstance(self.cost, Tensor) else self.cost)
        mean, se = average(nll_nats)
        dimensions = math.prod(self.model.shape)
        entry = {
            "bound": bound, "branch": self.kind, "kind": kind, "nll_nats": mean,
            "nll_bpd": mean / (dimensions * math.log(2)), "se_nats": se, "low": self.proposal.low,
            "high": self.proposal.high, "reported_on": self.sample.split, "chosen_on": None,
            "npoints": self.npoints, "num_images": self.sample.count, **more,
        }  # fmt: skip
        if self.sample.dataset.spec.exact:
            truth = torch.cat([self.sample.dataset.log_density(x.cpu()) for _, x in self.sample.batches()])
            entry["excess_nats"], entry["excess_se"] = average(nll_nats + truth)
            entry["exact_nats"] = -truth.mean().item()
        return entry


def error_columns(curve: Curve, names: list[str]) -> dict[str, dict]:
    """The Gaussian's error curve and the named ones, as they stand in a result file."""
    shapes = {GAUSSIAN: curves.columns(profile(curve, curve.errors[GAUSSIAN]))}
    for name in names:
        gap = profile(curve, curve.gap(name))
        shapes[name] = {**curves.columns(profile(curve, curve.errors[name])),
                        "gap": gap.mean.tolist(), "gap_se": gap.se.tolist()}  # fmt: skip
    return shapes


def draw_density(model, sample: Sample, proposal: LogSNRProposal, npoints: int, seed: int, path) -> None:
    """log p over the plane, from noise that all points share, beside held-out points and samples of the model."""
    x = torch.cat([x for _, x in sample.batches()])[:4000]
    low, high = x.amin(0), x.amax(0)
    low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    axes = [torch.linspace(a, b, PLANE, device=x.device) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    plane = torch.cartesian_prod(*axes)
    one = torch.zeros(len(plane), dtype=torch.long, device=x.device)
    curve = error_curve({"model": unconditional(model.denoise)}, zip(one.split(8192), plane.split(8192), strict=True),
                        model.gaussian, proposal, npoints, seed, progress="density of the plane",
                        count=len(plane))  # fmt: skip
    log_density = -continuous_nll(curve, "model").reshape(PLANE, PLANE)
    made = generate(model, Noise(seed, torch.arange(len(x), device=x.device)), steps=100, sampler="ddim")
    curves.density([axis.cpu() for axis in axes], log_density, x.cpu(), made.cpu(), path)


# ---------------------------------------------------------------------------------------------------------------------
# Mode mutual_info


@dataclass(frozen=True)
class Case:
    """One latent whose information about x is measured.

    denoiser    told z
    z           [N, width] as the denoiser takes it
    a_dim       how many of its leading entries are the latent
    posterior   (mean, log-variance, z) of q(z|x), [N, a_dim] each; None where the data set gives z
    """

    denoiser: Denoiser
    z: Tensor
    a_dim: int
    posterior: tuple[Tensor, Tensor, Tensor] | None
    tau: float | None = None

    @property
    def name(self) -> str:
        return "z" if self.tau is None else f"z, tau {self.tau:g}"


def mutual_info(command: Command) -> None:
    """Mode `mutual_info`."""
    if distributed.is_main():
        measure_information(open_trained(command))


def measure_information(trained: Trained) -> None:
    """Measure I(x; z); leaves results/EXP/mutual_info.json and figures beside it.

    A stochastic encoder's z is sampled; a deterministic encoder's gets noise of each --tau, and a denoiser that is told
    tau is fitted first. Raises CommandError where the model has no z, or no branch without it.
    """
    config, model = trained.config, in_float32(trained.model)
    if not isinstance(model, InfoDiff):
        raise CommandError("--mode mutual_info needs a model with a latent and a diffusion decoder: --model diff")
    if not model.has_unconditional:
        raise CommandError("--mode mutual_info needs a branch without z too: train the model with --z_dropout 0.1")
    folder = config_module.folder(config, "results")
    check_writable(folder)
    sample = Sample.of(trained, config.split or "test")
    cases = cases_of(trained, sample)
    proposal = proposal_of(model)
    with_z = {case.name: (case.denoiser, case.z) for case in cases}
    first = cases[0]
    relied = sample.count >= 2 * first.a_dim
    if relied:
        mixed = torch.cat([scramble(first.z[:, : first.a_dim]), first.z[:, first.a_dim :]], dim=1)
        with_z["scrambled"] = (first.denoiser, mixed)
    curve = information_curve(
        model.denoise, with_z, sample.batches(), model.gaussian, proposal, config.npoints, config.r_seed,
        progress=f"errors with and without z, {sample.split}", count=sample.count,
    )  # fmt: skip
    found = [information(curve, case.name) for case in cases]
    regular = config.prior == "regular"
    parts, checks = zip(*(report_case(c, i, sample.count, regular) for c, i in zip(cases, found, strict=True)),
                        strict=True)  # fmt: skip
    checks = [check for part in checks for check in part]
    if len(cases) > 1:
        checks.append(check_tau([case.tau for case in cases], found))
    record = {
        "mode": "mutual_info", **provenance(trained), "split": sample.split, "num_images": sample.count,
        "npoints": config.npoints, "logsnr_range": [proposal.low, proposal.high], "range": range_note(model, proposal),
        **parts[0], "exact_nats": sample.dataset.exact_mi, "checks": [vars(check) for check in checks],
        "over_tau": list(parts) if first.tau is not None else None,
        "reliance_nats": [one._asdict() for one in reliance(curve, first.name, "scrambled", first.a_dim)]
        if relied else None,
        "curves": {case.name: curves.columns(i.gap) for case, i in zip(cases, found, strict=True)},
    }  # fmt: skip
    write_json(folder / "mutual_info.json", record)
    curves.information(record, folder)
    print(range_note(model, proposal))
    print(curves.information_table(record))
    print(f"results: {folder}/mutual_info.json")


def cases_of(trained: Trained, sample: Sample) -> list[Case]:
    """The latents that are measured, the least noisy first."""
    config, model, device = trained.config, trained.model, trained.device
    if sample.dataset.given is not None:
        given = torch.from_numpy(sample.dataset.given[: sample.count]).to(device)
        return [Case(model.denoise, given, given.shape[1], None)]
    mean, logvar = codes_of(model, sample)
    if logvar is not None:
        z = drawn_codes(mean, logvar, config.r_seed)
        return [Case(model.denoise, z, z.shape[1], (mean, logvar, z))]
    training = Sample.of(trained, "train")
    training = replace(training, count=len(training.dataset))
    codes = codes_of(model, training)[0]
    twin = told_tau.fit(model, lambda index: training.dataset.batch(index.cpu().numpy(), device), codes, config.tau,
                        config.mi_steps, config.batch_size, config.learning_rate, config.r_seed)  # fmt: skip
    scale = told_tau.NoisyLatent.of(codes)
    noise = Noise(config.r_seed, torch.arange(len(mean), device=device))
    cases = []
    for tau in sorted(config.tau):
        z = scale.add(mean, tau, noise)
        cases.append(Case(twin.denoise, told_tau.tell(z, tau), z.shape[1], (mean, scale.logvar(tau, len(z)), z), tau))
    return cases


def report_case(case: Case, found: Information, count: int, regular: bool) -> tuple[dict, list]:
    """One latent's numbers, and the checks they pass or fail."""
    difference, orthogonal = average(found.difference), average(found.orthogonal)
    numbers = {"tau": case.tau, "difference_nats": difference.mean, "difference_se": difference.se,
               "orthogonal_nats": orthogonal.mean, "orthogonal_se": orthogonal.se}  # fmt: skip
    checks = [check_gap(case.name, found.gap)]
    if case.posterior is None:
        return numbers, checks
    mean, logvar, z = case.posterior
    encoder = encoder_information(mean, logvar, z)
    iq, above = average(encoder.included.cpu()), average(encoder.left_out.cpu())
    numbers |= {
        "iq_nats": iq.mean, "iq_se": iq.se, "iq_upper_nats": above.mean, "iq_upper_se": above.se,
        "iq_limit_nats": math.log(count), "iq_per_dimension_nats": encoder.per_dimension.mean(0).tolist(),
    }  # fmt: skip
    rate = None
    if regular:
        rates = kl_to_normal(mean.double(), logvar.double()).cpu()
        rate, marginal = average(rates), average(rates - encoder.included.cpu())
        numbers |= {"rate_nats": rate.mean, "rate_se": rate.se, "marginal_kl_nats": marginal.mean,
                    "marginal_kl_se": marginal.se}  # fmt: skip
    checks.append(check_encoder(iq, rate, count))
    for label, estimate in (("difference", difference), ("orthogonal", orthogonal)):
        check = check_against_encoder(f"{label} ({case.name})", estimate, iq, count)
        checks += [check] if check else []
    return numbers, checks
