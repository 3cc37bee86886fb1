"""A network trained elsewhere, behind the denoiser contract of this suite, and its description.

`describe(denoiser)` and `build(description)` are what a checkpoint of ours stores, so that a tuned network is rebuilt
with no file from elsewhere. Files are read by `pretrained.ddpm` and `pretrained.iddpm`.

All were trained on images in [-1, 1] and receive the time as an index i, counted from 0, which belongs to abar after
i + 1 steps of their schedule. Nothing is fetched, and no file is read in a way that could run code.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion import Schedule, cosine_schedule, linear_schedule
from pretrained.improved_unet import ImprovedUNet
from utils import UNREADABLE, CommandError, first_line


class PretrainedDenoiser(nn.Module):
    """A network trained on discrete steps, as a denoiser of log-SNRs: eps_hat = denoiser(x_noisy, logsnr).

    schedule         the schedule that it was trained on
    logsnr_range     (lowest, highest) log-SNR of that schedule
    image_shape      (C, H, W) that it was made for, or None where its file does not say
    learns_variance  whether it predicts the variance of the reverse step beside the noise
    assumptions      what its files do not say and was assumed, a line each
    source           the file that its weights are from, or None where they are fresh
    """

    def __init__(
        self,
        network: nn.Module,
        description: dict,
        in_channels: int,
        out_channels: int,
        levels: int,
        image_shape: tuple[int, int, int] | None = None,
    ):
        super().__init__()
        self.network, self.description = network, copy.deepcopy(description)
        self.channels, self.levels, self.image_shape = in_channels, levels, image_shape
        self.learns_variance = out_channels == 2 * in_channels
        self.schedule = _make_schedule(description["schedule"])
        self.logsnr_range = self.schedule.logsnr_range
        self.assumptions: list[str] = self.description.get("assumptions", [])
        self.source: Path | None = None
        self.eval()

    def times(self, logsnr: Tensor) -> Tensor:
        """The network's time at a log-SNR, element by element: [B] -> [B] float32.

        Exact at the steps of the schedule and linear in log-SNR between them. Beyond its first and last step the line
        goes on with the same slope, then bends into a logarithm: a new log-SNR is always a new time, for fine-tuning,
        and yet a handful of steps outside what the network has seen, where the line would be hundreds.
        """
        step = self.schedule.step_of(logsnr)
        inside = step.clamp(1, self.schedule.steps)
        beyond = step - inside
        step = inside + beyond.sign() * beyond.abs().log1p()
        return ((step - 1) * self.description["time_scale"]).float()

    def noise_and_variance(self, x_noisy: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor | None]:
        """eps_hat, and v in [-1, 1] or so, of which (v + 1)/2 mixes the log-variances (eq. 15); None if not learned.

        x_noisy [B, C, H, W], logsnr [B] -> two of [B, C, H, W].
        """
        output = self.network(x_noisy, self.times(logsnr))
        if not isinstance(output, Tensor):  # diffusers wraps its answer
            output = output.sample
        return output[:, : self.channels], output[:, self.channels :] if self.learns_variance else None

    def forward(self, x_noisy: Tensor, logsnr: Tensor, z: None = None) -> Tensor:
        """x_noisy [B, C, H, W], logsnr [B] -> eps_hat [B, C, H, W]."""
        if z is not None:
            raise ValueError("a pretrained network is unconditional: it takes no z")
        return self.noise_and_variance(x_noisy, logsnr)[0]

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """Raise CommandError where the network cannot take images of this shape, (C, H, W)."""
        multiple = 2 ** (self.levels - 1)
        if len(shape) != 3 or shape[0] != self.channels or any(side % multiple for side in shape[1:]):
            raise CommandError(
                f"--denoiser {self.description['kind']}: the network takes images of {self.channels} channels with "
                f"sides divisible by {multiple}, not {'x'.join(map(str, shape))}"
            )
        if self.image_shape is not None and tuple(shape) != self.image_shape:
            height, width = self.image_shape[1:]
            cure = f"use --input_size {width}" if height == width else "this suite's images are square"
            raise CommandError(
                f"--denoiser {self.description['kind']}: the network was made for images of {height}x{width}, not "
                f"{'x'.join(map(str, shape[1:]))}: {cure}"
            )


def _make_schedule(description: dict) -> Schedule:
    if description["name"] == "cosine":
        return cosine_schedule(description["steps"])
    if description["name"] == "scaled_linear":  # of diffusers: evenly spaced standard deviations
        roots = description["beta1"] ** 0.5, description["betaT"] ** 0.5
        return Schedule(torch.linspace(*roots, description["steps"], dtype=torch.float64) ** 2)
    return linear_schedule(description["beta1"], description["betaT"], description["steps"])


def with_flags(own: dict, flags: dict) -> dict:
    """The schedule `own` of a pretrained model, changed by flags typed by hand, {--schedule and its kin: value}.

    The betas of a linear schedule that are not typed are DDPM's, 1e-4 .. 0.02 over 1,000 steps, and scaled for others.
    """
    name, steps = flags.get("schedule", own["name"]), flags.get("diffusion_steps", own["steps"])
    if name == "cosine":
        return {"name": "cosine", "steps": steps}
    beta1, betaT = flags.get("beta1", 0.1 / steps), flags.get("betaT", min(20 / steps, 0.999))
    return {"name": "linear", "beta1": beta1, "betaT": betaT, "steps": steps}


# ---------------------------------------------------------------------------------------------------------------------
# Descriptions: plain values, enough to rebuild the module


def describe(denoiser: PretrainedDenoiser) -> dict:
    """Plain values from which `build` makes the same module with other weights.

    kind, network, schedule, time_scale and, where something was assumed, assumptions.
    """
    return copy.deepcopy(denoiser.description)


def build(description: dict) -> PretrainedDenoiser:
    """The module that was described, with fresh weights, in evaluation mode. Reads no file.

    Raises CommandError where the kind is 'ddpm' and diffusers is not installed, or knows no such network.
    """
    config = description["network"]
    if description["kind"] == "iddpm":
        levels = len(config["multipliers"])
        return PretrainedDenoiser(
            ImprovedUNet(**config), description, config["in_channels"], config["out_channels"], levels
        )

    network = _diffusers_network(config)
    channels, sides = network.config.in_channels, network.config.sample_size
    if isinstance(sides, int):
        sides = (sides, sides)
    if sides is not None and not (isinstance(sides, list | tuple) and [type(side) for side in sides] == [int, int]):
        raise CommandError(f"--denoiser ddpm: config.json's sample_size {sides!r} is no image size")
    return PretrainedDenoiser(
        network,
        description,
        channels,
        network.config.out_channels,
        len(network.config.block_out_channels),
        (channels, *sides) if sides else None,
    )


def _diffusers_network(config: dict) -> nn.Module:
    """A UNet2DModel with fresh weights."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        raise CommandError("--denoiser ddpm needs the package diffusers: pip install diffusers") from None

    try:
        network = UNet2DModel.from_config(config)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise CommandError(f"--denoiser ddpm: diffusers cannot build this config.json: {first_line(error)}") from None
    made = network.config
    if made.time_embedding_type != "positional" or made.class_embed_type or made.num_class_embeds:
        raise CommandError(
            "--denoiser ddpm: config.json must have time_embedding_type 'positional' and no class embedding"
        )
    noise_channels(made.out_channels, made.in_channels, Path("config.json"))
    return network


def noise_channels(out_channels: int, in_channels: int, path: Path) -> int:
    """`out_channels`, which must be the noise's alone or the noise's and the variance's."""
    if out_channels not in (in_channels, 2 * in_channels):
        raise CommandError(
            f"{path}: {out_channels} output channels for {in_channels} input channels are neither noise nor noise and "
            "variance"
        )
    return out_channels


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def fill(denoiser: PretrainedDenoiser, state: dict[str, Tensor], path: Path) -> PretrainedDenoiser:
    """Load `state`, which must have the network's names and shapes, all of them and no others; else CommandError."""
    wanted = denoiser.network.state_dict()
    for complaint, names in (
        ("lacks", [name for name in wanted if name not in state]),
        ("has an unknown entry", [name for name in state if name not in wanted]),
    ):
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CommandError(f"{path} {complaint} '{names[0]}'{others}: not the weights of this network")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise CommandError(f"{path}: '{name}' is {sizes_of(state[name])} where the network has {sizes_of(tensor)}")
        if not state[name].is_floating_point() or not state[name].isfinite().all():
            raise CommandError(f"{path}: '{name}' holds values that are not finite floating-point numbers")
    denoiser.network.load_state_dict(state)  # half precision becomes float32
    denoiser.source = path
    return denoiser


def sizes_of(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def read_state(path: Path) -> dict[str, Tensor]:
    """A file that torch wrote and that holds named tensors only; else CommandError."""
    if not path.is_file():
        raise CommandError(f"--init_from: {path} does not exist, or is not a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise CommandError(f"{path} cannot be read as a state dict (truncated?): {first_line(error)}") from None
    if not isinstance(state, dict):
        raise CommandError(f"{path} holds a {type(state).__name__}, not a state dict")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise CommandError(f"{path} is not a state dict: its entry '{name}' is not a named tensor{_advice(state)}")
    return state


def _advice(state: dict) -> str:
    """What to do with a file that holds something around the weights, for a person to read."""
    if "param_groups" in state:
        return " (an optimiser's state: the weights are in another file, ema_*.pt or model*.pt)"
    inner = [str(name) for name, value in state.items() if isinstance(value, dict)
             and any(isinstance(tensor, Tensor) for tensor in value.values())]
    averaged = next((name for name in inner if "ema" in name.lower()), inner[0] if inner else None)
    return f" (weights inside a larger file: save its entry '{averaged}' alone)" if averaged else ""
