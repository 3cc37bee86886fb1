"""The mode `mutual_info`: I(x; z) of one checkpoint, by log-SNR, by tau and by latent dimension, with its checks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import config as config_module
import distributed
import plots
from config import Command
from experiment import Trained, open_trained
from information.likelihood import Denoiser, average
from information.mutual_information import (
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
from models import InfoDiff
from modes import noisy_latent
from modes.measuring import (
    Sample,
    codes_of,
    drawn_codes,
    in_float32,
    proposal_of,
    provenance,
    range_note,
    reference_of,
)
from regularisers import kl_to_normal
from rng import Rng
from utils import CommandError, check_writable, markdown_table, write_json


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
    )
    found = [information(curve, case.name) for case in cases]
    regular = config.prior == "regular"
    parts, checks = zip(*(report_case(c, i, sample.count, regular) for c, i in zip(cases, found, strict=True)),
                        strict=True)
    checks = [check for part in checks for check in part]
    if len(cases) > 1:
        checks.append(check_tau([case.tau for case in cases], found))
    record = {
        "mode": "mutual_info", **provenance(trained), "split": sample.split, "num_images": sample.count,
        "npoints": config.npoints, "logsnr_range": [proposal.low, proposal.high], "range": range_note(model, proposal),
        "reference": reference_of(model.gaussian),
        **parts[0], "exact_nats": sample.dataset.exact_mi, "checks": [vars(check) for check in checks],
        "over_tau": list(parts) if first.tau is not None else None,
        "reliance_nats": [one._asdict() for one in reliance(curve, first.name, "scrambled", first.a_dim)]
        if relied else None,
        "curves": {case.name: i.gap.columns() for case, i in zip(cases, found, strict=True)},
    }
    write_json(folder / "mutual_info.json", record)
    plots.information(record, folder)
    print(range_note(model, proposal))
    if record["reference"]["note"]:
        print(record["reference"]["note"])
    print(information_table(record))
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
    twin = noisy_latent.fit(model, lambda index: training.dataset.batch(index.cpu().numpy(), device), codes, config.tau,
                        config.mi_steps, config.batch_size, config.learning_rate, config.r_seed)
    scale = noisy_latent.NoisyLatent.of(codes)
    rng = Rng(config.r_seed, torch.arange(len(mean), device=device))
    cases = []
    for tau in sorted(config.tau):
        z = scale.add(mean, tau, rng)
        posterior = mean, scale.logvar(tau, len(z)), z
        cases.append(Case(twin.denoise, noisy_latent.tell(z, tau), z.shape[1], posterior, tau))
    return cases


def report_case(case: Case, found: Information, count: int, regular: bool) -> tuple[dict, list]:
    """One latent's numbers, and the checks they pass or fail."""
    difference, orthogonal = average(found.difference), average(found.orthogonal)
    numbers = {"tau": case.tau, "difference_nats": difference.mean, "difference_se": difference.se,
               "orthogonal_nats": orthogonal.mean, "orthogonal_se": orthogonal.se}
    checks = [check_gap(case.name, found.gap)]
    if case.posterior is None:
        return numbers, checks
    mean, logvar, z = case.posterior
    encoder = encoder_information(mean, logvar, z)
    iq, above = average(encoder.included.cpu()), average(encoder.left_out.cpu())
    numbers |= {
        "iq_nats": iq.mean, "iq_se": iq.se, "iq_upper_nats": above.mean, "iq_upper_se": above.se,
        "iq_limit_nats": math.log(count), "iq_per_dimension_nats": encoder.per_dimension.mean(0).tolist(),
    }
    rate = None
    if regular:
        rates = kl_to_normal(mean.double(), logvar.double()).cpu()
        rate, marginal = average(rates), average(rates - encoder.included.cpu())
        numbers |= {"rate_nats": rate.mean, "rate_se": rate.se, "marginal_kl_nats": marginal.mean,
                    "marginal_kl_se": marginal.se}
    checks.append(check_encoder(iq, rate, count))
    for label, estimate in (("difference", difference), ("orthogonal", orthogonal)):
        check = check_against_encoder(f"{label} ({case.name})", estimate, iq, count)
        checks += [check] if check else []
    return numbers, checks


def information_table(record: dict) -> str:
    """Estimates of mutual_info.json and its checks as two tables."""
    keys = {"difference": "difference", "orthogonal": "orthogonal", "I_q": "iq", "I_q, leave-one-out": "iq_upper",
            "rate": "rate", "KL(q(z) || p(z))": "marginal_kl"}
    parts = record["over_tau"] or [record]
    head = ["tau"] + [label for label, key in keys.items() if f"{key}_nats" in parts[0]]
    rows = []
    for part in parts:
        row = ["-" if part["tau"] is None else f"{part['tau']:g}"]
        rows.append(row + [f"{part[f'{key}_nats']:.3f} +- {part[f'{key}_se']:.3f}" for key in keys.values()
                           if f"{key}_nats" in part])
    text = markdown_table(head, rows)
    if record["exact_nats"] is not None:
        text += f"\n\nexact: {record['exact_nats']:.4f} nats"
    results = [[check["name"], "passed" if check["passed"] else "VIOLATED", check["detail"]]
               for check in record["checks"]]
    return text + "\n\n" + markdown_table(["check", "result", "detail"], results)
