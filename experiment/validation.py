"""What a training run measures and draws of its averaged weights: held-out losses, the FID of samples, a grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import plots
from config import Config
from dataset import registry
from experiment.measuring import full_precision, stratified_se
from experiment.prepare import batches_of, draw_given
from information.likelihood import (
    GAUSSIAN,
    Mean,
    average,
    conditional,
    continuous_nll,
    error_curve,
    profile,
    unconditional,
)
from metrics.progress import Progress
from rng import Rng
from sampling import generate

VALIDATION_ROWS = 1_000
CURVE_POINTS, CURVE_BINS = 8, 20  # of the held-out error curve that --loss itd logs


def scorer(dataset: registry.Dataset, config: Config, device: torch.device) -> Callable[[nn.Module], dict] | None:
    """The FID of a model's samples, {fid, fid_se}, for --fid_epochs; None without it."""
    if config.fid_epochs is None:
        return None
    classifier = Path(config.model_folder) / f"{config.dataset}_classifier.pth"
    measure = Progress(dataset, classifier, device, config.batch_size)

    def score(model: nn.Module) -> dict:
        @torch.no_grad()  # in here: it is a thread's own, and images are drawn ahead in another one
        def draw(numbers: Tensor) -> Tensor:
            rng = Rng(config.r_seed, numbers.to(device)).fork("score")  # of other noise than what is reported later
            return generate(model, rng, draw_given(dataset, rng), sampler="dpmpp")

        return measure(draw)

    return score


@torch.no_grad()
def validation(model: nn.Module, held_out: registry.Dataset, config: Config, device: torch.device,
               progress: float) -> dict:
    """Loss terms on held-out images with noise that is the same at every epoch: means and standard errors.

    progress    share of the training that is over: the objective is that of its last step
    """
    rows = range(min(len(held_out), VALIDATION_ROWS))
    values: dict[str, list[Tensor]] = {}
    units, sizes = [], []  # of each batch: whose quantiles its log-SNRs are; its rows
    batch = config.batch_size if config.has_latent else _validation_batch(held_out, config)  # the MMD is of a batch
    for indices, x in batches_of(held_out, batch, device, rows):
        if config.has_latent and len(x) < model.latent.smallest_batch:
            continue
        given = None if held_out.given is None else torch.from_numpy(held_out.given[indices.numpy()]).to(device)
        rng = Rng(config.r_seed, indices.to(device))
        units.append(rng.spread("logsnr"))
        sizes.append(len(x))
        for name, term in model(x, rng, given, progress).items():
            values.setdefault(name, []).append(term.double().reshape(-1))
    means, errors = _over_rows(values, units, sizes) if sizes else ({}, {})
    if config.loss == "simple":
        return {"val": means, "val_se": errors}
    held_out_nll, curve = validation_curve(model, held_out, config, device, rows)
    name = "nll_given_z_nats" if config.model == "diff" else "nll_nats"  # p(x|z) is not p(x)
    means[name], errors[name] = held_out_nll
    return {"val": means, "val_se": errors, "curve": curve}


def _over_rows(values: dict[str, list[Tensor]], units: list[Tensor], sizes: list[int]) -> tuple[dict, dict]:
    """Means and standard errors of loss terms, given batch by batch: of each row, or one of a whole batch.

    units   [B] of every batch, in (0, 1): rows in their order are strata of the log-SNR, and the batches much alike
    """
    main = next(name for name in values if name != "loss")  # the term of the rows' own
    order, rows = torch.cat(units).argsort(), sum(sizes)
    weights = torch.tensor(sizes, dtype=torch.float64, device=order.device) * len(sizes) / rows  # the last may be less
    means, errors = {}, {}
    for name, parts in values.items():
        value = torch.cat(parts)
        per_row = len(value) == rows
        means[name] = (value if per_row else value * weights).mean().item()
        if len(value) > 1:
            errors[name] = stratified_se(value[order][None]).item() if per_row else average(value).se
    loss, denoising = torch.cat(values["loss"]), torch.stack([part.mean() for part in values[main]])
    if torch.allclose(loss, denoising, rtol=1e-5):  # nothing besides
        errors |= {"loss": errors[main]} if main in errors else {}
    elif len(loss) > 1:
        errors["loss"] = math.hypot(errors[main], average(loss - denoising).se)  # what the batches' regularisers add
    return means, errors


def _validation_batch(held_out: registry.Dataset, config: Config) -> int:
    """Rows at once: of points all, since a call of a small network takes the same time for 64 and for 1,000."""
    return VALIDATION_ROWS if len(held_out.shape) == 1 else config.batch_size


def validation_curve(model: nn.Module, held_out: registry.Dataset, config: Config, device: torch.device,
                     rows: range) -> tuple[Mean, dict[str, list[float]]]:
    """The held-out bound in nats, and the error over log-SNR beside the Gaussian's, given z where there is one."""
    stream = batches_of(held_out, _validation_batch(held_out, config), device, rows)
    batches = [(index.to(device), x) for index, x in stream]
    estimator, given, proposal = unconditional(model.denoise), held_out.given, model.objective.proposal
    with full_precision(model, device.type):
        if config.model == "diff":
            codes = [model.encode(x) for _, x in batches] if given is None else [torch.from_numpy(given[: len(rows)])]
            estimator = conditional(model.denoise, torch.cat(codes).to(device))
        curve = error_curve({"model": estimator}, batches, model.gaussian, proposal, CURVE_POINTS, config.r_seed)
    shapes = {name: profile(curve, curve.errors[name], CURVE_BINS) for name in ("model", GAUSSIAN)}
    columns = {"logsnr": shapes["model"].logsnr.tolist()} | {name: s.mean.tolist() for name, s in shapes.items()}
    return average(continuous_nll(curve, "model")), columns


@torch.no_grad()
def show_samples(model: nn.Module, dataset: registry.Dataset, config: Config, path: Path, device: torch.device) -> Path:
    """The grid of samples drawn during training, from --sampling_number fixed seeds; its path."""
    rng = Rng(config.r_seed, torch.arange(config.sampling_number, device=device))
    x = generate(model, rng, draw_given(dataset, rng))
    if x.dim() == 4:
        plots.image_grid(x, path)
    else:
        plots.scatter(x[:, :2].cpu().numpy(), path, f"samples, {path.stem.replace('-', ' ')}")
    return path
