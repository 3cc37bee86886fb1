"""Train and measure every combination of some flags' values, over several seeds, and put the results into one table:

    python -m scripts.sweep --mmd_weight 0.01 0.1 --seeds 3 -- --dataset digits --a_dim 8 --epochs 20

Flags before `--` are swept, each over its values; those after it belong to every run, as run.py takes them, and to
the measurements that read them. A run is
an experiment of its own (--tag seedN). Called again, the sweep goes on: finished trainings are kept, and measurements
of the same checkpoint by the same command lines, which results/sweep/NAME.json tells; what the runs print goes to
NAME.log beside it. Leaves results/sweep.md and .json, as scripts.summary writes them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import commandline
import config as config_module
from commandline import Parser
from config import FIELDS, MODES, PROGRAM, Command, integer, reads, words_for
from dataset import registry
from scripts import summary
from utils import CommandError, exit_status, file_hash, read_json, write_json

PROG = "python -m scripts.sweep"
SUITE = Path(__file__).resolve().parents[1]
MEASURES = ("classification", "disentanglement", "latent_quality", "nll")
# measure -> the modes and programs that make its result file, in order
STEPS = {
    "classification": ("save_latent", "train_classifier.py"),
    "disentanglement": ("save_latent", "eval_disentanglement.py"),
    "latent_quality": ("latent_quality",),
    "nll": ("nll",),
}
NEEDS = {"classification": "an encoder and labels", "disentanglement": "an encoder and labels of factors",
         "latent_quality": "--model diff and images", "nll": "--model vanilla, or diff with --z_dropout 0.1"}


class Run(NamedTuple):
    """One training of the sweep: its parsed command line."""

    command: Command

    @property
    def results(self) -> Path:
        return config_module.folder(self.command.config, "results")

    @property
    def checkpoints(self) -> Path:
        return config_module.folder(self.command.config, "models")

    def words(self, step: str) -> list[str]:
        """The command line of a mode or a program for this run: of the typed flags those that it reads."""
        row = MODES.get(step, PROGRAM)
        words = ["run.py", "--mode", step] if step in MODES else [step]
        for item in FIELDS.values():
            if item.name in self.command.by_hand and reads(row, step, item.name) and item.name != "epochs":
                words += config_module.typed(item.name, getattr(self.command.config, item.name))
        return words + (["--epochs", str(self.command.config.epochs)] if step == "train" else [])


def swept_flags() -> dict[str, object]:
    """Flags of a model or of its training, by name; the seed is swept by --seeds."""
    return {name: item for name, item in FIELDS.items()
            if item.metadata["kind"] in ("model", "training") and name not in ("tag", "r_seed")}


def parse(words: list[str]) -> tuple[argparse.Namespace, dict[str, list[str]], list[str]]:
    """The sweep's own flags, the values of each swept flag, and the words that belong to every run."""
    own, shared = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = Parser(prog=PROG, description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=integer(1, 1000), default=1, help="seeds 0, 1 ... of each setting (default: 1)")
    parser.add_argument("--jobs", type=integer(1, 64), default=1, help="runs at a time (default: 1)")
    parser.add_argument("--measure", nargs="+", choices=MEASURES, metavar="NAME",
                        help=f"what is measured: {', '.join(MEASURES)} (default: what the model and its labels allow)")
    parser.add_argument("--output", type=Path, default=Path("results/sweep"), metavar="PATH",
                        help="the table's files, without .md and .json (default: results/sweep)")
    group = parser.add_argument_group("swept over the values given")
    for name, item in swept_flags().items():
        group.add_argument(f"--{name}", nargs="+", metavar="VALUE", default=argparse.SUPPRESS,
                           help=words_for(item.metadata["help"], "training").replace("%", "%%"))
    args = parser.parse_args(own)
    swept = {name: vars(args)[name] for name in swept_flags() if name in vars(args)}
    return args, swept, shared


def runs_of(swept: dict[str, list[str]], seeds: int, shared: list[str], wanted: list[str] | None = None) -> list[Run]:
    """Every combination of values and seeds. Raises CommandError for a wrong flag, before anything runs."""
    found = []
    if commandline.value_of(shared, "--from"):
        raise CommandError("--from is one trained model, and a sweep trains others: give the model's flags instead")
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
        every = itertools.chain(*STEPS.values())
        base = commandline.parse(["--mode", "train", *shared, *words], PROG, registry.SPECS, also=every)
        if base.config.dry_run:
            raise CommandError("--dry_run is for a single run: a sweep has none")
        measures = measures_of(Run(base), wanted)
        if not measures:
            raise CommandError(f"{base.config.experiment} has nothing to measure: "
                               f"{'; '.join(f'{name} needs {need}' for name, need in NEEDS.items())}")
        steps = [step for measure in measures for step in STEPS[measure]]
        # what the experiment's name does not tell, the tag does
        named = [f"{name}{value}" for name, value in chosen.items() if swept_flags()[name].metadata["kind"] != "model"]
        for seed in range(seeds):
            tag = "-".join(filter(None, (base.config.tag, *named, f"seed{seed}")))
            typed = ["--mode", "train", *shared, *words, "--r_seed", str(seed), "--tag", tag]
            found.append(Run(commandline.parse(typed, PROG, registry.SPECS, also=steps)))
    return found


def measures_of(run: Run, wanted: list[str] | None) -> list[str]:
    """The measures that a run's model and data have. Raises CommandError for one that was asked for and is none."""
    config = run.command.config
    spec = registry.SPECS[config.dataset]
    encodes, images = config.has_latent and not spec.gives_z, spec.kind == "image"
    able = {"classification": encodes and spec.labels != "none",
            "disentanglement": encodes and spec.labels == "factors",
            "latent_quality": images and config.model == "diff",
            "nll": config.model == "vanilla" or (config.model == "diff" and config.z_dropout > 0)}
    for name in wanted or ():
        if not able[name]:
            raise CommandError(f"--measure {name} cannot be of {config.experiment}: it needs {NEEDS[name]}")
    return [name for name in wanted or MEASURES if able[name]]


def carry_out(run: Run, wanted: list[str] | None, threads: int) -> str:
    """Train and measure one run. Returns what went wrong, or ''."""
    config = run.command.config
    name = config.experiment
    log = Path("results", "sweep", name.replace("/", "-") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    if failed := _step(run, "train", log, threads):
        return failed
    from experiment.checkpoint import checkpoints, stored_config

    there = stored_config(run.checkpoints / "last.pth")
    if (there.epochs, there.max_steps) != (config.epochs, config.max_steps):
        return (f"{name}: {run.checkpoints} holds a run of --epochs {there.epochs}, not of {config.epochs}: "
                f"add --tag NAME")
    newest = file_hash(checkpoints(run.checkpoints)[0])
    notes = log.with_suffix(".json")
    known = read_json(notes) if notes.exists() else {}
    done = set()  # steps that measures share
    for measure in measures_of(run, wanted):
        if known.get(measure) == _made(run, measure, newest):
            continue
        for step in [step for step in STEPS[measure] if step not in done]:
            if failed := _step(run, step, log, threads):
                return failed
            done.add(step)
        known[measure] = _made(run, measure, newest)
        write_json(notes, known)
    return ""


def _made(run: Run, measure: str, checkpoint: str) -> dict:
    """What a measurement is made by, the hash of what it is of, and what it left: of a kept one all are the same."""
    results = sorted(run.results.glob(f"{measure}*.json"))
    return {"commands": [" ".join(run.words(step)) for step in STEPS[measure]], "checkpoint": checkpoint,
            "results": {path.name: file_hash(path) for path in results}}


def _step(run: Run, step: str, log: Path, threads: int) -> str:
    """Carry out a mode or a program. Returns what went wrong, or ''."""
    words = run.words(step)
    with open(log, "a") as file:
        print("+", *words, file=file, flush=True)
        done = subprocess.run([sys.executable, str(SUITE / words[0]), *words[1:]], stdout=file, stderr=file,
                              env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if done.returncode:
        return f"{run.command.config.experiment}: {step} ended with status {done.returncode}: see {log}"
    return ""


def _run(argv: list[str]) -> int:
    args, swept, shared = parse(argv)
    runs = runs_of(swept, args.seeds, shared, args.measure)
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        ends = pool.map(lambda run: carry_out(run, args.measure, threads), runs)
        ends = list(tqdm(ends, total=len(runs), desc="sweep", unit="run"))
    failed = list(filter(None, ends))
    for line in failed:
        print(line, file=sys.stderr)
    folders = [run.results for run, end in zip(runs, ends, strict=True) if not end and run.results.is_dir()]
    if not folders:
        raise CommandError("no run of the sweep left a result")
    print(summary.write(folders, args.output))
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status."""
    return exit_status(PROG, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
