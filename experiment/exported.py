"""An export: a trained model in a folder that other programs read too, without what only training needs.

    model.safetensors   the averaged weights, by name; gaussian.mean, .variances and .basis of the training data
    config.json         all else that a checkpoint says of its model, with the hashes of the weights and the checkpoint
"""

from __future__ import annotations

import json
from pathlib import Path

from utils import UNREADABLE, CommandError, file_hash, first_line, hash_of, read_json

FORMAT = 1
FOLDER, WEIGHTS, ABOUT = "export", "model.safetensors", "config.json"
MOMENTS = ("mean", "variances", "basis")
SAID = ("kind", "config", "shape", "network", "data", "rows", "levels", "unit", "epoch", "step")  # of a checkpoint


def is_export(path: Path) -> bool:
    """Whether a path is that of an export's weights."""
    return path.suffix == Path(WEIGHTS).suffix


def pack(record: dict, checkpoint_hash: str) -> dict[str, bytes]:
    """{name: content} of the two files that hold what a checkpoint's record says of its model."""
    from safetensors.torch import save

    moments = {f"gaussian.{name}": record["gaussian"][name] for name in MOMENTS}
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in (record["ema"] | moments).items()
               if value is not None}
    weights = save(tensors, {"format": "pt"})
    about = {"format": FORMAT, **{name: record.get(name) for name in SAID},
             "gaussian": {name: value for name, value in record["gaussian"].items() if name not in MOMENTS},
             "weights_hash": hash_of(weights), "checkpoint_hash": checkpoint_hash}
    return {WEIGHTS: weights, ABOUT: (json.dumps(about, indent=2) + "\n").encode()}


def read_about(path: Path) -> dict:
    """The config.json beside the weights at `path`. Raises CommandError where there is none of an export."""
    place = path.with_name(ABOUT)
    about = read_json(place)
    if type(about.get("format")) is not int or about["format"] != FORMAT:
        raise CommandError(f"{place} is not of an export of this program (format {FORMAT})")
    return about


def read(path: Path) -> dict:
    """What `pack` made, as the record of a checkpoint that lacks a state of training; its values are not looked at.

    Raises CommandError where a file is absent or broken, or the two do not belong together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = read_about(path)
    if not path.is_file():
        raise CommandError(f"{path} does not exist")
    if about.get("weights_hash") != file_hash(path):
        raise CommandError(f"{path} is not the file that {ABOUT} beside it describes: it is damaged, or of another "
                           f"export")
    try:
        tensors = load_file(path)
    except (SafetensorError, *UNREADABLE) as error:
        raise CommandError(f"{path} cannot be read: {first_line(error)}") from None
    record = {name: about[name] for name in (*SAID, "gaussian") if name in about}
    moments = {name: tensors.pop(f"gaussian.{name}", None) for name in MOMENTS}
    if isinstance(record.get("gaussian"), dict):
        record["gaussian"] |= moments
    return {**record, "ema": tensors}
