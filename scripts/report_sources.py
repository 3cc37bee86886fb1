"""What files say of one experiment, for a report: its checkpoint's config, its log, its results and their commands.

A file that is absent or broken is a gap that the report shows, never an error; only a missing checkpoint is one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import config as config_module
import plots
from config import FIELDS, MODELS, MODES, PROGRAM, Config, reads
from experiment import checkpoints, find_checkpoint, open_record
from experiment.exported import WEIGHTS
from metrics.measured import READERS, Value, of_another, other_split
from utils import CommandError, did_you_mean, file_hash, read_json

# What makes each result file: a mode of run.py, or a program of its own.
MAKERS = {"latent_quality.json": "latent_quality", "mutual_info.json": "mutual_info", "nll.json": "nll",
          "eval.json": "eval", "eval-fid-fast.json": "eval_fid", "eval-fid-latent.json": "eval_fid",
          "classification.json": "train_classifier.py", "disentanglement.json": "eval_disentanglement.py",
          "fid.json": "calc_fid.py"}
NOT_SHOWN = ("config", "call", "versions", "curves", "checks", "cautions")  # they have places of their own


class Roots(NamedTuple):
    """The roots that an experiment's name is below; None: beside the root of its checkpoints."""

    models: Path
    logs: Path | None = None
    results: Path | None = None

    def beside(self, path: Path, name: Path) -> Roots:
        """Those of a checkpoint of the experiment `name`, which may lie below another root than `models`."""
        depth = len(name.parts)
        models = path.parents[depth] if path.parent.parts[-depth:] == name.parts else self.models
        return Roots(models, self.logs or models.parent / "logs", self.results or models.parent / "results")


@dataclass
class Experiment:
    """One experiment, as far as files tell.

    label       its name, and what tells it from others of that name
    results     {file: record, or a line that says why it cannot be read}
    latent_log  the log of the diffusion over z
    """

    label: str
    path: Path
    roots: Roots
    hash: str
    config: Config
    epoch: int
    step: int
    rows: int
    shape: tuple[int, ...]
    log: list[dict]
    latent_log: list[dict]
    has_latent_diffusion: bool
    results: dict[str, dict | str]
    pictures: dict[str, object] = field(default_factory=dict)
    parameters: int = 0

    def record(self, name: str) -> dict | None:
        found = self.results.get(name)
        return found if isinstance(found, dict) else None

    def own_record(self, name: str) -> dict:
        """The record without what was measured on another checkpoint."""
        record = self.record(name) or {}
        others = of_another(name, record, self.hash)
        return {} if "" in others else {key: value for key, value in record.items() if key not in others}

    def command(self, maker: str, more: list[str] | None = None) -> str:
        """The command line that makes something of this experiment: a mode, or a program's name."""
        words = ["python", maker] if maker.endswith(".py") else ["python", "run.py", "--mode", maker]
        return shlex.join([*words, "--from", self.path.parent.as_posix(), *(more or [])])


def locate(text: str, roots: Roots) -> Path:
    """The checkpoint that an experiment's or export's folder, its name, or a checkpoint's own path means.

    Raises CommandError, with what is there, where there is none.
    """
    given = Path(text)
    if given.is_file():
        return given
    for folder in (given, roots.models / text):
        if checkpoints(folder) or any((folder / name).is_file() for name in ("last.pth", WEIGHTS)):
            return find_checkpoint(folder, None)
    there = sorted({path.parent.relative_to(roots.models).as_posix() for path in roots.models.rglob("*.pth")})
    there = [name for name in there if name != "."]
    known = f" (there: {', '.join(there[:12])}{' ...' if len(there) > 12 else ''})" if there else ""
    raise CommandError(f"no checkpoint in {text} or {roots.models / text}{did_you_mean(text, there)}{known}: run "
                       f"--mode train first")


def read(text: str, roots: Roots) -> Experiment:
    """Everything that files say of the experiment that `text` names. Raises CommandError for a broken checkpoint."""
    path = locate(text, roots)
    record, config = open_record(path, MODELS)
    name = Path(config.experiment)
    roots = roots.beside(path, name)
    latent = name.with_name(f"{name.name}_latent")
    return Experiment(
        name.as_posix(), path, roots, file_hash(path), config, record["epoch"], record["step"], record["rows"],
        tuple(record["shape"]), read_log(roots.logs / name / "metrics.jsonl"),
        read_log(roots.logs / latent / "metrics.jsonl"), bool(checkpoints(roots.models / latent)),
        read_results(roots.results / name))


def named_apart(found: list[Experiment]) -> list[Experiment]:
    """Experiments of one name get their checkpoint's path as label, and each checkpoint is shown once."""
    found = list({one.path.resolve(): one for one in found}.values())
    labels = [one.label for one in found]
    for one in found:
        if labels.count(one.config.experiment) > 1:
            one.label = str(one.path)
    return found


def read_log(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl, [] where there is none."""
    lines = plots.read_log(path) if path.is_file() else []
    return [line for line in lines if isinstance(line["train"], dict) and isinstance(line["epoch"], int)
            and isinstance(line["step"], int)]


def read_results(folder: Path) -> dict[str, dict | str]:
    found: dict[str, dict | str] = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        name = path.relative_to(folder).as_posix()
        try:
            found[name] = read_json(path)
        except CommandError as error:
            found[name] = " ".join(str(error).split())
    return found


# ---------------------------------------------------------------------------------------------------------------------
# What stands in a result file


def measures(name: str, record: dict) -> list[Value]:
    """The measures of a result file with their errors; of a file that no reader knows, every number that has one."""
    base = Path(name).name
    try:
        if base in READERS:
            return list(READERS[base](record))
    except (KeyError, IndexError, TypeError, AttributeError, ZeroDivisionError):
        pass  # of another version: what carries its name can still be shown
    return [Value(*leaf) for leaf in leaves(record) if leaf[2] is not None]


def leaves(record, path: str = "") -> Iterator[tuple[str, object, float | None]]:
    """(path, value, standard error) of the plain values in a record; long lists, which are curves, are left out."""
    if isinstance(record, dict):
        for key, value in record.items():
            if key in NOT_SHOWN or (key.endswith("_se") and key[:-3] in record):
                continue
            error = record.get(f"{key}_se")
            place = f"{path} / {key}" if path else str(key)
            if isinstance(value, dict | list):
                yield from leaves(value, place)
            else:
                yield place, value, error if isinstance(error, int | float) else None
    elif isinstance(record, list):
        if any(isinstance(value, dict | list) for value in record):
            for i, value in enumerate(record[:64]):
                yield from leaves(value, f"{path} [{i}]")
        elif len(record) <= 8:
            yield path, ", ".join(map(str, record)), None


def checks(record) -> Iterator[tuple[str, bool, str]]:
    """(name, passed, detail) of every check in a record."""
    if isinstance(record, dict):
        if isinstance(record.get("passed"), bool) and "name" in record:
            yield str(record["name"]), record["passed"], str(record.get("detail", ""))
        else:
            for value in record.values():
                yield from checks(value)
    elif isinstance(record, list):
        for value in record:
            yield from checks(value)


def cautions(record) -> list[str]:
    """What the measuring programs warn of, each once."""
    found: list[str] = []
    if isinstance(record, dict):
        for key, value in record.items():
            if key == "cautions" and isinstance(value, list):
                found += map(str, value)
            elif key == "note" and value:
                found.append(str(value))
            else:
                found += cautions(value)
    elif isinstance(record, list):
        for value in record:
            found += cautions(value)
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def commands(name: str, record: dict, experiment: Experiment) -> list[str]:
    """The command lines that a result file's numbers came from; [] where it does not tell."""
    base = Path(name).name
    if base == "fid.json":
        calls = [entry.get("call") for entry in record.values() if isinstance(entry, dict)]
        return [shlex.join(fid_words(call)) for call in calls if isinstance(call, dict)]
    call, used = record.get("call"), record.get("config")
    maker = (call.get("mode") if isinstance(call, dict) else None) or MAKERS.get(re.sub("_(val|train)", "", base))
    if maker is None or not isinstance(used, dict):
        return []
    row = MODES.get(maker, PROGRAM)
    if isinstance(call, dict):
        values = call
    else:  # of before calls were recorded: the config is this call's own
        values = {key: value for key, value in used.items() if key in FIELDS and reads(row, maker, key)}
    words = []
    for key, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        if key in ("mode", "epochs", "resume", "from_") or value is None or key in config_module.names_of("model"):
            continue
        if key not in FIELDS:
            words += program_words(key, value)
        elif value != FIELDS[key].default:
            words += config_module.typed(key, value)
    stem = Path(str(record.get("checkpoint", ""))).stem
    if stem.startswith("model-") and stem[6:].isdigit():
        words += ["--epochs", str(int(stem[6:]))]
    lines = [experiment.command(maker, words)]
    if maker.endswith(".py") and not values.get("codes"):  # the programs read codes
        split = other_split(record)
        lines.insert(0, experiment.command("save_latent", ["--split", split] if split else []))
    return lines


def program_words(key: str, value) -> list[str]:
    """A program's own flag."""
    if value is None or value is False or value == () or value == []:
        return []
    values = [] if value is True else value if isinstance(value, tuple | list) else [value]
    return [f"--{key}", *map(str, values)]


def fid_words(call: dict) -> list[str]:
    flags = [word for key, value in call.items() if key not in ("name", "folder") for word in program_words(key, value)]
    return ["python", "calc_fid.py", str(call.get("name")), str(call.get("folder")), *flags]
