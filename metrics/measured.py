"""What an experiment's result files say: their numbers by measure, whose they are, and the commands behind them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import config as config_module
from utils import CommandError, read_json


class Value(NamedTuple):
    """One measure of one run, with its standard error where it is known."""

    measure: str
    value: float
    se: float | None = None


def fid_values(record: dict) -> Iterator[Value]:
    """Distances under other weights are other measures. Images are named by their folder, not by all above it.

    So the runs of one experiment share a measure; where a file has two such folders, each keeps its whole path.
    """
    short = {name: name.removeprefix(f"{Path(entry['source']).parent.as_posix()}/") for name, entry in record.items()}
    for name, entry in record.items():
        pair = short[name] if list(short.values()).count(short[name]) == 1 else name
        yield Value(f"FID, {pair}", entry["fid"], entry["fid_se"])
        if entry["kid"] is not None:
            yield Value(f"KID, {pair}", entry["kid"], entry["kid_se"])


def other_split(record: dict) -> str | None:
    """The split of a result file, or of its first file of codes, where it is not test; None for files from before."""
    split = record.get("split") or next((one.get("split") for one in record.get("files", ())), None)
    return split if split in ("train", "val") else None


def _place(record: dict) -> str:
    split = other_split(record)
    return f", {split} split" if split else ""


def quality_values(record: dict) -> Iterator[Value]:
    for start in ("inferred", "random"):
        for measure in ("mse", "psnr", "ssim"):
            errors = record[start]
            unit = ", dB" if measure == "psnr" else ""
            yield Value(f"reconstruction from {start} x_T, {measure}{unit}{_place(record)}", errors[measure],
                        errors[f"{measure}_se"])


def classification_values(record: dict) -> Iterator[Value]:
    """Files from before know of neither errors nor differences."""
    place = _place(record)
    for name, result in record["inputs"].items():
        measure = f"{result['measure']} of classes from {name}, {result['classifier']}{place}"
        yield Value(measure, result["mean"], result.get("se"))
    for name, paired in record.get("differences", {}).items():
        yield Value(f"{name}, {record['inputs']['z']['measure']}{place}", paired["mean"], paired["se"])


def disentanglement_values(record: dict) -> Iterator[Value]:
    """A score that needs several factors is undefined for a class, null in the file and left out here; files from
    before know of no standard errors."""
    first = record["files"][0]
    for name, value in first["mean"].items():
        if value is not None:
            yield Value(f"disentanglement, {name}{_place(record)}", value, first.get("se", {}).get(name))


def nll_values(record: dict) -> Iterator[Value]:
    """Bits per dimension where the data are discrete, nats where they are not."""
    for entry in record["entries"]:
        name = "nll_lattice" if entry["kind"] == "lattice" else "nll"
        bits_per_nat = entry[f"{name}_bpd"] / entry[f"{name}_nats"]
        unit, scale = ("nats", 1.0) if entry["kind"] == "continuous" else ("bpd", bits_per_nat)
        label = f"{name}_{unit}, {entry['bound']}, {entry['branch']}{_place(record)}"
        yield Value(label, entry[f"{name}_nats"] * scale, entry["se_nats"] * scale)
        if "excess_nats" in entry:
            yield Value(label.replace(f"{name}_{unit}", "excess_nats"), entry["excess_nats"], entry["excess_se"])


def information_values(record: dict) -> Iterator[Value]:
    """The interval of every tau, errors within it, and what the denoiser uses, which is no estimate of I(x; z)."""
    for part in record["over_tau"] or [record]:
        noise = ("" if part["tau"] is None else f", tau {part['tau']:g}") + _place(record)
        for k, end in enumerate(("at least", "at most")) if part["bracket_nats"] else ():
            yield Value(f"I(x; z){noise}, {end}, nats", part["bracket_nats"]["interval"][k])
        for form in ("difference", "orthogonal") if "usable_nats" in part else ():
            yield Value(f"usable by the denoiser{noise}, {form}, nats", part["usable_nats"][form],
                        part["usable_nats"][f"{form}_se"])


BY_SPLIT = {"classification": classification_values, "disentanglement": disentanglement_values}
READERS = {
    "fid.json": fid_values, "latent_quality.json": quality_values, "nll.json": nll_values,
    "mutual_info.json": information_values,
    **{f"{stem}{part}.json": values for stem, values in BY_SPLIT.items() for part in ("", "_val", "_train")},
}
MAKERS = {"classification": "train_classifier.py", "disentanglement": "eval_disentanglement.py"}


class Measured(NamedTuple):
    """A result file: its numbers, and the command that repeats them, '' where the file does not tell."""

    path: Path
    values: list[Value]
    command: str


def measured(folder: Path, checkpoint: Path, checkpoint_hash: str) -> tuple[list[Measured], list[str]]:
    """The result files of a folder that are of one checkpoint, and a line for each that is not, or cannot be read."""
    found, left_out = [], []
    for name, values in READERS.items():
        path = folder / name
        if not path.exists():
            continue
        try:
            record = read_json(path)
            others = of_another(name, record, checkpoint_hash)
            left_out += [f"{path}{entry and f': {entry!r}'} is of another checkpoint" for entry in others]
            if name == "fid.json":
                redrawn = [entry for entry in was_redrawn(folder, record) if entry not in others]
                left_out += [f"{path}: {entry!r} is of images that were drawn anew since" for entry in redrawn]
                others += redrawn
            record = {} if "" in others else {key: value for key, value in record.items() if key not in others}
            if record:
                found.append(Measured(path, list(values(record)), command_of(name, record, checkpoint)))
        except CommandError as error:
            left_out.append(str(error))
        except (KeyError, IndexError, TypeError, AttributeError):
            left_out.append(f"{path} is not of this program's making")
    return found, left_out


def of_another(name: str, record: dict, checkpoint_hash: str) -> list[str]:
    """The entries of fid.json, one a folder of images, that are of another checkpoint; [''] for another file that is.
    """
    parts = record.items() if name == "fid.json" else [("", record)]
    return [entry for entry, part in parts if not hashes_in(part) <= {checkpoint_hash}]


NO_SETTING = ("versions", "config", "call", "checkpoint", "data", "epoch", "step", "ema")


def setting_of(manifest: dict) -> dict:
    """What the pictures of --mode eval_fid depend on, of the record that it leaves."""
    return {name: value for name, value in manifest.items() if name not in NO_SETTING}


def was_redrawn(folder: Path, record: dict) -> list[str]:
    """The entries of a folder's fid.json whose images --mode eval_fid has drawn with other settings since."""
    found = []
    for entry, part in record.items():
        manifest = folder / f"{Path(part['source']).name}.json"
        if "drawn" in part and manifest.is_file() and setting_of(read_json(manifest)) != part["drawn"]:
            found.append(entry)
    return found


def hashes_in(record) -> set[str]:
    """The hashes of checkpoints that a result names."""
    if isinstance(record, list):
        return {found for value in record for found in hashes_in(value)}
    if not isinstance(record, dict):
        return set()
    own = record.get("checkpoint_hash")
    return {found for value in record.values() for found in hashes_in(value)} | ({own} if isinstance(own, str) else
                                                                                set())


def command_of(name: str, record: dict, checkpoint: Path) -> str:
    """The command lines, a line each, that make the numbers of a result file again; '' where it does not tell."""
    if name == "fid.json":
        return "\n".join(shlex.join(["python", "calc_fid.py", call["name"], call["folder"], *_own_words(call, (
            "name", "folder"))]) for call in (entry["call"] for entry in record.values() if "call" in entry))
    call = record.get("call")
    if not isinstance(call, dict):
        return ""
    fields = {key: value for key, value in call.items() if key in config_module.to_dict(config_module.Config())}
    try:
        used = replace(config_module.from_stored(fields, Path(name)), from_=None, best=False)
    except CommandError:
        return ""
    words = ["--from", str(checkpoint), *config_module.words_of(used, ("training", "run"))]
    if "mode" in call:
        return shlex.join(["python", "run.py", "--mode", str(call["mode"]), *words])
    program = shlex.join(["python", MAKERS[name.partition(".")[0].partition("_")[0]], *words,
                          *_own_words(call, (*fields, "output"))])
    split = other_split(record)
    encodes = shlex.join(["python", "run.py", "--mode", "save_latent", "--from", str(checkpoint),
                          *(["--split", split] if split else [])])
    return program if "codes" in fields else f"{encodes}\n{program}"  # the programs read codes


def _own_words(call: dict, known: tuple[str, ...]) -> list[str]:
    """A program's own flags that are set, as they would be typed."""
    words = []
    for key, value in call.items():
        if key in known or value is None or value is False or value == []:
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{key}", *map(str, values)]
    return words
