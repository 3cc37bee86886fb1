"""The mode `nll`: every likelihood bound of one error curve, as a result file, a table and figures.

Every number says what it is: which kind of likelihood, over which log-SNRs, with which tails, from which split, chosen
on which, from how many samples and evaluations, with its standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import distributed
import plots
from config import Command
from dataset import registry
from diffusion import LogSNRProposal
from experiment import (
    Trained,
    assumptions_of,
    build_fresh,
    fit_gaussian,
    load_data,
    named_checkpoint,
    open_trained,
    pick_device,
)
from experiment.measuring import (
    Sample,
    cautions,
    cells,
    codes_of,
    density_curve,
    drawn_codes,
    in_float32,
    proposal_of,
    provenance,
    range_note,
    reference_of,
)
from information.likelihood import (
    GAUSSIAN,
    Curve,
    Estimator,
    average,
    choose,
    combine,
    conditional,
    continuous_nll,
    discrete_nll,
    error_curve,
    profile,
    unconditional,
)
from information.mutual_information import UNCONDITIONAL
from information.variational import DiscreteBounds, discrete_bounds, fixed_variance
from models import Diffusion, InfoDiff
from regularisers import kl_to_normal
from rng import Rng
from sampling import generate
from utils import CommandError, markdown_table, write_json

PLANE = 60  # points a side of the grid on which the density of 2-D data is drawn
ELBO, ENSEMBLE = "elbo", "best"


def nll(command: Command) -> None:
    """Mode `nll`: a tuned or trained checkpoint, or, with --init_from, a pretrained network, untuned."""
    measure_likelihood(open_untuned(command) if "init_from" in command.by_hand else open_trained(command))


def open_untuned(command: Command) -> Trained:
    """The network of --init_from, with the moments of the data it is measured on.

    Its results stand in results/EXP/from-NAME-WEIGHTS-DATA/, since an experiment's name tells neither.
    """
    config, device = command.config, pick_device(command.config.device)
    dataset = load_data(config, "train")
    model = build_fresh(config, dataset.shape, fit_gaussian(dataset, config.num_workers), device, command.by_hand)
    trained = Trained(config, command.by_hand, model.eval().requires_grad_(False), model.network.source, 0, 0, device,
                      command.mode, data=registry.identity(dataset))
    name = Path(config.init_from).resolve().name
    name = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name)[:60]
    trained.apart = f"from-{name}-{trained.hash[:8]}-{trained.data.split(':')[-1][:8]}"
    return trained


def measure_likelihood(trained: Trained) -> None:
    """Measure every likelihood bound that the model has; leaves results/EXP/nll.json and figures beside it.

    With --ensemble they are of several models: results/EXP/nll-ensemble.json, which names them.

    A model with z is measured as p(x) without z where z-dropout trained that branch, and by the ELBO where its encoder
    is stochastic. Raises CommandError, naming --z_dropout, for one that has neither.
    """
    config, model = trained.config, in_float32(trained.model)
    kinds = likelihoods_of(model)
    path = trained.results("nll-ensemble.json" if config.ensemble else "nll.json")
    others = [open_member(trained, path) for path in config.ensemble]
    members = [model, *(in_float32(other.model) for other in others)]
    sample, proposal = Sample.of(trained, config.split or "test"), proposal_of(model, tuned=trained.epoch > 0)
    reference = reference_of(model.gaussian)
    entries, shapes = [], {}  # of all kinds of likelihood
    for kind in kinds:
        estimators, cost = branches(kind, members, sample, config.r_seed)
        likelihood = Likelihood(model, sample, proposal, config.npoints, config.r_seed, config.soft, kind, cost)
        found, its_shapes = likelihood.entries(estimators, validation_of(trained, kind, members))
        entries, shapes = entries + found, shapes | its_shapes
    if not distributed.is_main():
        return
    write_json(path, {
        "mode": "nll", **provenance(trained), "split": sample.split, "num_images": sample.count,
        "npoints": config.npoints, "logsnr_range": [proposal.low, proposal.high], "range": range_note(model, proposal),
        "reference": reference, "assumptions": assumptions_of(model),
        "ensemble": [{"checkpoint": str(other.path), "checkpoint_hash": other.hash} for other in others],
        "entries": entries, "curves": shapes,
    })
    print(range_note(model, proposal))
    if reference["note"]:
        print(reference["note"])
    print(bounds_table(entries))
    print(f"results: {path}", flush=True)
    stem = path.stem.replace("-", "_")
    plots.error_curves(shapes, path.with_name(f"{stem}_errors.{config.format}"), f"{config.dataset}: denoising error")
    if model.shape == (2,) and UNCONDITIONAL in kinds:
        plane = path.with_name(f"{stem}_density.{config.format}")
        draw_density(trained, sample, proposal, plane)


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


def open_member(trained: Trained, path: str) -> Trained:
    """A further model of the same data. Raises CommandError for other data, or a model with no unconditional branch."""
    other = open_trained(Command("nll", trained.config, frozenset()), named_checkpoint(path))
    if other.config.dataset != trained.config.dataset or tuple(other.model.shape) != tuple(trained.model.shape):
        raise CommandError(f"--ensemble {path} is of other data: {other.config.dataset}, {other.model.shape}")
    if UNCONDITIONAL not in likelihoods_of(other.model):
        raise CommandError(f"--ensemble {path} has no unconditional branch: train it with --z_dropout 0.1")
    return other


def branches(kind: str, members: list, sample: Sample, seed: int) -> tuple[dict[str, Estimator], Tensor | float]:
    """The denoisers of one kind of likelihood by name, and the cost of z in nats, KL(q(z|x) || p(z)) [N], or 0."""
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

    cost    KL(q(z|x) || p(z)) [N] in nats, or 0
    """

    model: Diffusion
    sample: Sample
    proposal: LogSNRProposal
    npoints: int
    seed: int
    soft: bool
    kind: str
    cost: Tensor | float

    def curve(self, estimators: dict[str, Estimator], sample: Sample, seed: int) -> Curve:
        """The errors on all rows, of which every process measures its part."""
        own = error_curve(
            estimators, sample.own_batches(), self.model.gaussian, self.proposal, self.npoints, seed,
            lattice=sample.lattice, soft=self.soft, **self._bar(sample, sample.split),
        )
        return Curve.concatenate(distributed.gather_objects(own))

    def _bar(self, sample: Sample, words: str) -> dict:
        progress = f"{self.kind}, {words}" if distributed.is_main() else None
        return {"progress": progress, "count": len(distributed.part(sample.count))}

    def entries(self, estimators: dict[str, Estimator], load_validation) -> tuple[list[dict], dict[str, dict]]:
        """An entry a bound, and the error curves by name."""
        sample, lattice = self.sample, self.sample.lattice
        curve = self.curve(estimators, sample, self.seed)
        shapes = error_columns(curve, list(estimators))
        names, chosen_on = list(curve.errors), None
        if lattice or len(estimators) > 1:
            others, its_estimators = load_validation()
            choice = choose(self.curve(its_estimators, others, self.seed + 1), names)  # of other noise than is reported
            curve, chosen_on = combine(curve, ENSEMBLE, choice), others.split
        if lattice is None:
            return self._continuous(curve, chosen_on), shapes
        found = self._dequantised(estimators[self.kind]) + self._lattice_value(curve)
        found += self._discrete(curve, names, chosen_on) + self._discrete_time(estimators[self.kind])
        return found, shapes

    def _continuous(self, curve: Curve, chosen_on: str | None) -> list[dict]:
        found = [self._entry("continuous", "continuous", continuous_nll(curve, self.kind), tails="Gaussian",
                             largest_term_nats=curve.largest_term(self.kind))]
        if chosen_on:
            found.append(self._entry("continuous, best at each log-SNR", "continuous", continuous_nll(curve, ENSEMBLE),
                                     tails="Gaussian", chosen_on=chosen_on))
        return found

    def _dequantised(self, estimator: Estimator) -> list[dict]:
        sample = self.sample
        own = density_curve({self.kind: estimator}, sample.own_batches(), sample.lattice, self.model, self.proposal,
                            self.npoints, self.seed, **self._bar(sample, "dequantised"))
        curve = Curve.concatenate(distributed.gather_objects(own))
        nll_nats = continuous_nll(curve, self.kind) - self._cells
        return [self._entry("dequantised", "dequantised", nll_nats, tails="Gaussian",
                            largest_term_nats=curve.largest_term(self.kind))]

    def _lattice_value(self, curve: Curve) -> list[dict]:
        """A density taken at lattice points, as papers print it: not a bound, so never named one."""
        entry = self._entry("lattice value (no bound)", "lattice", continuous_nll(curve, self.kind) - self._cells,
                            tails="Gaussian")
        return [{key.replace("nll_", "nll_lattice_"): value for key, value in entry.items()}]

    def _discrete(self, curve: Curve, choosing: list[str], chosen_on: str) -> list[dict]:
        tails = "Gaussian left, softmax decoder right"
        ways = {"as predicted": self.kind, "hard-rounded": f"{self.kind} hard", "soft-rounded": f"{self.kind} soft"}
        found = [
            self._entry(f"discrete, {way}", "discrete", discrete_nll(curve, name), tails=tails)
            for way, name in ways.items() if name in curve.errors
        ]
        found.append(self._entry("discrete, best at each log-SNR", "discrete", discrete_nll(curve, ENSEMBLE),
                                 tails=tails, chosen_on=chosen_on, chosen_from=choosing))
        found.append(self._entry("VDM, continuous time", "discrete", discrete_nll(curve, self.kind, left="normal"),
                                 tails="N(0, I) left, softmax decoder right"))
        return found

    def _discrete_time(self, estimator: Estimator) -> list[dict]:
        network, schedule = self.model.network, self.model.schedule
        learned = getattr(network, "learns_variance", False)
        predict = fixed_variance(estimator)
        if learned:

            def predict(x_noisy, logsnr, index):
                return network.noise_and_variance(x_noisy, logsnr)

        own = discrete_bounds(predict, self.sample.own_batches(), schedule, self.sample.lattice, self.proposal,
                              self.npoints, self.seed, **self._bar(self.sample, f"{schedule.steps} steps"))
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
        ]

    @property
    def _cells(self) -> float:
        """log of the volume of a lattice cell."""
        return cells(self.model.shape, self.sample.lattice)

    def _entry(self, bound: str, kind: str, nll_nats: Tensor, *, tails: str, **more) -> dict:
        nll_nats = nll_nats + (self.cost.double().cpu() if isinstance(self.cost, Tensor) else self.cost)
        mean, se = average(nll_nats)
        dimensions = math.prod(self.model.shape)
        entry = {
            "bound": bound, "branch": self.kind, "kind": kind, "nll_nats": mean,
            "nll_bpd": mean / (dimensions * math.log(2)), "se_nats": se, "low": self.proposal.low,
            "high": self.proposal.high, "reported_on": self.sample.split, "chosen_on": None,
            "npoints": self.npoints, "num_images": self.sample.count, "tails": tails,
            "cautions": cautions(self.model.gaussian, self.proposal, tails.startswith("Gaussian"), tails == "Gaussian"),
            **more,
        }
        if self.sample.dataset.spec.exact:
            truth = torch.cat([self.sample.dataset.log_density(x.cpu()) for _, x in self.sample.batches()])
            entry["excess_nats"], entry["excess_se"] = average(nll_nats + truth)
            entry["exact_nats"] = -truth.mean().item()
        entropy = self.sample.dataset.spec.entropy
        if entropy is not None and kind in ("discrete", "dequantised"):
            entry |= {"entropy_nats": entropy, "excess_nats": mean - entropy, "excess_se": se}
        return entry


def error_columns(curve: Curve, names: list[str]) -> dict[str, dict]:
    """The Gaussian's error curve and the named ones, as they stand in a result file."""
    shapes = {GAUSSIAN: profile(curve, curve.errors[GAUSSIAN]).columns()}
    for name in names:
        gap = profile(curve, curve.gap(name))
        shapes[name] = {**profile(curve, curve.errors[name]).columns(),
                        "gap": gap.mean.tolist(), "gap_se": gap.se.tolist()}
    return shapes


def draw_density(trained: Trained, sample: Sample, proposal: LogSNRProposal, path) -> None:
    """log p over the plane, beside held-out points and samples of the model.

    Points share their noise, so its error appears as a false slope, not as speckle; 8 npoints evaluations reduce it.
    """
    model, npoints, seed = in_float32(trained.model), trained.config.npoints, trained.config.r_seed
    x = torch.cat([x for _, x in sample.batches()])[:4000]
    low, high = x.amin(0), x.amax(0)
    low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    axes = [torch.linspace(a, b, PLANE, device=x.device) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    plane = torch.cartesian_prod(*axes)
    one = torch.zeros(len(plane), dtype=torch.long, device=x.device)
    curve = error_curve({"model": unconditional(model.denoise)}, zip(one.split(8192), plane.split(8192), strict=True),
                        model.gaussian, proposal, 8 * npoints, seed, progress="density of the plane",
                        count=len(plane))
    log_density = -continuous_nll(curve, "model").reshape(PLANE, PLANE)
    rng = Rng(seed, torch.arange(len(x), device=x.device))
    made = generate(model, rng, trained.prior(rng))
    plots.density([axis.cpu() for axis in axes], log_density, x.cpu(), made.cpu(), path)


def bounds_table(entries: list[dict], names: list[str] | None = None) -> str:
    """Entries of nll.json as a table; `names` of their experiments, one an entry, where they are of several."""
    head = ["bound", "branch", "nats", "SE", "bits/dim", "log-SNR", "tails", "chosen on", "reported on"]
    exact = any("excess_nats" in entry for entry in entries)
    careful = any(entry.get("cautions") for entry in entries)  # files from before have none
    rows = []
    for i, entry in enumerate(entries):
        key = "nll" if "nll_nats" in entry else "nll_lattice"
        row = [entry["bound"], entry["branch"], f"{entry[f'{key}_nats']:.4f}", f"{entry['se_nats']:.4f}",
               f"{entry[f'{key}_bpd']:.4f}", f"{entry['low']:.1f} .. {entry['high']:.1f}", entry["tails"],
               entry["chosen_on"] or "-", entry["reported_on"]]
        if careful:
            row.append("; ".join(entry.get("cautions", [])) or "-")
        if exact:
            truth = entry.get("exact_nats", entry.get("entropy_nats"))
            row += ["-", "-"] if truth is None else [
                f"{truth:.4f}", f"{entry['excess_nats']:.4f} +- {entry['excess_se']:.4f}"]
        rows.append(([names[i]] if names else []) + row)
    head += (["caution"] if careful else []) + (["exact, nats", "excess"] if exact else [])
    return markdown_table((["experiment"] if names else []) + head, rows)
