"""Networks that were trained elsewhere, behind the suite's denoiser contract."""

from pretrained.ddpm import load_ddpm
from pretrained.denoiser import PretrainedDenoiser, build, describe
from pretrained.iddpm import load_iddpm

__all__ = ["PretrainedDenoiser", "build", "describe", "load_ddpm", "load_iddpm"]
