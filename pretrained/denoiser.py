"""Networks trained elsewhere, behind the denoiser contract of this suite.

* `load_ddpm(folder)`: a diffusers folder that holds a UNet2DModel, e.g. google/ddpm-cifar10-32.
* `load_iddpm(file)`: a state dict of improved diffusion (Nichol & Dhariwal 2021), e.g. cifar10_uncond_vlb_50M_500K.pt.
* `describe(denoiser)` and `build(description)`: what a checkpoint of ours stores, so that a tuned network is rebuilt
  with no file from elsewhere.

Both were trained on images in [-1, 1] and receive the time as an index i, counted from 0, which belongs to abar after
i + 1 steps of their schedule. Nothing is fetched, and no file is read in a way that could run code.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion import Schedule, cosine_schedule, linear_schedule
from pretrained.iddpm import GROUPS, ImprovedUNet
from utils import UNREADABLE, CommandError, first_line, read_json

# What the shapes in a state dict of improved diffusion do not show: its published models have 4 heads, 4000 steps of
# the cosine schedule, and feed index i as i * 1000/4000.
IDDPM_HEADS, IDDPM_STEPS, IDDPM_TIMES = 4, 4000, 1000


class PretrainedDenoiser(nn.Module):
    """A network trained on discrete steps, as a denoiser of log-SNRs: eps_hat = denoiser(x_noisy, logsnr).

    schedule         the schedule that it was trained on
    logsnr_range     (lowest, highest) log-SNR of that schedule
    image_shape      (C, H, W) that it was made for, or None where its file does not say
    learns_variance  whether it predicts the variance of the reverse step beside the noise
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
            raise ValueError("a network made elsewhere is unconditional: it takes no z")
        return self.noise_and_variance(x_noisy, logsnr)[0]

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """Raise CommandError where the network cannot take images of this shape, (C, H, W)."""
        multiple = 2 ** (self.levels - 1)
        if len(shape) != 3 or shape[0] != self.channels or any(side % multiple for side in shape[1:]):
            raise CommandError(
                f"--denoiser {self.description['kind']}: the network takes images of {self.channels} channels with "
                f"sides divisible by {multiple}, not {'x'.join(map(str, shape))}"
            )


def _make_schedule(description: dict) -> Schedule:
    if description["name"] == "cosine":
        return cosine_schedule(description["steps"])
    return linear_schedule(description["beta1"], description["betaT"], description["steps"])


# ---------------------------------------------------------------------------------------------------------------------
# Descriptions: plain values, enough to rebuild the module


def describe(denoiser: PretrainedDenoiser) -> dict:
    """Plain values from which `build` makes the same module with other weights: kind, network, schedule, time_scale."""
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
    return PretrainedDenoiser(
        network,
        description,
        channels,
        network.config.out_channels,
        len(network.config.block_out_channels),
        (channels, *sides) if sides else None,
    )


def _fill(denoiser: PretrainedDenoiser, state: dict[str, Tensor], path: Path) -> PretrainedDenoiser:
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
            raise CommandError(f"{path}: '{name}' is {_sizes(state[name])} where the network has {_sizes(tensor)}")
    denoiser.network.load_state_dict(state)
    return denoiser


def _sizes(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def _read_state(path: Path) -> dict[str, Tensor]:
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
            raise CommandError(f"{path} is not a state dict: its entry '{name}' is not a named tensor")
    return state


# ---------------------------------------------------------------------------------------------------------------------
# Improved diffusion: the sizes are read from the shapes


def load_iddpm(file: str | Path, dropout: float = 0.0) -> PretrainedDenoiser:
    """An unconditional model of improved diffusion with scale-shift norm, from its state dict (a .pt file).

    Sizes come from the file; heads, schedule and time scale are those of the published models (IDDPM_*). Raises
    CommandError, one line, for a file that is absent, broken, or has a missing, unknown or misshapen entry.
    """
    file = Path(file)
    state = _read_state(file)
    description = {
        "kind": "iddpm",
        "network": {**_iddpm_sizes(state, file), "heads": IDDPM_HEADS, "dropout": dropout},
        "schedule": {"name": "cosine", "steps": IDDPM_STEPS},
        "time_scale": IDDPM_TIMES / IDDPM_STEPS,
    }
    return _fill(build(description), state, file)


def _iddpm_sizes(state: dict[str, Tensor], file: Path) -> dict:
    """The arguments of ImprovedUNet, as far as names and shapes show them."""

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CommandError(f"{file} lacks '{name}': not the weights of improved diffusion")
        if state[name].dim() != 4 or 0 in state[name].shape:
            raise CommandError(f"{file}: '{name}' is {_sizes(state[name])} where a convolution's four sizes belong")
        return state[name].shape

    channels, in_channels = shape("input_blocks.0.0.weight")[:2]
    if channels % GROUPS:
        raise CommandError(f"{file}: 'input_blocks.0.0.weight' has {channels} channels, not a multiple of {GROUPS}")

    inside = {}  # what each input block but the first is made of: {1: {"0.in_layers", "1.qkv", ...}, 4: {"0.op"}, ...}
    for name in state:
        if place := re.match(r"input_blocks\.(\d+)\.(\d+\.\w+)\.", name):
            inside.setdefault(int(place[1]), set()).add(place[2])
    levels = [[]]  # the residual blocks of each level; a downsampling opens the next
    for block in sorted(inside):
        if "0.op" in inside[block]:
            levels.append([])
        else:
            levels[-1].append(block)
    if not all(levels):
        raise CommandError(f"{file} has a level without residual blocks: not the weights of improved diffusion")

    return {
        "in_channels": in_channels,
        "out_channels": _noise_channels(shape("out.2.weight")[0], in_channels, file),
        "channels": channels,
        "multipliers": [shape(f"input_blocks.{level[0]}.0.in_layers.2.weight")[0] // channels for level in levels],
        "blocks": len(levels[0]),
        "attention": [
            number for number, level in enumerate(levels) if any(part.startswith("1.") for part in inside[level[0]])
        ],
    }


def _noise_channels(out_channels: int, in_channels: int, path: Path) -> int:
    """`out_channels`, which must be the noise's alone or the noise's and the variance's."""
    if out_channels not in (in_channels, 2 * in_channels):
        raise CommandError(
            f"{path}: {out_channels} output channels for {in_channels} input channels are neither noise nor noise and "
            "variance"
        )
    return out_channels


# ---------------------------------------------------------------------------------------------------------------------
# Diffusers: the sizes are read from config.json, the betas from scheduler_config.json

WEIGHTS = "diffusion_pytorch_model"
# Attention was once a class of its own in diffusers; folders from then, the published ones, may have its names.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_ddpm(folder: str | Path, dropout: float = 0.0) -> PretrainedDenoiser:
    """A UNet2DModel of diffusers that predicts noise, from a folder with config.json and weights.

    The folder is a model's (scheduler_config.json beside it, or none: DDPM's betas 1e-4 .. 0.02 over 1,000 steps) or a
    pipeline's (unet/, scheduler/). Raises CommandError, one line, where diffusers is not installed, a file is absent or
    broken, or the model is of a kind that the contract cannot serve.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CommandError(f"--init_from: {folder} is not a folder (of diffusers: config.json and weights)")
    home = folder / "unet" if (folder / "unet").is_dir() else folder
    config_file = home / "config.json"
    config = read_json(config_file)
    if not isinstance(config, dict) or config.get("_class_name") != "UNet2DModel":
        raise CommandError(f"{config_file} does not describe a UNet2DModel of diffusers")
    description = {
        "kind": "ddpm",
        "network": {**{key: value for key, value in config.items() if not key.startswith("_")}, "dropout": dropout},
        "schedule": _diffusers_schedule(folder),
        "time_scale": 1.0,
    }
    return _fill(build(description), *_diffusers_weights(home))


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
    _noise_channels(made.out_channels, made.in_channels, Path("config.json"))
    return network


def _diffusers_schedule(folder: Path) -> dict:
    """The description of the schedule that a diffusers folder was trained on."""
    root = folder.parent if folder.name == "unet" else folder
    places = [folder / "scheduler_config.json", root / "scheduler" / "scheduler_config.json"]
    file = next((place for place in places if place.is_file()), None)
    config = {} if file is None else read_json(file)
    if not isinstance(config, dict):
        raise CommandError(f"{file} does not describe a scheduler of diffusers")

    if config.get("prediction_type", "epsilon") != "epsilon":
        raise CommandError(f"{file}: prediction_type is '{config['prediction_type']}'; only 'epsilon' is taken")
    name = config.get("beta_schedule", "linear")
    beta1, betaT = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or steps < 2:
        raise CommandError(f"{file}: num_train_timesteps is {steps!r}, not a number of steps")
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise CommandError(f"{file}: trained_betas and rescale_betas_zero_snr are not taken")
    if name == "squaredcos_cap_v2":
        return {"name": "cosine", "steps": steps}
    if name != "linear":
        raise CommandError(f"{file}: beta_schedule is '{name}'; 'linear' and 'squaredcos_cap_v2' are taken")
    if not all(isinstance(beta, float) and 0 < beta < 1 for beta in (beta1, betaT)):
        raise CommandError(f"{file}: beta_start {beta1!r} and beta_end {betaT!r} must lie between 0 and 1")
    return {"name": "linear", "beta1": beta1, "betaT": betaT, "steps": steps}


def _diffusers_weights(home: Path) -> tuple[dict[str, Tensor], Path]:
    """The named tensors of a model's folder, under today's names, and the file that they are from."""
    file = home / f"{WEIGHTS}.safetensors"
    if file.is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CommandError(f"{file} cannot be read (truncated?): {first_line(error)}") from None
    elif (home / f"{WEIGHTS}.bin").is_file():
        file = home / f"{WEIGHTS}.bin"
        state = _read_state(file)
    else:
        raise CommandError(f"{home} has no {WEIGHTS}.safetensors and no {WEIGHTS}.bin")

    old = re.compile(rf"(.*\.attentions\.\d+)\.({'|'.join(OLD_NAMES)})\.(weight|bias)")
    matches = {name: old.fullmatch(name) for name in state}
    renamed = {
        name: f"{match[1]}.{OLD_NAMES[match[2]]}.{match[3]}" if match else name for name, match in matches.items()
    }
    return {renamed[name]: tensor for name, tensor in state.items()}, file
