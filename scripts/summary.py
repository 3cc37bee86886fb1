"""One table of what experiments' result files say:  python -m scripts.summary results/EXP [results/EXP_seed1 ...]

A column an experiment, a row a measure. Folders whose names differ in a last `seedN` alone (--tag seedN) are runs of
one experiment: their cell is the mean over runs with half its 95 % interval. A single run's cell has its own standard
error where the measure has one. Notes below the table name files that are of other checkpoints than those beside them,
or were measured with other settings than another run's. Prints the table; writes results/summary.md and
results/summary.json (--output).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from commandline import Parser
from config import names_of
from metrics.disentanglement import interval
from metrics.measured import READERS, Value, hashes_in
from utils import CommandError, atomic, exit_status, read_json, to_its_error, write_json

PROG = "python -m scripts.summary"
SMALLER = ("FID", "KID", "nll", "excess")  # measures of which less is better; squared errors besides
# Of a call: what does not bear on the numbers, is another in every run, or has its own place in a measure's name
NO_SETTINGS = {*names_of("model"), *names_of("training"), "mode", "name", "folder", "from_", "codes", "output", "best",
               "device", "num_workers", "compile", "data_dir", "model_folder", "img_folder", "log_folder",
               "result_folder", "stats_folder", "format", "jobs", "dry_run", "nearest", "classifier",
               "inception_weights", "vanilla_from", "ensemble", "tau", "inputs"}
USED = {"num_images": "num_images", "images": "num_images", "count": "count", "steps": "sample_steps", "split": "split",
        "sampler": "sampler", "spacing": "spacing"}  # key of a result file -> the flag that it tells the value of


class Run(NamedTuple):
    """What the result files of one folder say: values by measure, and by file its checkpoints and its settings."""

    values: dict[str, Value]
    hashes: dict[str, set[str]]
    settings: dict[str, dict]

    @property
    def checkpoints(self) -> set[str]:
        return set().union(*self.hashes.values())


def settings_of(record: dict) -> dict:
    """The flags that a result was measured with."""
    call = record.get("call")
    found = {key: value for key, value in call.items() if key not in NO_SETTINGS} if isinstance(call, dict) else {}
    return found | {flag: record[key] for key, flag in USED.items() if key in record}


def all_settings(name: str, record: dict, folder: Path) -> Iterator[tuple[str, dict]]:
    """(file, its settings); of fid.json one for each folder of images, with those that it was drawn with."""
    if name != "fid.json":
        yield name, settings_of(record)
        return
    for entry in record.values():
        images = Path(entry["source"]).name
        drawn = folder / f"{images}.json"
        drawn = settings_of(read_json(drawn)) if drawn.exists() else {}
        yield f"{name} ({images}, {entry.get('extractor', '')})", drawn | settings_of(entry)


def read_run(folder: Path) -> Run:
    """Raises CommandError where a folder holds no results."""
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder of results")
    run = Run({}, {}, {})
    for name, values in READERS.items():
        if (folder / name).exists():
            try:
                record = read_json(folder / name)
                run.values.update({value.measure: value for value in values(record)})
                run.hashes[name] = hashes_in(record)
                run.settings.update(all_settings(name, record, folder))
            except (KeyError, IndexError, TypeError, AttributeError):
                raise CommandError(f"{folder / name} is not of this program's making: make it again") from None
    if not run.values:
        raise CommandError(f"{folder} holds no results: {', '.join(READERS)}")
    return run


def notes_of(runs: dict[Path, Run]) -> list[str]:
    """Lines on results of several checkpoints in one folder, and on files that the runs measured with other settings.
    """
    lines = []
    for folder, run in runs.items():
        if len(run.checkpoints) > 1:
            whose = (f"{checkpoint[:8]} ({', '.join(name for name, own in run.hashes.items() if checkpoint in own)})"
                     for checkpoint in sorted(run.checkpoints))
            lines.append(f"{folder}: its results are of {len(run.checkpoints)} checkpoints: {', '.join(whose)}")
    for name in dict.fromkeys(name for run in runs.values() for name in run.settings):
        found = [run.settings[name] for run in runs.values() if name in run.settings]
        apart = []
        for flag in dict.fromkeys(flag for one in found for flag in one):
            values = dict.fromkeys(str(one[flag]) for one in found if flag in one)
            apart += [f"{flag} {' and '.join(values)}"] if len(values) > 1 else []
        if apart:
            folders = ", ".join(map(str, runs))
            lines.append(f"{folders}: {name} was measured with different settings: {'; '.join(apart)}")
    return lines


def experiment_of(folder: Path) -> str:
    """The folder's path below results/, without its seed: `vae/digits_32d` is another experiment than `digits_32d`."""
    parts = folder.parts
    below = parts[len(parts) - parts[::-1].index("results") :] if "results" in parts else parts
    return re.sub(r"[-_]seed\d+$", "", "/".join(below))


def summarise(folders: list[Path]) -> dict[str, dict]:
    """{experiment: {"runs": [...], "notes": [...],
                     "measures": {measure: {"values", "mean", "sd", "ci95" over runs, "se" of one run}}}}

    ci95 is half the width of Student's 95 % interval of the mean.
    """
    groups: dict[str, dict[Path, Run]] = {}
    for folder in {folder.resolve(): folder for folder in folders}.values():  # a folder counts once
        groups.setdefault(experiment_of(folder), {})[folder] = read_run(folder)
    for runs in groups.values():
        for one, other in combinations(runs, 2):
            if runs[one].checkpoints & runs[other].checkpoints and runs[one].values.keys() & runs[other].values.keys():
                raise CommandError(f"{one} and {other} measure the same checkpoint: give one of them")
    return {name: {"runs": [str(folder) for folder in runs], "notes": notes_of(runs),
                   "measures": over_runs([run.values for run in runs.values()])} for name, runs in groups.items()}


def over_runs(runs: list[dict[str, Value]]) -> dict[str, dict]:
    measures = {}
    for measure in dict.fromkeys(name for run in runs for name in run):
        values = [run[measure] for run in runs if measure in run]
        over = interval([value.value for value in values])
        measures[measure] = {"values": [value.value for value in values], "mean": over["mean"], "sd": over["sd"],
                             "ci95": over["ci95"], "se": values[0].se if len(values) == 1 else None}
    return measures


def cell(measured: dict | None) -> str:
    if measured is None:
        return ""
    spread = measured["ci95"] if measured["ci95"] is not None else measured["se"]
    text = f"{measured['mean']:.4g}" if spread is None else " ± ".join(to_its_error(measured["mean"], spread))
    return text + (f" (n = {len(measured['values'])})" if measured["sd"] is not None else "")


def best(summary: dict[str, dict], key: str) -> str:
    """The experiments that have the one measure whose name holds `key`, the highest mean first.

    Raises CommandError where no measure or several have it.
    """
    measures = dict.fromkeys(name for group in summary.values() for name in group["measures"])
    found = [name for name in measures if key in name]
    if len(found) != 1:
        raise CommandError(f"--best {key}: {'no measure' if not found else 'more than one measure'} of that name; "
                           f"there are: {'; '.join(found or measures)}")
    there = [(group["measures"][found[0]], name) for name, group in summary.items() if found[0] in group["measures"]]
    less = found[0].startswith(SMALLER) or found[0].endswith("mse")
    there.sort(key=lambda pair: pair[0]["mean"], reverse=not less)
    head = f"{found[0]}, {'lowest' if less else 'highest'} first:"
    return "\n".join([head, *(f"  {cell(measured):32} {name}" for measured, name in there)])


def table(summary: dict[str, dict]) -> str:
    """Markdown: a row a measure, a column an experiment."""
    heads = [f"{name} ({len(group['runs'])} run{'s' if len(group['runs']) > 1 else ''})"
             for name, group in summary.items()]
    lines = [f"| measure | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for measure in dict.fromkeys(name for group in summary.values() for name in group["measures"]):
        cells = (cell(group["measures"].get(measure)) for group in summary.values())
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    lines += ["", "± over n runs: half the 95 % interval of the mean; of one run: standard error."]
    return "\n".join([*lines, *(f"\nNote: {note}." for group in summary.values() for note in group["notes"])])


def write(folders: list[Path], output: Path, key: str | None = None) -> str:
    """Write the summary of result folders to `output`.md and .json; the table, to print, or what is `best` by a key."""
    summary = summarise(folders)
    for note in (note for group in summary.values() for note in group["notes"]):
        print(note, file=sys.stderr)
    text = table(summary)
    with atomic(output.with_name(output.name + ".md")) as temporary:
        temporary.write_text(text + "\n")
    write_json(output.with_name(output.name + ".json"), summary)
    return best(summary, key) if key else text


def _run(argv: list[str]) -> None:
    parser = Parser(prog=PROG, description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="results/EXP", help="result folders of experiments")
    parser.add_argument("--output", type=Path, default=Path("results/summary"), metavar="PATH",
                        help="files to write, without .md and .json (default: results/summary)")
    parser.add_argument("--best", metavar="KEY", help="list the experiments by the measure whose name holds KEY")
    args = parser.parse_args(argv)
    print(write(args.folders, args.output, args.best))


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status."""
    return exit_status(PROG, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
