"""Puts config, data and model together: the device, a named split, its moments, a model fresh or from a checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import config as config_module
import distributed
from config import Command, Config
from dataset import registry
from diffusion import Gaussian
from models import LatentDiffusion, build_model, schedule_for
from pretrained import denoiser
from utils import CommandError, file_hash, first_line, load_checkpoint

GAUSSIAN_ROWS = 20_000  # rendered or streamed images that the data's first two moments are taken from
MODELS = ("diff", "vae", "vanilla")
HALVES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}



def pick_device(name: str | None) -> torch.device:
    """--device, or this process's GPU where there is one, else the CPU. Raises CommandError for what is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CommandError(f"--device {name} cannot be used: {first_line(error)}") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", distributed.local_rank())
        torch.cuda.set_device(device)
    return device


def half_of(precision: str, device: torch.device) -> torch.dtype | None:
    """The half precision of --precision on this device, None for float32."""
    if precision == "auto":
        bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if bf16 else "fp32"
    return HALVES[precision]


def load_data(config: Config, split: str) -> registry.Dataset:
    """A named split of the experiment's data set, at the experiment's size."""
    dim = config.a_dim if registry.SPECS[config.dataset].gives_z else None
    return registry.load(config.dataset, split, root=config.data_dir, size=config.input_size,
                         channels=config.input_channels, dim=dim)


def batches_of(dataset: registry.Dataset, batch_size: int, device, rows: range | None = None, workers: int = 0):
    """Yield (indices [B], float batch [B, *shape] on the device) over `rows` in order, unaugmented."""
    rows = list(rows if rows is not None else range(len(dataset)))
    lists = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    for indices, raw in registry.stream(dataset, lists, device, workers):
        yield indices, registry.to_float(raw, dataset.levels)


def fit_gaussian(dataset: registry.Dataset, workers: int) -> Gaussian:
    """Moments of the training split (its first rows, which are in random order), on the CPU."""
    step = None if dataset.levels is None else 2 / (dataset.levels - 1)
    rows = range(min(len(dataset), GAUSSIAN_ROWS)) if dataset.images is None else range(len(dataset))
    return Gaussian.fit((x for _, x in batches_of(dataset, 1000, "cpu", rows, workers)), step)


def load_model(record: dict, config: Config, device: torch.device) -> nn.Module:
    """The model of a checkpoint's record, with its EMA weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and replaced
        if record["kind"] == "latent":
            model = LatentDiffusion(schedule_for(config), torch.zeros(2, config.a_dim))
        else:
            gaussian = Gaussian.from_state({"rows": record["rows"], **record["gaussian"]}).to(device)
            spec = registry.SPECS[config.dataset]
            model = build_model(config, spec, tuple(record["shape"]), gaussian, record["network"])
    try:
        model.load_state_dict(record["ema"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CommandError(f"the checkpoint does not fit its own config: {reason}") from None
    model.lower = half_of(config.precision, device)
    return model.to(device).eval()


def build_fresh(config: Config, shape: tuple[int, ...], gaussian: Gaussian, device: torch.device,
                given: frozenset[str] = frozenset()) -> nn.Module:
    """A model with weights drawn from the seed, or somebody's, on the device. `given` are the flags typed by hand.

    What somebody's files do not say, and was assumed, is printed. The caller's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.r_seed)
        model = build_model(config, registry.SPECS[config.dataset], shape, gaussian.to(device), given=given)
    for line in assumptions_of(model):
        distributed.say(f"assumed: {line}")
    return model.to(device)


def assumptions_of(model: nn.Module) -> list[str]:
    """What was assumed of a network made elsewhere, a line each; nothing of one of our own."""
    return getattr(getattr(model, "network", None), "assumptions", [])


def describe_network(model: nn.Module) -> dict | None:
    network = getattr(model, "network", None)
    return denoiser.describe(network) if isinstance(network, denoiser.PretrainedDenoiser) else None


def compile_networks(model: nn.Module) -> None:
    """torch.compile on the networks, in place: names of the weights stay."""
    for name in ("network", "encoder", "decoder"):
        part = getattr(model, name, None)
        if part is not None:
            part.compile()


# ---------------------------------------------------------------------------------------------------------------------
# From a checkpoint


@dataclass
class Trained:
    """A model from a checkpoint (EMA weights, evaluation mode) with this call's config."""

    config: Config
    given: frozenset[str]
    model: nn.Module
    path: Path
    epoch: int
    step: int
    device: torch.device

    def provenance(self) -> dict:
        """What a result file says of the model behind its numbers."""
        return {"checkpoint": str(self.path), "checkpoint_hash": file_hash(self.path), "epoch": self.epoch,
                "step": self.step, "ema": True, "config": config_module.to_dict(self.config)}


def checkpoints(folder: Path) -> list[Path]:
    """model-{epoch}.pth of a folder, newest first."""
    numbered = [path for path in folder.glob("model-*.pth") if re.fullmatch(r"model-[0-9]+", path.stem)]
    return sorted(numbered, key=lambda path: -int(path.stem.split("-")[1]))


def open_record(path: Path, kinds: tuple[str, ...], device) -> dict:
    """What is stored in a checkpoint of the named kinds. Raises CommandError for any other file."""
    record = load_checkpoint(path, device)
    if record.get("kind") not in kinds:
        raise CommandError(f"{path} holds a '{record.get('kind')}' model, not {' or '.join(kinds)}")
    wanted = {"config", "model", "ema", "optimizer", "step", "epoch", "rows"}
    if record["kind"] != "latent":
        wanted |= {"shape", "gaussian", "network"}
    if missing := sorted(wanted - record.keys()):
        raise CommandError(f"{path} is incomplete: it lacks {', '.join(missing)}")
    return record


def find_checkpoint(folder: Path, epoch: int | None) -> Path:
    """The checkpoint of an epoch, or the newest. Raises CommandError naming what there is."""
    there = checkpoints(folder)
    if epoch is not None:
        path = folder / f"model-{epoch}.pth"
        if not path.exists():
            known = ", ".join(str(int(p.stem.split("-")[1])) for p in reversed(there)) or "none"
            raise CommandError(f"checkpoint {path} does not exist (epochs there: {known}); train it first")
        return path
    if there:
        return there[0]
    if (folder / "last.pth").exists():
        return folder / "last.pth"
    raise CommandError(f"no checkpoint in {folder}: run --mode train with the same flags first")


def best_checkpoint(folder: Path, given: frozenset[str]) -> Path:
    """best.pth of a folder. Raises CommandError where there is none, or another checkpoint is named too."""
    if "epochs" in given:
        raise CommandError("--best and --epochs each name a checkpoint: give one of them")
    if not (folder / "best.pth").exists():
        raise CommandError(f"{folder}/best.pth does not exist: train with --fid_epochs K, or leave --best out")
    return folder / "best.pth"


def open_trained(command: Command, path: Path | None = None, kinds: tuple[str, ...] = MODELS) -> Trained:
    """The trained model that a command line names, or the one at `path`, of one of the kinds.

    Raises CommandError where it is absent, broken, of another kind, or contradicted by a flag typed by hand.
    """
    _, config, given = command
    if path is None:
        folder = config_module.folder(config, "models")
        path = best_checkpoint(folder, given) if config.best else find_checkpoint(
            folder, config.epochs if "epochs" in given else None)
    device = pick_device(config.device)
    record = open_record(path, kinds, device)
    config = config_module.trained(config, given, config_module.from_stored(record["config"], path), path)
    distributed.say(f"model: {path} (epoch {record['epoch']})")
    return Trained(config, given, load_model(record, config, device), path, record["epoch"], record["step"], device)


def open_latent(trained: Trained) -> tuple[LatentDiffusion, Path]:
    """The latent diffusion that belongs to a trained model, the newest of models/EXP_latent, and its file."""
    folder = config_module.folder(trained.config, "models")
    folder = folder.with_name(folder.name + "_latent")
    there = checkpoints(folder)
    if not there:
        raise CommandError(f"no checkpoint in {folder}: run --mode train_latent_ddim with the same flags first")
    distributed.say(f"latent diffusion: {there[0]}")
    record = open_record(there[0], ("latent",), trained.device)
    return load_model(record, trained.config, trained.device), there[0]
