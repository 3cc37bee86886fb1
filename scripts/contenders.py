"""What the benchmark times: this suite's networks, and those of others at the same widths, in the same training step.

    Ours                        a model of this suite through training.Stepper and model.denoise
    Diffusers                   diffusers' UNet2DModel; beside InfoDiffusion two, an encoder and a denoiser
    DenoisingDiffusionPytorch   denoising_diffusion_pytorch's Unet, widened until parameters and work agree
    Published                   the authors' InfoDiffusion, from a checkout of their code
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from dataset import registry
from diffusion import Gaussian, diffuse
from experiment import build_fresh, half_of
from models import UNET, multipliers, parameter_count
from modules import Convolution, GroupNorm, use_kernels
from rng import Rng
from training import Stepper

DDPM_STEPS = 1000


class Ours:
    """A model of this suite in its own training loop."""

    name = "ours"

    def __init__(self, config: Config, shape: tuple[int, ...], device: torch.device):
        entries = int(np.prod(shape))
        unit = Gaussian(torch.zeros(entries).double(), torch.ones(entries).double(), None)
        self.stepper = Stepper(build_fresh(config, shape, unit, device), config, device)
        self.parameters = parameter_count(self.stepper.model)
        self.z_dim = config.a_dim if config.model == "diff" else 0

    def take(self, *kernels) -> tuple:
        """Let the networks work by other kernels (`use_kernels`); returns those from before."""
        before = next((m.kernel for m in self.stepper.model.modules() if isinstance(m, GroupNorm)), None), next(
            (m.winograd for m in self.stepper.model.modules() if isinstance(m, Convolution)), None)
        for part in (self.stepper.model, self.stepper.ema):
            use_kernels(part, *kernels)
        return before

    def train(self, x: Tensor) -> None:
        index = torch.arange(len(x), device=x.device)
        self.stepper.update(x, Rng(0, index, self.stepper.step), None, 0.0, 1e-4)

    def evaluate(self, x: Tensor, logsnr: Tensor, z: Tensor | None = None) -> Tensor:
        if z is None and self.z_dim:
            z = torch.zeros(len(x), self.z_dim, device=x.device)
        return self.stepper.ema.denoise(x, logsnr, z)


class Rival:
    """Another library's network in a plain loop with the same parts.

    network     (x_noisy [B,C,H,W], logsnr [B], x: clean images, or None for no code) -> eps_hat
    """

    def __init__(self, name: str, network: nn.Module, half: torch.dtype | None, device: torch.device):
        self.name, self.half, self.device, self.layout = name, half, device, torch.contiguous_format
        self.network = network.to(device).train()
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        self.parameters = parameter_count(network)

    def compiled(self) -> Rival:
        self.name += ", compiled"
        self.network.compile()
        self.ema.compile()
        return self

    def channels_last(self) -> Rival:
        """The same with weights and images channels last, as its documentation advises."""
        self.name += ", channels last"
        self.layout = torch.channels_last
        for part in (self.network, self.ema):
            part.to(memory_format=torch.channels_last)
        return self

    def _arithmetic(self):
        return torch.autocast(self.device.type, self.half) if self.half else contextlib.nullcontext()

    def train(self, x: Tensor) -> None:
        x = x.contiguous(memory_format=self.layout)
        eps, logsnr = torch.randn_like(x), torch.rand(len(x), device=x.device) * 16 - 5
        with self._arithmetic():
            eps_hat = self.network(diffuse(x, logsnr, eps), logsnr, x)
        self.optimizer.zero_grad(set_to_none=True)
        (eps_hat.float() - eps).square().mean().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(list(self.ema.parameters()), [p.detach() for p in self.network.parameters()], 1e-4)

    @torch.no_grad()
    def evaluate(self, x: Tensor, logsnr: Tensor) -> Tensor:
        with self._arithmetic():
            return self.ema(x.contiguous(memory_format=self.layout), logsnr, None).float()


class Diffusers(nn.Module):
    """UNet2DModel at our widths, blocks and attention; with `z_dim` a second one before it, as the encoder."""

    def __init__(self, shape: tuple[int, ...], width: int, levels: tuple[int, ...], dropout: float, z_dim: int):
        super().__init__()
        self.unet = self._unet(shape, shape[0], width, levels, dropout, class_embed_type="identity" if z_dim else None)
        self.z_dim, self.encoder = z_dim, None
        if z_dim:
            self.encoder = self._unet(shape, 1, width, levels, dropout)
            self.to_z = nn.Linear(shape[1] * shape[2], z_dim)
            self.embed_z = nn.Sequential(nn.Linear(z_dim, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))

    @staticmethod
    def _unet(shape, outside: int, width: int, levels, dropout: float, **options) -> nn.Module:
        from diffusers import UNet2DModel
        from diffusers.utils import logging

        logging.set_verbosity_error()  # it advises against a single head
        kinds = ["Attn" if level in UNET["attention"] else "" for level in range(len(levels))]
        return UNet2DModel(
            sample_size=shape[-1], in_channels=shape[0], out_channels=outside, layers_per_block=UNET["blocks"],
            dropout=dropout, block_out_channels=[width * m for m in levels], attention_head_dim=None,
            norm_num_groups=math.gcd(32, width), resnet_time_scale_shift="scale_shift",
            down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)], **options,
        )

    def forward(self, x_noisy: Tensor, logsnr: Tensor, x: Tensor | None) -> Tensor:
        if not self.z_dim:
            return self.unet(x_noisy, logsnr).sample
        if x is None:
            z = torch.zeros(len(x_noisy), self.z_dim, device=x_noisy.device)
        else:
            z = self.to_z(self.encoder(x, torch.zeros_like(logsnr)).sample.flatten(1))
        return self.unet(x_noisy, logsnr, class_labels=self.embed_z(z)).sample


class DenoisingDiffusionPytorch(nn.Module):
    """denoising_diffusion_pytorch's Unet; full attention at our level, its linear attention elsewhere."""

    def __init__(self, shape: tuple[int, ...], width: int, levels: tuple[int, ...], dropout: float):
        super().__init__()
        from denoising_diffusion_pytorch import Unet

        wide = width * 5 // 4
        self.unet = Unet(
            wide, dim_mults=levels, channels=shape[0], dropout=dropout, attn_heads=1, flash_attn=True,
            full_attn=tuple(level in UNET["attention"] for level in range(len(levels))),
            attn_dim_head=tuple(wide * m for m in levels),
        )

    def forward(self, x_noisy: Tensor, logsnr: Tensor, x: Tensor | None) -> Tensor:
        return self.unet(x_noisy, logsnr)


class Published(nn.Module):
    """The authors' encoder and conditioned denoiser; `folder`: a checkout of their code."""

    def __init__(self, folder: str, shape: tuple[int, ...], width: int, levels: tuple[int, ...], dropout: float,
                 z_dim: int):
        super().__init__()
        theirs, self.z_dim = import_published(folder), z_dim
        sizes = {"ch": width, "ch_mult": levels, "attn": UNET["attention"], "num_res_blocks": UNET["blocks"],
                 "dropout": dropout, "shape": shape, "a_dim": z_dim}
        self.encoder = theirs.Encoder(**sizes)
        self.unet = theirs.AuxiliaryUNet(DDPM_STEPS, **sizes)

    def forward(self, x_noisy: Tensor, logsnr: Tensor, x: Tensor | None) -> Tensor:
        z = x_noisy.new_zeros(len(x_noisy), self.z_dim) if x is None else self.encoder(x)[0]
        return self.unet(x_noisy, torch.arange(len(x_noisy), device=x_noisy.device), z)  # any steps: they cost the same


def import_published(folder: str) -> ModuleType:
    """The `models` of a checkout, whose modules have the names of ours: ours are set aside meanwhile."""
    names = ("utils", "modules", "models")  # each imports those before it
    ours = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        for name in names:
            spec = spec_from_file_location(name, Path(folder) / f"{name}.py")
            sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules["models"]
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(ours)


RIVALS = {"diffusers": "diffusers", "denoising-diffusion-pytorch": "denoising_diffusion_pytorch"}


def images_of(config: Config, device: torch.device) -> Tensor:
    """A batch in the data set's shape. [B,C,H,W] in [-1, 1]"""
    spec = registry.SPECS[config.dataset]
    return torch.rand(config.batch_size, spec.channels, spec.size, spec.size, device=device) * 2 - 1


def contenders(config: Config, device: torch.device, published: str | None) -> list[Callable[[], Ours | Rival]]:
    """What makes ours, then what is at hand of the others and has a counterpart."""
    spec = registry.SPECS[config.dataset]
    shape = (spec.channels, spec.size, spec.size)
    levels, half = multipliers(config, spec.size, spec.depth), half_of(config.precision, device)
    z_dim = config.a_dim if config.model == "diff" else 0
    sizes = (shape, spec.width, levels, config.dropout)
    field: list[Callable[[], Ours | Rival]] = [lambda: Ours(config, shape, device)]
    if find_spec("diffusers"):
        field.append(lambda: Rival("diffusers", Diffusers(*sizes, z_dim), half, device))
        field.append(lambda: Rival("diffusers", Diffusers(*sizes, z_dim), half, device).channels_last())
    if find_spec("denoising_diffusion_pytorch") and not z_dim:
        network = DenoisingDiffusionPytorch
        field.append(lambda: Rival("denoising-diffusion-pytorch", network(*sizes), half, device))
    if published and z_dim and spec.width % 32 == 0:  # theirs have 32 groups, and their plain network is never made
        field.append(lambda: Rival("published", Published(published, *sizes, z_dim), half, device))
    return field
