"""One table of what experiments' result files say:  python -m scripts.summary results/EXP [results/EXP_seed1 ...]

A column an experiment, a row a measure. Folders whose names differ in a last `seedN` alone (--tag seedN) are runs of
one experiment: their cell is the mean over runs with half its 95 % interval. A single run's cell has its own standard
error where the measure has one. Prints the table; writes results/summary.md and results/summary.json (--output).
"""

from __future__ import annotations

import re
import sys
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from commandline import Parser
from metrics.disentanglement import interval
from metrics.measured import READERS, Value, hashes_in
from utils import CommandError, atomic, exit_status, read_json, write_json

PROG = "python -m scripts.summary"
SMALLER = ("FID", "KID", "nll", "excess")  # measures of which less is better; squared errors besides


class Run(NamedTuple):
    """What the result files of one folder say: values by measure, and of which checkpoints they are."""

    values: dict[str, Value]
    hashes: set[str]


def read_run(folder: Path) -> Run:
    """Raises CommandError where a folder holds no results. Says where they are not all of one checkpoint."""
    if not folder.is_dir():
        raise CommandError(f"{folder} is not a folder of results")
    run = Run({}, set())
    for name, values in READERS.items():
        if (folder / name).exists():
            try:
                record = read_json(folder / name)
                run.values.update({value.measure: value for value in values(record)})
                run.hashes.update(hashes_in(record))
            except (KeyError, IndexError, TypeError, AttributeError):
                raise CommandError(f"{folder / name} is not of this program's making: make it again") from None
    if not run.values:
        raise CommandError(f"{folder} holds no results: {', '.join(READERS)}")
    if len(run.hashes) > 1:
        print(f"{folder}: its results are of {len(run.hashes)} checkpoints", file=sys.stderr)
    return run


def experiment_of(folder: Path) -> str:
    """The folder's path below results/, without its seed: `vae/digits_32d` is another experiment than `digits_32d`."""
    parts = folder.parts
    below = parts[len(parts) - parts[::-1].index("results") :] if "results" in parts else parts
    return re.sub(r"[-_]seed\d+$", "", "/".join(below))


def summarise(folders: list[Path]) -> dict[str, dict]:
    """{experiment: {"runs": [...], "measures": {measure: {"values", "mean", "sd", "ci95" over runs, "se" of one run}}}}

    ci95 is half the width of Student's 95 % interval of the mean.
    """
    groups: dict[str, dict[Path, Run]] = {}
    for folder in {folder.resolve(): folder for folder in folders}.values():  # a folder counts once
        groups.setdefault(experiment_of(folder), {})[folder] = read_run(folder)
    for runs in groups.values():
        for one, other in combinations(runs, 2):
            if runs[one].hashes & runs[other].hashes and runs[one].values.keys() & runs[other].values.keys():
                raise CommandError(f"{one} and {other} measure the same checkpoint: give one of them")
    return {name: {"runs": [str(folder) for folder in runs],
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
    text = f"{measured['mean']:.4g}" + ("" if spread is None else f" ± {spread:.2g}")
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
    return "\n".join([*lines, "", "± over n runs: half the 95 % interval of the mean; of one run: standard error."])


def write(folders: list[Path], output: Path, key: str | None = None) -> str:
    """Write the summary of result folders to `output`.md and .json; the table, to print, or what is `best` by a key."""
    summary = summarise(folders)
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
