"""Folders of diffusers that hold a UNet2DModel, e.g. google/ddpm-cifar10-32.

Sizes are read from config.json, the betas from scheduler_config.json. What is taken is a list, not a guess: schedulers
of variance-preserving diffusion on discrete steps whose network predicts noise.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from pretrained.denoiser import PretrainedDenoiser, build, fill, read_state, with_flags
from utils import CommandError, first_line, read_json

WEIGHTS = "diffusion_pytorch_model"
# Attention was once a class of its own in diffusers; folders from then, the published ones, may have its names.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


VARIANTS = (".ema", "", ".fp16", ".bf16")  # the averaged weights first; never .non_ema
SCHEDULE = {"name": "linear", "beta1": 1e-4, "betaT": 0.02, "steps": 1000}  # DDPM's (Ho et al. 2020)
NAMES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
SCHEDULERS = frozenset((
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler",
    "PNDMScheduler", "DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler",
    "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
))
OTHER_BETAS = frozenset((  # whose defaults, .00085 to .012, are not those of DDPM
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler",
))
REFUSED = (  # what a scheduler's or pipeline's name says of a model that is not taken
    ("FlowMatch", "flow matching"), ("EDM", "EDM's preconditioning"),
    ("SdeVe", "a variance-exploding SDE"), ("KarrasVe", "a variance-exploding SDE"),
    ("CMStochastic", "a consistency model"), ("Consistency", "a consistency model"),
    ("LCM", "a consistency model"), ("TCD", "a consistency model"),
    ("LDM", "a latent diffusion"), ("Latent", "a latent diffusion"),
)
# Settings of a scheduler that change what its network is: the only values that are taken (absent counts as the first).
SETTINGS = {
    "prediction_type": ("epsilon",), "trained_betas": (None,), "rescale_betas_zero_snr": (False, None),
    "use_flow_sigmas": (False, None), "timestep_type": ("discrete", None),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"),
}
OF_EMA = {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}


def load_ddpm(folder: str | Path, dropout: float = 0.0, flags: dict | None = None) -> PretrainedDenoiser:
    """A UNet2DModel of diffusers that predicts noise, from a folder with config.json and weights.

    The folder is a model's (scheduler_config.json beside it), a pipeline's (unet/, scheduler/) or a checkpoint of
    training (unet_ema/, preferred to unet/). Weights may be sharded or in half precision.

    flags   --schedule, --diffusion_steps, --beta1 and --betaT as far as they were typed, {name: value}: what a folder
            without a scheduler was trained on (DDPM's where none is typed); refused where they contradict a scheduler
    Raises CommandError, one line, where diffusers is not installed, a file is absent or broken, or the model is of a
    kind that the contract cannot serve.
    """
    folder, flags = Path(folder), flags or {}
    if not folder.is_dir():
        raise CommandError(f"--init_from: {folder} is not a folder (of diffusers: config.json and weights)")
    _refuse_pipeline(folder)
    home = _home(folder)
    config_file = home / "config.json"
    config = read_json(config_file)
    if not isinstance(config, dict) or config.get("_class_name") != "UNet2DModel":
        raise CommandError(f"{config_file} does not describe a UNet2DModel of diffusers")
    schedule, variance, assumptions = _schedule(folder, flags)
    network = {key: value for key, value in config.items() if not key.startswith("_") and key not in OF_EMA}
    description = {
        "kind": "ddpm",
        "network": {**network, "dropout": dropout},
        "schedule": schedule,
        "time_scale": 1.0,
    }
    denoiser = build(description)
    assumptions += _of_variance(denoiser, variance)
    state, file = _weights(home)
    if home.name == "unet" and (home.parent / "unet_ema").is_dir():
        assumptions.append(f"{home} was asked for: the averaged weights in {home.parent / 'unet_ema'} are not used")
    if assumptions:
        denoiser.description["assumptions"] = denoiser.assumptions = assumptions
    return fill(denoiser, state, file)


def _home(folder: Path) -> Path:
    """The folder with config.json: of averaged weights where there are both."""
    for home in (folder / "unet_ema", folder / "unet", folder):
        if (home / "config.json").is_file():
            return home
    inside = sorted(path for path in folder.glob("checkpoint-*") if path.is_dir())
    if inside:
        raise CommandError(f"{folder / 'config.json'} does not exist: name one of its checkpoints, e.g. {inside[-1]}")
    return folder / "unet" if (folder / "unet").is_dir() else folder


def _root(folder: Path) -> Path:
    """The pipeline's folder that this one is, or is the network of."""
    return folder.parent if folder.name in ("unet", "unet_ema") else folder


def _refuse_pipeline(folder: Path) -> None:
    """Raise CommandError, by name, where the folder's pipeline is more than a network and a scheduler."""
    root = _root(folder)
    file = root / "model_index.json"
    index = read_json(file) if file.is_file() else {}
    if not isinstance(index, dict):
        raise CommandError(f"{file} does not describe a pipeline of diffusers")
    _refuse_name(str(index.get("_class_name")), file)
    parts = {name for name, value in index.items() if isinstance(value, list) and any(value)}
    parts |= {name for name in ("vae", "vqvae", "text_encoder") if (root / name).is_dir()}
    for part in sorted(parts - {"unet", "scheduler"}):
        kind = "a latent diffusion" if part in ("vae", "vqvae") else "not a network of images alone"
        raise CommandError(f"{root} is {kind}: its pipeline has a '{part}'")


def _refuse_name(name: str, file: Path) -> None:
    for part, kind in REFUSED:
        if part in name:
            raise CommandError(f"{file}: {name} is of {kind}; taken is variance-preserving diffusion that predicts "
                               "noise")


def _schedule(folder: Path, flags: dict) -> tuple[dict, str | None, list[str]]:
    """(description of the schedule that a folder was trained on, its variance_type, what was assumed)."""
    root = _root(folder)
    places = [place / "scheduler_config.json" for place in (folder, root, root / "scheduler")]
    if root.name.startswith("checkpoint-"):  # of a training whose finished pipeline is around it
        places.append(root.parent / "scheduler" / "scheduler_config.json")
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        schedule = with_flags(SCHEDULE, flags)
        said = ", ".join(f"{key} {value:g}" if key != "name" else value for key, value in schedule.items())
        whence = "as typed" if flags else "assumed, DDPM's (--schedule, --diffusion_steps, --beta1, --betaT)"
        return schedule, None, [f"{folder} has no scheduler: {said}, {whence}; epsilon is taken for what it predicts"]
    config = read_json(file)
    if not isinstance(config, dict):
        raise CommandError(f"{file} does not describe a scheduler of diffusers")
    assumptions = _check_scheduler(config, file) + _unsaid(config, file)
    schedule = _betas(config, file)
    keys = {"schedule": "name", "diffusion_steps": "steps", "beta1": "beta1", "betaT": "betaT"}
    for flag, value in flags.items():
        if schedule.get(keys[flag]) != value:
            raise CommandError(f"--{flag} {value} contradicts {file}: {schedule.get(keys[flag], 'it has none')}")
    return schedule, config.get("variance_type"), assumptions


def _check_scheduler(config: dict, file: Path) -> list[str]:
    """What is assumed of a scheduler that is taken. Raises CommandError, by name, for any other."""
    name = config.get("_class_name")
    if name is not None:
        _refuse_name(str(name), file)
        if not isinstance(name, str) or name not in SCHEDULERS:
            raise CommandError(f"{file}: scheduler {name!r} is not known; taken are {', '.join(sorted(SCHEDULERS))}")
    for setting, taken in SETTINGS.items():
        if config.get(setting, taken[0]) not in taken:
            raise CommandError(f"{file}: {setting} is {config[setting]!r}; taken is "
                               f"{' or '.join(repr(value) for value in taken)}")
    return [] if name is not None else [f"{file} does not name its scheduler: DDPM's is assumed"]


def _unsaid(config: dict, file: Path) -> list[str]:
    """What is assumed of a schedule that a file gives in part. Raises CommandError where DDPM's would be wrong."""
    of_linear = () if config.get("beta_schedule") == "squaredcos_cap_v2" else ("beta_start", "beta_end")
    unsaid = [name for name in ("num_train_timesteps", "beta_schedule", *of_linear) if name not in config]
    if unsaid and config.get("_class_name") in OTHER_BETAS:
        raise CommandError(f"{file} does not say {', '.join(unsaid)}, and {config['_class_name']}'s are not DDPM's: "
                           "write them into it")
    return [f"{file} does not say {', '.join(unsaid)}: DDPM's are assumed"] if unsaid else []


def _betas(config: dict, file: Path) -> dict:
    name = config.get("beta_schedule", "linear")
    beta1, betaT = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 2 <= steps <= 100_000:
        raise CommandError(f"{file}: num_train_timesteps is {steps!r}, not a number of steps")
    if not isinstance(name, str) or name not in NAMES:
        raise CommandError(f"{file}: beta_schedule is {name!r}; taken are {', '.join(NAMES)}")
    if name == "squaredcos_cap_v2":
        return {"name": "cosine", "steps": steps}
    if not all(isinstance(beta, float) and 0 < beta < 1 for beta in (beta1, betaT)):
        raise CommandError(f"{file}: beta_start {beta1!r} and beta_end {betaT!r} must lie between 0 and 1")
    return {"name": NAMES[name], "beta1": beta1, "betaT": betaT, "steps": steps}


def _of_variance(denoiser: PretrainedDenoiser, variance: str | None) -> list[str]:
    """What is assumed of the second half of the network's output."""
    if denoiser.learns_variance and variance != "learned_range":
        return ["the second half of the network's output is taken for its variance ('learned_range'), though the "
                f"scheduler's variance_type is {variance!r}"]
    if variance == "learned_range" and not denoiser.learns_variance:
        raise CommandError("--init_from: the scheduler's variance is learned, but the network predicts noise alone")
    return []


# ---------------------------------------------------------------------------------------------------------------------
# Weights: one file or shards, whole or half precision


def _weights(home: Path) -> tuple[dict[str, Tensor], Path]:
    """The named tensors of a model's folder, under today's names, and the (first) file that they are from."""
    for variant in VARIANTS:
        for ending in ("safetensors", "bin"):
            whole = home / f"{WEIGHTS}{variant}.{ending}"
            index = home / f"{WEIGHTS}.{ending}.index{variant}.json"
            if whole.is_file():
                return _renamed(_read(whole)), whole
            if index.is_file():
                files = _shards(index)
                return _renamed({name: tensor for file in files for name, tensor in _read(file).items()}), files[0]
    raise CommandError(f"{home} has no {WEIGHTS}.safetensors and no {WEIGHTS}.bin, whole or in shards")


def _shards(index: Path) -> list[Path]:
    """The files that an index names, each in its own folder and there. Raises CommandError otherwise."""
    content = read_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise CommandError(f"{index} does not name the files of its weights")
    files = [index.parent / name for name in sorted(set(named.values()))]
    for file in files:
        if file.parent != index.parent or not file.is_file():
            raise CommandError(f"{index} names {file.name}, which is not beside it")
    return files


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".bin":
        return read_state(file)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CommandError(f"{file} cannot be read (truncated?): {first_line(error)}") from None


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that attention has today."""
    old = re.compile(rf"(.*\.attentions\.\d+)\.({'|'.join(OLD_NAMES)})\.(weight|bias)")
    matches = {name: old.fullmatch(name) for name in state}
    renamed = {
        name: f"{match[1]}.{OLD_NAMES[match[2]]}.{match[3]}" if match else name for name, match in matches.items()
    }
    return {renamed[name]: tensor for name, tensor in state.items()}
