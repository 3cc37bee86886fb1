"""State dicts of improved diffusion (Nichol & Dhariwal 2021), e.g. cifar10_uncond_vlb_50M_500K.pt.

Sizes are read from the shapes. What the shapes do not show is taken from the published models, and said.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from pretrained.denoiser import PretrainedDenoiser, build, fill, noise_channels, read_state, sizes_of, with_flags
from pretrained.improved_unet import GROUPS
from utils import CommandError

# The published models have 4 heads, 4000 steps of the cosine schedule, and feed index i as i * 1000/4000.
HEADS, TIMES = 4, 1000
SCHEDULE = {"name": "cosine", "steps": 4000}


def load_iddpm(file: str | Path, dropout: float = 0.0, flags: dict | None = None) -> PretrainedDenoiser:
    """An unconditional model of improved diffusion with scale-shift norm, from its state dict (a .pt file).

    flags   --schedule, --diffusion_steps, --beta1 and --betaT as far as they were typed, {name: value}: obeyed
    Raises CommandError, one line, for a file that is absent, broken, or has a missing, unknown or misshapen entry, and
    for the variants of the network that are not taken: classes, resblock_updown, no scale-shift norm.
    """
    file, flags = Path(file), flags or {}
    state = _without_prefix(read_state(file))
    _refuse_variants(state, file)
    schedule = with_flags(SCHEDULE, flags)
    assumed = [f"{HEADS} attention heads", f"times rescaled to 0 .. {TIMES}"]
    if not flags:
        assumed.append(f"the {schedule['name']} schedule of {schedule['steps']} steps (--schedule, --diffusion_steps)")
    description = {
        "kind": "iddpm",
        "network": {**_sizes(state, file), "heads": HEADS, "dropout": dropout},
        "schedule": schedule,
        "time_scale": TIMES / schedule["steps"],
        "assumptions": [f"{file.name} does not say, and assumed is: {', '.join(assumed)}"],
    }
    return fill(build(description), state, file)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` that DistributedDataParallel writes before each of them."""
    prefix = "module."
    if state and all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _refuse_variants(state: dict[str, Tensor], file: Path) -> None:
    """Raise CommandError, by its published flag, for a variant of the network that is not taken."""
    if "label_emb.weight" in state:
        raise CommandError(f"{file} is of a model of classes (class_cond, 'label_emb.weight'): only unconditional ones "
                           "are taken")
    if any(".h_upd." in name or ".x_upd." in name for name in state):
        raise CommandError(f"{file} is of a model with resblock_updown: not the network of improved diffusion")
    first, width = state.get("input_blocks.1.0.emb_layers.1.weight"), state.get("input_blocks.1.0.in_layers.2.weight")
    if first is not None and width is not None and first.shape[0] == width.shape[0]:
        raise CommandError(f"{file}: 'input_blocks.1.0.emb_layers.1.weight' is of a model without scale-shift norm "
                           "(use_scale_shift_norm False), which is not taken")


def _sizes(state: dict[str, Tensor], file: Path) -> dict:
    """The arguments of ImprovedUNet, as far as names and shapes show them."""

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CommandError(f"{file} lacks '{name}': not the weights of improved diffusion")
        if state[name].dim() != 4 or 0 in state[name].shape:
            raise CommandError(f"{file}: '{name}' is {sizes_of(state[name])} where a convolution's four sizes belong")
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
        "out_channels": noise_channels(shape("out.2.weight")[0], in_channels, file),
        "channels": channels,
        "multipliers": [shape(f"input_blocks.{level[0]}.0.in_layers.2.weight")[0] // channels for level in levels],
        "blocks": len(levels[0]),
        "attention": [
            number for number, level in enumerate(levels) if any(part.startswith("1.") for part in inside[level[0]])
        ],
    }
