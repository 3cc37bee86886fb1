"""What a model is made of, and what it minimises.

    Diffusion         plain diffusion (DDPM; ITD)
    InfoDiff          a diffusion decoder of z beside an encoder; both weights 0: the diffusion autoencoder
    VAE               AE, VAE, beta-VAE (with a capacity) or InfoVAE, by its weights
    LatentDiffusion   diffusion over standardised z

Every diffusion model offers the suite's one contract, `denoise(x_noisy, logsnr, z=None) -> eps_hat`. A model's forward
is its loss: named terms, one value a sample [B] where the term has one, their weighted sum under 'loss' [].
"""

from __future__ import annotations

import contextlib
import copy
import math

import torch
from torch import Tensor, nn

import pretrained
from config import Config
from diffusion import (
    LOWEST,
    SPACINGS,
    Gaussian,
    ITDObjective,
    Schedule,
    SimpleObjective,
    cosine_schedule,
    diffuse,
    linear_schedule,
    proposal_for,
)
from modules import Decoder, Encoder, LatentMLP, PointMLP, UNet, mlp
from regularisers import Latent
from rng import Rng
from utils import CommandError

Terms = dict[str, Tensor]


class Precise(nn.Module):
    """A model whose networks, and nothing else of it, run in the lower precision `lower` (None: float32)."""

    lower: torch.dtype | None = None

    def arithmetic(self, x: Tensor):
        if self.lower is None:
            return contextlib.nullcontext()
        return torch.autocast(x.device.type, self.lower)


class Diffusion(Precise):
    """A denoiser with the distribution of log-SNR it is trained on.

    network     (x_noisy, logsnr, z) -> eps_hat
    schedule    the discrete steps that samplers use
    objective   SimpleObjective or ITDObjective
    gaussian    the training split's first two moments
    """

    has_unconditional = True

    @property
    def unit(self) -> str:
        """Of the denoising term."""
        return self.objective.unit

    def __init__(self, network: nn.Module, schedule: Schedule, objective, gaussian: Gaussian, shape: tuple[int, ...]):
        super().__init__()
        self.network, self.schedule, self.objective = network, schedule, objective
        self.gaussian, self.shape = gaussian, shape

    def grid(self, steps: int, spacing: str = "time") -> Tensor:
        """Log-SNRs for a sampler (`Schedule.grid`); of --loss itd over its own range, where 'time' is 'logsnr'."""
        if isinstance(self.objective, ITDObjective):
            return SPACINGS["logsnr" if spacing == "time" else spacing](*self.objective.logsnr_range, steps)
        return self.schedule.grid(steps, spacing)

    def denoise(self, x_noisy: Tensor, logsnr: Tensor, z: Tensor | None = None) -> Tensor:
        with self.arithmetic(x_noisy):
            return self.network(x_noisy, logsnr, z).float()

    def forward(self, x: Tensor, rng: Rng, given: Tensor | None = None, progress: float = 1.0) -> Terms:
        """x [B, *shape] -> {'loss' [], 'denoise' [B]}."""
        error = self.denoising_loss(x, rng)
        return {"loss": error.mean(), "denoise": error}

    def denoising_loss(self, x: Tensor, rng: Rng, *condition: Tensor | None) -> Tensor:
        """[B], in the objective's unit, for one (log-SNR, eps) a sample."""
        logsnr, eps = self.objective.draw(rng.spread("logsnr")), rng.normal("eps", *x.shape[1:])
        x_noisy = diffuse(x, logsnr, eps)
        with self.arithmetic(x):
            eps_hat = self.network(x_noisy, logsnr, *condition)
        return self.objective.loss(x, x_noisy, logsnr, eps, eps_hat.float())


class Encoding(Precise):
    """The half that InfoDiff and VAE share: x -> z.

    encoder     x -> [B, a_dim], or [B, 2 a_dim] (mean, log-variance) where stochastic; None where the data set gives z
    """

    encoder: nn.Module | None
    latent: Latent

    @property
    def stochastic(self) -> bool:
        """Whether q(z|x) has a variance."""
        return self.latent.stochastic

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(mean, log-variance) of q(z|x), each [B, a_dim]; the second None for a deterministic encoder."""
        with self.arithmetic(x):
            code = self.encoder(x).float()
        if not self.stochastic:
            return code, None
        mean, logvar = code.chunk(2, dim=1)
        return mean, logvar.clamp(-15, 10)

    def encode(self, x: Tensor) -> Tensor:
        """The code of x that every evaluation uses: the mean of q(z|x). [B, *shape] -> [B, a_dim]"""
        return self.posterior(x)[0]


class InfoDiff(Diffusion, Encoding):
    """InfoDiffusion (Wang et al. 2023): denoising given z, z kept near its prior."""

    def __init__(self, network, schedule, objective, gaussian, shape, encoder, latent: Latent,
                 z_dropout: float = 0.0):
        super().__init__(network, schedule, objective, gaussian, shape)
        self.encoder, self.latent, self.z_dropout = encoder, latent, z_dropout
        self.has_unconditional = z_dropout > 0

    def denoise(self, x_noisy: Tensor, logsnr: Tensor, z: Tensor | None = None) -> Tensor:
        """The contract. Raises CommandError for z=None where the model was trained without --z_dropout."""
        if z is None and not self.has_unconditional:
            raise CommandError("this model has no unconditional branch: train it with --z_dropout 0.1")
        return super().denoise(x_noisy, logsnr, z)

    def forward(self, x: Tensor, rng: Rng, given: Tensor | None = None, progress: float = 1.0) -> Terms:
        """x [B, *shape]; given [B, a_dim] where the data set brings its z -> {'loss' [], 'denoise' [B], 'kl', 'mmd'}.

        progress    share of the training that is over, for the capacity
        """
        keep = rng.uniform("keep") >= self.z_dropout if self.has_unconditional else None
        if given is not None:
            error = self.denoising_loss(x, rng, given, keep)
            return {"loss": error.mean(), "denoise": error}
        mean, logvar = self.posterior(x)
        z = self.latent.draw(mean, logvar, rng)
        error = self.denoising_loss(x, rng, z, keep)
        loss, values = self.latent.add(error.mean(), z, mean, logvar, rng, progress, self.training)
        return {"loss": loss, "denoise": error, **values}

    def conditioned_on_tau(self) -> InfoDiff:
        """A copy whose z has one entry more, for the level of the noise on it, and which starts by ignoring that entry.

        For I(x; z + N(0, tau^2)): a denoiser must match the z it is given.
        """
        twin = copy.deepcopy(self)
        twin.network.embed_z.add_level()
        twin.network.z_dim += 1
        return twin


class VAE(Encoding):
    """The VAE family (Kingma & Welling 2014; Higgins et al. 2017; Zhao et al. 2019), by the regulariser's weights."""

    unit = "mean squared error"

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent: Latent, shape: tuple[int, ...]):
        super().__init__()
        self.encoder, self.decoder, self.latent, self.shape = encoder, decoder, latent, shape

    def decode(self, z: Tensor) -> Tensor:
        """[B, a_dim] -> [B, *shape]"""
        with self.arithmetic(z):
            return self.decoder(z).float()

    def forward(self, x: Tensor, rng: Rng, given: Tensor | None = None, progress: float = 1.0) -> Terms:
        """x [B, *shape] -> {'loss' [], 'reconstruction' [B] (squared error averaged over dimensions), 'kl', 'mmd'}."""
        mean, logvar = self.posterior(x)
        z = self.latent.draw(mean, logvar, rng)
        error = (self.decode(z) - x).square().flatten(1).mean(1)
        loss, values = self.latent.add(error.mean(), z, mean, logvar, rng, progress, self.training)
        return {"loss": loss, "reconstruction": error, **values}


class LatentDiffusion(Diffusion):
    """Diffusion over latents (DiffAE, sec. 3.3), standardised by the training latents' moments.

    mean, deviation     [a_dim]: kept with the weights, undone by `to_latents`
    """

    def __init__(self, schedule: Schedule, latents: Tensor):
        a_dim = latents.shape[1]
        super().__init__(LatentMLP(a_dim), schedule, SimpleObjective(schedule), None, (a_dim,))
        self.register_buffer("mean", latents.mean(0))
        self.register_buffer("deviation", latents.std(0).clamp(min=1e-6))

    def forward(self, x: Tensor, rng: Rng, given: Tensor | None = None, progress: float = 1.0) -> Terms:
        """x [B, a_dim]: latents as the encoder gave them."""
        return super().forward((x - self.mean) / self.deviation, rng)

    def to_latents(self, sample: Tensor) -> Tensor:
        """Undo the standardisation. [B, a_dim] -> [B, a_dim]"""
        return sample * self.deviation + self.mean


# ---------------------------------------------------------------------------------------------------------------------
# Building


SCHEDULES = {
    "linear": lambda config: linear_schedule(config.beta1, config.betaT, config.diffusion_steps),
    "cosine": lambda config: cosine_schedule(config.diffusion_steps),
}
OBJECTIVES = {
    "simple": lambda config, schedule, gaussian: SimpleObjective(schedule),
    "itd": lambda config, schedule, gaussian: ITDObjective(
        proposal_for(gaussian, config.logsnr_loc, config.logsnr_scale, config.logsnr_clip), gaussian),
}


def schedule_for(config: Config) -> Schedule:
    """The discrete steps. Raises CommandError where they leave too little of the image for float32."""
    schedule = SCHEDULES[config.schedule](config)
    if schedule.logsnr_range[0] < LOWEST:
        raise CommandError(f"--betaT {config.betaT:g} over {config.diffusion_steps} steps ends at log-SNR "
                           f"{schedule.logsnr_range[0]:.0f}, under {LOWEST:.0f}: lower it")
    return schedule


# Widths of the levels over the first, and what else a U-Net, an encoder and a decoder are built of: the one place to
# change them. A checkpoint fits only the networks that it was trained with: give other networks another --tag.
MULTIPLIERS = {"diff": (1, 2, 2, 2), "vanilla": (1, 2, 4, 8), "vae": (1, 2, 4, 8)}
UNET = {"blocks": 2, "attention": (2,)}


def multipliers(config: Config, size: int, depth: int) -> tuple[int, ...]:
    """The levels of a network for images of `size` pixels a side: the first `depth` of MULTIPLIERS; 1,2,4 at 28 pixels.

    Raises CommandError where the levels cannot halve the size.
    """
    chosen = (1, 2, 4) if size == 28 else MULTIPLIERS[config.model][:depth]
    factor = 2 ** (len(chosen) - 1)
    if size % factor:
        raise CommandError(f"--input_size {size} cannot be halved {len(chosen) - 1} times: use a multiple of {factor}")
    return chosen


def build_model(config: Config, spec, shape: tuple[int, ...], gaussian: Gaussian,
                description: dict | None = None, by_hand: frozenset[str] = frozenset()) -> Diffusion | InfoDiff | VAE:
    """A model with fresh weights, or with pretrained weights (--init_from).

    spec        the data set's data.Spec: default width and depth of the networks
    shape       (C, H, W) of an image, or (n,) of a point
    gaussian    moments of the training split, on the device that the model will run on
    description what `pretrained.describe` said of a pretrained network, to build it again without its file
    by_hand     the flags typed by hand: a schedule among them is what a pretrained network was trained on
    """
    if config.denoiser in ("ddpm", "iddpm"):
        return build_pretrained(config, shape, gaussian, description, by_hand)
    points = len(shape) == 1
    width = config.unets_channels or spec.width
    levels = None if points else multipliers(config, shape[-1], spec.depth)
    schedule = schedule_for(config)
    objective = OBJECTIVES[config.loss](config, schedule, gaussian)
    if config.model == "vanilla":
        network = build_denoiser(config, shape, width, levels)
        return Diffusion(network, schedule, objective, gaussian, shape)
    latent = Latent(config)
    encoder = None
    if not spec.gives_z:
        encoder = build_encoder(config, shape, config.encoder_channels or spec.width, levels)
    if config.model == "vae":
        if points:
            decoder = mlp(config.a_dim, width, shape[0])
        else:
            decoder = Decoder(shape[0], shape[-1], config.a_dim, width, levels, config.dropout, **UNET)
        return VAE(encoder, decoder, latent, shape)
    network = build_denoiser(config, shape, width, levels, config.a_dim)
    return InfoDiff(network, schedule, objective, gaussian, shape, encoder, latent, config.z_dropout)


SCHEDULE = frozenset(("schedule", "beta1", "betaT", "diffusion_steps"))  # the flags that make up a schedule


def build_pretrained(config: Config, shape: tuple[int, ...], gaussian: Gaussian, description: dict | None,
                     by_hand: frozenset[str]) -> Diffusion:
    """Plain diffusion around a pretrained network, on that network's own schedule, or the one typed by hand."""
    if description is not None:
        network = pretrained.build(description)
    else:
        load = {"ddpm": pretrained.load_ddpm, "iddpm": pretrained.load_iddpm}[config.denoiser]
        network = load(config.init_from, config.dropout, {name: getattr(config, name) for name in SCHEDULE & by_hand})
    network.check_image_shape(shape)
    objective = OBJECTIVES[config.loss](config, network.schedule, gaussian)
    return Diffusion(network, network.schedule, objective, gaussian, shape)


def build_denoiser(config: Config, shape, width: int, levels, z_dim: int = 0) -> nn.Module:
    """The network behind `denoise`: (x_noisy, logsnr, z) -> eps_hat."""
    if len(shape) == 1:
        if config.denoiser == "unet":
            raise CommandError(f"--denoiser unet is for images: {config.dataset} has points")
        return PointMLP(shape[0], width, z_dim, null=config.z_dropout > 0)
    if config.denoiser == "mlp":
        raise CommandError(f"--denoiser mlp is for points: {config.dataset} has images")
    return UNet(shape[0], shape[0], width, levels, config.dropout, z_dim=z_dim, null=config.z_dropout > 0,
                conditioning=config.conditioning, bottleneck=config.is_bottleneck, **UNET)


def build_encoder(config: Config, shape, width: int, levels) -> nn.Module:
    outputs = config.a_dim * (2 if config.kld_weight > 0 else 1)
    if len(shape) == 1:
        return mlp(math.prod(shape), width, outputs)
    return Encoder(shape[0], shape[-1], outputs, width, levels, config.dropout, **UNET)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
