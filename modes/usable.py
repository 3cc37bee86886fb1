"""What a model's own denoiser saves by z: usable information, a figure of this denoiser and not I(x; z)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiment import noisy_latent
from experiment.intervals import Latent
from experiment.measuring import Sample, in_float32, proposal_of, range_note, reference_of
from information.interval import Bracket, Check, check_usable
from information.likelihood import average
from information.maps import gaps_of_denoiser
from information.mutual_information import (
    Forms,
    both_forms,
    lost_below,
    reliance,
    scramble,
    usable_curve,
)
from models import InfoDiff
from modes.maps import ENTRIES, Maps


@dataclass(frozen=True)
class Usable:
    """What was found of every latent, in their order, and what is said of all of them."""

    forms: list[Forms]
    relied: list | None  # a Mean an entry of the first latent
    shared: dict
    maps: Maps | None  # of images: of the first latent and of the entries relied on most

    def part(self, i: int, latent: Latent) -> tuple[dict, list[Check]]:
        """What stands in the result file of the i-th latent, and its checks."""
        difference, orthogonal = average(self.forms[i].difference), average(self.forms[i].orthogonal)
        forms = {"difference": difference, "orthogonal": orthogonal}
        found = {"usable_nats": {
            "difference": difference.mean, "difference_se": difference.se,
            "orthogonal": orthogonal.mean, "orthogonal_se": orthogonal.se,
            "inside": None if latent.bracket is None else all(inside(form, latent.bracket) for form in forms.values()),
        }}
        checks = [] if latent.bracket is None else [
            check_usable(f"{name}, {latent.name}", form, latent.bracket) for name, form in forms.items()]
        return found, checks


def inside(form, bracket: Bracket) -> bool:
    """Does the form's own interval of 2 SE meet the bracket?"""
    low, high = bracket.ends
    return form.mean + 2 * form.se >= low and form.mean - 2 * form.se <= high


def why_not(config, model) -> str | None:
    """Why no denoiser is asked, in words that name the cure; None where one is."""
    if not isinstance(model, InfoDiff):
        return "there is no denoiser to ask: --model diff has one"
    if not model.has_unconditional:
        return "the denoiser has no branch without z: train the model with --z_dropout 0.1"
    return None if config.mi_steps else "--mi_steps 0"


def usable_information(trained, sample: Sample, latents: list[Latent]) -> Usable:
    """Both forms of every latent, on the same noisy inputs.

    Where z has added noise (a deterministic encoder's), a twin conditioned on tau is fitted; the branches with
    and without z are then both the twin's.
    """
    config, model = trained.config, in_float32(trained.model)
    given = [latent.z[: sample.count].float() for latent in latents]
    if latents[0].tau is not None:
        model = fit_twin(trained, latents)
        given = [noisy_latent.with_tau(z, latent.tau) for z, latent in zip(given, latents, strict=True)]
    proposal, a_dim = proposal_of(model), latents[0].z.shape[1]
    with_z = {latent.name: (model.denoise, z) for latent, z in zip(latents, given, strict=True)}
    relied = sample.count >= 2 * a_dim
    if relied:
        mixed = torch.cat([scramble(given[0][:, :a_dim]), given[0][:, a_dim:]], dim=1)
        with_z["scrambled"] = model.denoise, mixed
    curve = usable_curve(
        model.denoise, with_z, sample.batches(), model.gaussian, proposal, config.npoints, config.r_seed,
        progress=f"errors with and without z, {sample.split}", count=sample.count,
    )
    lost = lost_below(model.gaussian, proposal.low)
    losses = reliance(curve, latents[0].name, "scrambled", a_dim) if relied else None
    maps = None
    if sample.dataset.spec.kind == "image":
        most = sorted(range(a_dim), key=lambda entry: -losses[entry].mean)[:ENTRIES] if relied else []
        maps = Maps(sample, (proposal.low, proposal.high), config.r_seed)
        maps.add(gaps_of_denoiser(model.denoise, given[0], latents[0].name, most))
    return Usable(
        [both_forms(curve, latent.name) for latent in latents], losses,
        {"usable_images": sample.count, "npoints": config.npoints, "logsnr_range": [proposal.low, proposal.high],
         "range": range_note(model, proposal), "reference": reference_of(model.gaussian),
         "lost_below_range_nats": lost},
        maps,
    )


def fit_twin(trained, latents: list[Latent]) -> InfoDiff:
    """A copy of the denoiser conditioned on tau, fitted to the training split's codes."""
    config, device = trained.config, trained.device
    training = Sample.of(trained, "train")
    training = replace(training, count=len(training.dataset))
    codes = torch.cat([trained.model.encode(x) for _, x in training.batches()])

    def batch_at(index: Tensor) -> Tensor:
        return training.dataset.batch(index.cpu().numpy(), device)

    return noisy_latent.fit(trained.model, batch_at, codes, latents[0].scale, [latent.tau for latent in latents],
                            config.mi_steps, config.batch_size, config.learning_rate, config.r_seed)
