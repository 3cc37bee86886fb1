"""Going on with the run (a `training.Run`) that a folder holds, or clearing the folder for a new one."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

import config as config_module
import distributed
from config import Config
from experiment.checkpoint import basis_file, checkpoints, open_record
from models import LatentDiffusion
from utils import CommandError, remove_partial


def newest_sound(folder: Path, kind: str) -> tuple[dict, Config, Path] | None:
    """The newest checkpoint of a folder that can be read, with its config and place, saying which were passed over.

    None where there are none. Raises CommandError where there are some and none can be read: they are not ours to
    replace.
    """
    there = [path for path in [folder / "last.pth", *checkpoints(folder)] if os.path.lexists(path)]
    for path in there:
        try:
            return *open_record(path, (kind,), whole=True), path
        except CommandError as error:
            broken = error
            if len(there) > 1 and distributed.is_main():
                print(f"{error}; trying an older one", file=sys.stderr)
    if there:
        raise CommandError(f"{broken}; move it away, or give --no-resume to replace what is in {folder}")
    return None


def start_or_resume(run, config: Config, pictures: Path, by_hand: frozenset[str] = frozenset()) -> bool:
    """Take up the folder's run, or clear the folder for a new one. Returns whether anything is left to do.

    pictures    folder of the run's pictures
    by_hand     the flags typed by hand: a run that began with --flip, as folders did before there was one, keeps it
    Raises CommandError where the folder holds a run with other settings, or of other data.
    """
    found = newest_sound(run.folder, run.record["kind"]) if config.resume else None
    distributed.barrier()  # every process has looked before anything changes
    if distributed.is_main():
        remove_partial(run.folder)
        remove_partial(run.metrics.parent)
    if found is None:
        if distributed.is_main():
            for old in [run.folder / "last.pth", run.folder / "best.pth", *checkpoints(run.folder), run.metrics,
                        *run.folder.glob(basis_file(Path(), "*").name), *(pictures / "train").glob("epoch-*.png")]:
                old.unlink(missing_ok=True)
        distributed.barrier()
        return True
    record, stored, path = found
    if stored.flip and config.flip is None and "flip" not in by_hand:
        config = run.config = replace(config, flip=True)
        distributed.say(f"{path}: going on with --flip, as this run began")
    config_module.refuse_other_run(config, stored, path)
    refuse_other_rows(run, record, path)
    run.resume(record, path)
    if run.stepper.step >= run.total:
        distributed.say(f"{run.folder}: this run is finished ({record['epoch']} epochs, {run.stepper.step} steps); "
                        f"give a larger --epochs to extend it")
        return False
    how = "extended" if config.epochs > stored.epochs else "shortened"
    more = "" if config.epochs == stored.epochs else f", {how} from {stored.epochs} to {config.epochs} epochs"
    distributed.say(f"{path}: going on at step {run.stepper.step} of {run.total}{more}")
    return True


def refuse_other_rows(run, record: dict, path: Path) -> None:
    """Raise CommandError where the checkpoint was trained on other rows than there are now."""
    cure = "add --tag NAME for a run of its own, or --no-resume to replace it"
    if run.record["kind"] == "latent":
        before = record.get("codes_of")
        if before is not None and before != run.record["codes_of"]:
            raise CommandError(f"{path} was fitted to the codes of another checkpoint ({before}) than the one that "
                               f"encodes now ({run.record['codes_of']}): give --no-resume to replace it")
    own = run.record.get("data")
    if None not in (own, record.get("data")) and own != record["data"]:
        raise CommandError(f"{path} was trained on other data ({record['data']}) than --data_dir {run.config.data_dir} "
                           f"holds ({own}; rows and hash): {cure}")
    if record["rows"] != run.record["rows"] or _moved(run, record):
        raise CommandError(f"{path} was trained on other data ({record['rows']} rows, now {run.record['rows']}): "
                           f"{cure}")


def _moved(run, record: dict) -> bool:
    """Whether the data's mean is another one than it was: of the images, or of the codes that are diffused."""
    if isinstance(run.stepper.model, LatentDiffusion):
        own, stored = run.stepper.model.state_dict(), record["model"]
        return not all(name in stored and own[name].shape == stored[name].shape and
                       torch.allclose(own[name].cpu(), stored[name], rtol=1e-2, atol=1e-3)
                       for name in ("mean", "deviation"))
    own, stored = run.record["gaussian"]["mean"], record["gaussian"]["mean"]
    return not torch.allclose(own, stored.to(own.dtype), rtol=1e-3, atol=1e-3)
