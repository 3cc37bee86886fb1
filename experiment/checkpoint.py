"""Checkpoints: which there are, what one must hold, the model in it, and what was derived from it."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import commandline
import config as config_module
import distributed
from config import Command, Config
from dataset import registry
from dataset.given import spec_of
from diffusion import Gaussian
from experiment import exported
from experiment.compiling import compile_networks, half_of
from experiment.prepare import shape_of
from models import LatentDiffusion, build_model, schedule_for
from utils import (
    UNREADABLE,
    CommandError,
    file_hash,
    first_line,
    hash_of,
    load_checkpoint,
    read_json,
    refuse_other_inputs,
)


def load_model(record: dict, config: Config, device: torch.device, path: Path) -> nn.Module:
    """The model of a checkpoint's record, with its EMA weights, in evaluation mode and frozen.

    Raises CommandError where the weights are not those of such a model, before memory for another one is asked for.
    """
    with torch.random.fork_rng(devices=[]), _no_larger_than(record["ema"], path):  # fresh weights are replaced
        if record["kind"] == "latent":
            model = LatentDiffusion(schedule_for(config), torch.zeros(2, config.a_dim))
        else:
            gaussian = Gaussian.from_state({"rows": record["rows"], **record["gaussian"]}).to(device)
            model = _build(config, tuple(record["shape"]), gaussian, record["network"], path)
    try:
        model.load_state_dict(record["ema"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise CommandError(f"{path}: the checkpoint does not fit its own config: {reason}") from None
    model.lower = half_of(config.precision, device)
    model = model.to(device).eval().requires_grad_(False)
    compile_networks(model, config, device)
    return model


def _build(config: Config, shape: tuple[int, ...], gaussian: Gaussian, network: dict | None, path: Path) -> nn.Module:
    """`build_model`, with a description of a pretrained network that may be anything."""
    spec = spec_of(registry.SPECS[config.dataset], config)
    if network is None:
        return build_model(config, spec, shape, gaussian)
    try:
        return build_model(config, spec, shape, gaussian, network)
    except UNREADABLE as error:
        raise CommandError(f"{path} describes no network that can be built: {first_line(error)}") from None


@contextlib.contextmanager
def _no_larger_than(weights: dict[str, torch.Tensor], path: Path):
    """While a model is built, refuse more parameters than there are weights: before their memory is touched."""
    limit, counted = sum(value.numel() for value in weights.values()), {}

    def count(module, name, parameter) -> None:
        counted[id(module), name] = 0 if parameter is None else parameter.numel()
        if sum(counted.values()) > limit:
            raise CommandError(f"{path}: the checkpoint does not fit its own config: it holds {limit:,} weights, and "
                               f"the model has more")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def refuse_other_data(known: str | None, dataset: registry.Dataset, config: Config, path: Path) -> None:
    """Raise CommandError where a data set is not the one of the identity in the checkpoint at `path`."""
    if known is not None and known != registry.identity(dataset):
        raise CommandError(f"{path} was trained on other data than --dataset {config.dataset} in --data_dir "
                           f"{config.data_dir} (rows and hash {config_module.shown(known)} then, "
                           f"{registry.identity(dataset)} now): give the --data_dir that it was trained on, or train "
                           f"another model (--tag NAME keeps it apart)")


def refuse_other_model(result: Path, checkpoint: Path) -> None:
    """Raise CommandError where a result file is of another model's checkpoint, one that still exists elsewhere."""
    before = read_json(result).get("checkpoint") if os.path.lexists(result) else None
    if isinstance(before, str) and _home(Path(before)) != _home(checkpoint):
        refuse_other_inputs(result, [before], [checkpoint])


def _home(checkpoint: Path) -> Path:
    """The folder of a checkpoint's experiment, of which an export is a part."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == exported.FOLDER else folder


# ---------------------------------------------------------------------------------------------------------------------
# The covariance's basis, which is the same in all checkpoints of a run

APART = 2**20  # bytes from which on it has a file of its own


def without_basis(record: dict) -> tuple[dict, torch.Tensor | None]:
    """What goes into every checkpoint of a run, and the basis that goes into `basis_file` once; None: a small one.

    In its place the checkpoint has the hash of its values, which names the file.
    """
    basis = record.get("gaussian", {}).get("basis")
    if basis is None or basis.numel() * basis.element_size() < APART:
        return record, None
    return {**record, "gaussian": {**record["gaussian"], "basis": hash_of(_values(basis))}}, basis


def basis_file(folder: Path, name: str) -> Path:
    return folder / f"gaussian-{name}.pth"


def _values(basis: torch.Tensor):
    return basis.detach().cpu().contiguous().numpy()


def _with_basis(record: dict, path: Path) -> dict:
    """A checkpoint's record with the basis that it refers to. Raises CommandError where that is not beside it."""
    moments = record.get("gaussian")
    name = moments.get("basis") if isinstance(moments, dict) else None
    if not (isinstance(name, str) and re.fullmatch("[0-9a-f]{16}", name)):
        return record
    place = basis_file(path.parent, name)
    if not place.exists():
        raise CommandError(f"{path} needs {place.name}, the covariance of its data, which is not beside it: copy it "
                           f"from the folder that the checkpoint is from")
    basis = load_checkpoint(place).get("basis")
    if not is_plain(basis) or basis.dtype == torch.bfloat16 or hash_of(_values(basis)) != name:
        raise CommandError(f"{place} is damaged, or not of the experiment of {path.name}")
    return {**record, "gaussian": {**moments, "basis": basis}}


# ---------------------------------------------------------------------------------------------------------------------
# Which there are


def checkpoints(folder: Path) -> list[Path]:
    """model-{epoch}.pth of a folder, newest first."""
    numbered = [path for path in folder.glob("model-*.pth") if re.fullmatch(r"model-[0-9]+", path.stem)]
    return sorted(numbered, key=lambda path: -int(path.stem.split("-")[1]))


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
    for name in ("last.pth", exported.WEIGHTS):
        if (folder / name).exists():
            return folder / name
    if below := sorted({str(path.parent) for path in _trained(folder.glob("**/*.pth"))}):
        raise CommandError(f"no checkpoint in {folder}: name one of the experiments below it, "
                           f"{', '.join(below[:5])}{' ...' if below[5:] else ''}")
    raise CommandError(f"no checkpoint in {folder}: run --mode train with the same flags first{_others_near(folder)}")


def named_checkpoint(path: str | Path) -> Path:
    """The checkpoint that a path names: itself, or the newest of a folder."""
    path = Path(path)
    return path if path.is_file() or path.suffix == ".pth" else find_checkpoint(path, None)


def _trained(files: Iterable[Path]) -> list[Path]:
    """Of some files those that a training run wrote."""
    return [path for path in files if path.name == "last.pth" or path in checkpoints(path.parent)]


def _others_near(folder: Path) -> str:
    """'; there is ...' with the experiments beside a folder that are most like it by name, and their flags."""
    there = {path.parent.name: path for path in _trained(folder.parent.glob("*/*.pth"))}
    said = []
    for name in difflib.get_close_matches(folder.name, list(there), 3, 0.0):
        with contextlib.suppress(CommandError):  # a broken one is nothing to propose
            said.append(f"{name} ({' '.join(config_module.words_of(stored_config(there[name]), ('model',)))})")
    return "; there is " + ", ".join(said) if said else ""


def stored_config(path: Path) -> Config:
    """The config in a checkpoint, or in the newest of a folder. Raises CommandError where there is none."""
    path = named_checkpoint(path)
    record = exported.read_about(path) if exported.is_export(path) else load_checkpoint(path, whole=False)
    return config_module.on_own_schedule(config_module.from_stored(record.get("config"), path), record.get("network"))


def expand_from(argv: list[str], mode: str | None = None) -> list[str]:
    """A command line with `--from PATH` before which stand the flags of the model in PATH (to train, training's and
    the number of its epochs too).

    mode    where no --mode is typed
    Raises CommandError for a path without a checkpoint, and for one to train on from without a state of training.
    """
    typed, mode = commandline.value_of(argv, "--from"), commandline.value_of(argv, "--mode") or mode
    if typed is None:
        return argv
    path = Path(typed)
    if mode == "train" and exported.is_export(named_checkpoint(path)):
        raise CommandError(f"{path} is an export, which training cannot go on from: give the folder of its experiment")
    stored = _last_config(path) if mode == "train" else stored_config(path)
    kinds = ("model", "training") if mode == "train" else ("model",)
    place = [] if stored.data_dir == config_module.Config().data_dir else ["--data_dir", stored.data_dir]
    length = ["--epochs", str(stored.epochs)] if mode == "train" else []
    return [*config_module.words_of(stored, kinds), *length, *place, *argv]  # what is typed wins, and is compared later


def _last_config(path: Path) -> Config:
    """The config of a folder's last state, which knows of an extended run that was interrupted; else `stored_config`.
    """
    with contextlib.suppress(CommandError):
        return stored_config(path / "last.pth")
    return stored_config(path)


def best_checkpoint(folder: Path, by_hand: frozenset[str]) -> Path:
    """best.pth of a folder. Raises CommandError where there is none, or another checkpoint is named too."""
    if "epochs" in by_hand:
        raise CommandError("--best and --epochs each name a checkpoint: give one of them")
    if not (folder / "best.pth").exists():
        raise CommandError(f"{folder}/best.pth does not exist: train with --fid_epochs K, or leave --best out")
    return folder / "best.pth"


def note_newer_state(path: Path, step: int) -> None:
    """Say where training went on after the checkpoint that is used, and was interrupted."""
    last = path.with_name("last.pth")
    if path == last or not last.is_file() or last.stat().st_mtime_ns < path.stat().st_mtime_ns:
        return
    try:
        reached = load_checkpoint(last, whole=False, verify=False).get("step")
    except CommandError:
        return  # training will tell
    if isinstance(reached, int) and reached > step:
        distributed.say(f"note: {last} is newer (step {reached}, of a run that is not finished); {path.name} is used")


def chosen_checkpoint(command: Command) -> Path:
    """The checkpoint that a command line names. Raises CommandError where it is not there."""
    _, config, by_hand = command
    folder = config_module.folder(config, "models")
    if config.from_ and Path(config.from_).is_file():
        return Path(config.from_)
    if config.best:
        return best_checkpoint(folder, by_hand)
    return find_checkpoint(folder, config.epochs if "epochs" in by_hand else None)


def meant(command: Command) -> Path | None:
    """The checkpoint that a command line means; None where there is none at all."""
    try:
        return chosen_checkpoint(command)
    except CommandError:
        if command.config.best or ("epochs" in command.by_hand
                                   and checkpoints(config_module.folder(command.config, "models"))):
            raise
        return None


def refuse_stale(known: str | None, derived: Path, checkpoint: Path, cure: str) -> None:
    """Raise CommandError where a file was derived from another checkpoint than the one that is meant.

    known   the hash that stands in the file; None where it has none: nothing to compare
    """
    if known is None or known == file_hash(checkpoint):
        return
    others = [path for path in checkpoints(checkpoint.parent) if path != checkpoint and file_hash(path) == known]
    of = f"{others[0].name}" if others else f"another checkpoint (hash {known})"
    also = f", or give --epochs {others[0].stem.split('-')[1]}" if others else ""
    raise CommandError(f"{derived} was made from {of}, and not from {checkpoint}: {cure} again{also}")


def open_record(path: Path, kinds: tuple[str, ...], whole: bool = False) -> tuple[dict, Config]:
    """What is stored in a checkpoint, or an export, of the named kinds, and its config; every value was looked at.

    whole   with the state of training, which an export has not
    Raises CommandError for any other file.
    """
    of_export = exported.is_export(path)
    record = exported.read(path) if of_export else _with_basis(load_checkpoint(path, whole), path)
    if record.get("kind") not in kinds:
        raise CommandError(f"{path} holds a {config_module.shown(record.get('kind'))} model, not "
                           f"{' or '.join(kinds)}")
    latent = record["kind"] == "latent"
    wanted = {**_WANTED, **({} if of_export or "training" in record else _STATE),
              **({} if latent else {"shape": list, "gaussian": dict, "network": dict | None})}
    for name, kind in wanted.items():
        if name not in record:
            raise CommandError(f"{path} is incomplete: it lacks {name}")
        if not isinstance(record[name], kind) or isinstance(record[name], bool):
            raise CommandError(f"{path}: {name} is a {type(record[name]).__name__}")
    stored = config_module.from_stored(record["config"], path)
    if stored.dataset not in registry.SPECS:
        raise CommandError(f"{path}: its config has --dataset {config_module.shown(stored.dataset)}, which is unknown")
    for what, broken in _faults(record, stored, path.stat().st_size):
        if broken:
            raise CommandError(f"{path}: {what}")
    return record, config_module.on_own_schedule(stored, record.get("network"))


_WANTED = {"config": dict, "ema": dict, "step": int, "epoch": int, "rows": int, "unit": str}
_STATE = {"model": dict, "optimizer": dict, "scaler": dict, "sums": dict}  # of training


def _faults(record: dict, stored: Config, size: int):
    """(what is wrong, is it?) of the values of a checkpoint, in an order in which each may rely on those before."""
    for name in ("step", "epoch", "rows"):
        yield f"{name} is {record[name]}", record[name] < (name == "rows")
    yield "data is no identity of a data set", not isinstance(record.get("data"), str | None)
    yield "codes_of is no hash of a checkpoint", not isinstance(record.get("codes_of"), str | None)
    sums = record.get("sums", {})
    yield "sums are no numbers", not all(isinstance(name, str) and _is_number(v) for name, v in sums.items())
    best = record.get("best", math.inf)
    yield "best is no number", not isinstance(best, int | float) or math.isnan(best)
    for part in ("model", "ema") if "model" in record else ("ema",):
        weights = record[part].values()
        named = all(isinstance(name, str) and is_plain(value) for name, value in record[part].items())
        yield f"{part} is no table of named weights", not named
        yield f"{part} has more values than the file has room for", sum(v.numel() * v.element_size()
                                                                        for v in weights) > size
        yield f"{part} holds weights that are not finite", not all(v.isfinite().all() for v in weights)
    if record["kind"] == "latent":
        return
    yield f"it holds a {record['kind']} model, and its config says {stored.model}", record["kind"] != stored.model
    shape = shape_of(stored)
    yield f"shape is {config_module.shown(record['shape'])}, not {list(shape)}", record["shape"] != list(shape)
    dimensions = math.prod(shape)
    moments = [record["gaussian"].get(name) for name in ("mean", "variances", "basis")]
    right = [(dimensions,), (dimensions,), (dimensions, dimensions)]
    yield "the data's moments do not fit the shape", any(
        not is_plain(value) or tuple(value.shape) != wanted or not value.is_floating_point()
        for value, wanted in zip(moments, right, strict=True) if not (value is None and len(wanted) == 2))
    yield "the data's moments are not finite, or a variance is not positive", not all(
        value.isfinite().all() for value in moments if value is not None) or not (moments[1] > 0).all()
    rows, shrinkage = (record["gaussian"].get(name, default) for name, default in (("rows", None), ("shrinkage", 0.0)))
    yield "the data's moments come from no rows", rows is not None and not (type(rows) is int and rows > 0)
    yield "the data's moments are shrunk by no share", not (_is_number(shrinkage) and 0 <= shrinkage <= 1)
    foreign = stored.denoiser in ("ddpm", "iddpm")
    yield (f"it {'lacks' if foreign else 'has'} a description of a pretrained network",
           foreign != bool(record["network"]))


def is_plain(value) -> bool:
    """Whether it is a tensor of numbers that lie in memory."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type != "meta" and (
        value.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64))


def _is_number(value) -> bool:
    """A plain number, or a tensor of one, that is finite."""
    if is_plain(value):
        return value.dim() == 0 and value.is_floating_point() and bool(value.isfinite())
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
