"""Figures and tables from result files:  python -m scripts.plot_results results/EXP [...] [--output DIR] [--by FLAG]

Takes nll.json and mutual_info.json files, or folders that are searched for them, and leaves in --output

    errors.png          error curves of all nll.json beside the Gaussian's
    bounds.md           all bounds, a row each
    training.png        training and validation loss of the same experiments, from their metrics.jsonl
    information.md      every mutual_info.json: the interval of I(x; z), what the denoiser uses, the checks
    information.png     the same, a row an experiment; or over the flag --by, e.g. --by mmd_weight, or over the training
                        step of the checkpoint, --by step. Noisy latents have the least tau that all of them were
                        measured at
    information_tau.png bounds of I(x; z + noise) over the deviation of the noise, where the encoder is deterministic
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import config as config_module
import plots
from modes.mutual_info import information_table
from modes.nll import bounds_table
from utils import CommandError, atomic, read_json

PROG = "python -m scripts.plot_results"
STEP = "step"  # of --by: no flag, but how long the checkpoint was trained


def gather(places: list[str]) -> list[dict]:
    """The records of all result files named, or lying below the folders named; a folder without any is named."""
    files, empty = [], []
    for place in map(Path, places):
        found = [place] if place.is_file() else sorted([*place.rglob("nll.json"), *place.rglob("mutual_info.json")])
        if not found:
            empty.append(f"{place} is no result file, and no folder with nll.json or mutual_info.json in it")
        if not place.exists():
            raise CommandError(empty[-1])
        files += found
    if not files:
        raise CommandError("; ".join(empty))
    for line in empty:
        print(f"{line}: left out", file=sys.stderr)
    records = [{"file": file, **read_json(file)} for file in dict.fromkeys(files)]
    for record in records:
        if record.get("mode") not in ("nll", "mutual_info"):
            raise CommandError(f"{record['file']} was not written by --mode nll or --mode mutual_info")
        record["config"] = config_module.Config(**record["config"])
        record["name"] = record["file"].parent.name if record.get("codes") else record["config"].experiment
    for mode in ("nll", "mutual_info"):  # the same experiment twice, by its file
        own = [record for record in records if record["mode"] == mode]
        twice = {name for name, count in Counter(record["name"] for record in own).items() if count > 1}
        for record in own:
            record["name"] += f" ({record['file'].parent})" if record["name"] in twice else ""
    return records


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text + "\n")


def draw_bounds(records: list[dict], output: Path) -> None:
    """Error curves and bounds of the nll.json records."""
    shapes, rows, names = {}, [], []
    for record in records:
        name = record["name"]
        shapes |= {f"{name}, {branch}": curve for branch, curve in record["curves"].items()}
        rows, names = rows + record["entries"], names + [name] * len(record["entries"])
    plots.error_curves(shapes, output / "errors.png", "denoising error")
    write_text(output / "bounds.md", bounds_table(rows, names))


def draw_training(records: list[dict], output: Path) -> None:
    """Training and validation loss of the experiments whose logs are where their config says, each once.

    Files of codes are no experiments, and have no log.
    """
    series, units = {}, set()
    configs = [record["config"] for record in records if not record.get("codes")]
    for config in {config.experiment: config for config in configs}.values():
        metrics = config_module.folder(config, "logs") / "metrics.jsonl"
        if not metrics.exists():
            print(f"no {metrics}: {config.experiment} is left out of training.png", file=sys.stderr)
            continue
        lines, term = plots.read_log(metrics), "reconstruction" if config.model == "vae" else "denoise"
        epochs = [line["epoch"] for line in lines]
        series[f"{config.experiment}, training"] = (epochs, [line["train"][term] for line in lines])
        held_out, errors = ([line[part][term] for line in lines] for part in ("val", "val_se"))
        series[f"{config.experiment}, validation"] = (epochs, held_out, errors)
        units |= {line["unit"] for line in lines}
    if series:
        plots.lines(series, output / "training.png", "denoising, or reconstruction", "epoch",
                    " or ".join(sorted(units)))


def place_of(record: dict, by: str) -> float:
    """Where on the axis of information.png a record stands."""
    place = record["step"] if by == STEP else getattr(record["config"], by)
    if not isinstance(place, int | float):
        raise CommandError(f"--by {by}: {place!r} of {record['name']} is no number")
    return place


def at_one_tau(records: list[dict]) -> tuple[list[dict], float | None]:
    """Of every record the part at one tau, and that tau: the least that all noisy latents were measured at.

    A latent without added noise has one part, whatever the tau; where no latent has any, the tau is None. Raises
    CommandError where noisy latents share no tau.
    """
    taus = {record["name"]: [part["tau"] for part in record["over_tau"]] for record in records if record["over_tau"]}
    if not taus:
        return records, None
    shared = set.intersection(*map(set, taus.values()))
    if not shared:
        found = "; ".join(f"{name}: {', '.join(f'{tau:g}' for tau in own)}" for name, own in taus.items())
        raise CommandError(f"information.png needs one --tau that all were measured at ({found})")
    tau = min(shared)
    return [next((part for part in record["over_tau"] or () if part["tau"] == tau), record) for record in records], tau


def draw_information(records: list[dict], output: Path, by: str | None) -> None:
    """Intervals of I(x; z) and usable information, an experiment a place; noisy latents as curves over tau besides."""
    tables = [f"## {record['name']}\n\n{information_table(record)}" for record in records]
    write_text(output / "information.md", "\n\n".join(tables))
    draw_over_tau(records, output)
    draw_beside(records, output / "information.png", by)


def draw_beside(records: list[dict], path: Path, by: str | None) -> None:
    """information.png: a row a record, or over a flag, which files of codes do not have."""
    if by:
        for record in (record for record in records if record.get("codes")):
            print(f"{record['file']} is of codes, which tell no flags: left out of {path.name}", file=sys.stderr)
        records = sorted((record for record in records if not record.get("codes")), key=lambda one: place_of(one, by))
    if not records:
        return
    parts, tau = at_one_tau(records)
    places = [place_of(record, by) if by else i for i, record in enumerate(records)]
    known = [(place, record["exact_nats"]) for place, record in zip(places, records, strict=True)
             if record.get("exact_nats") is not None]
    series = {"I(x; z), exact": tuple(zip(*known, strict=True))} if known else {}
    known = [(place, *part["bracket_nats"]["interval"])
             for place, part in zip(places, parts, strict=True) if part["bracket_nats"]]
    bands = {"I(x; z), interval from codes": tuple(zip(*known, strict=True))} if known else {}
    for label in ("difference", "orthogonal"):
        known = [(place, part["usable_nats"][label], part["usable_nats"][f"{label}_se"])
                 for place, part in zip(places, parts, strict=True) if "usable_nats" in part]
        series |= {f"usable by the denoiser, {label}": tuple(zip(*known, strict=True))} if known else {}
    some = tau is not None and not all(record["over_tau"] for record in records)
    title = "information about x in z" + "\n(noise only where the encoder is deterministic)" * some
    unit = "nats" if tau is None else f"nats, at noise tau {tau:g}"
    if by:
        plots.lines(series, path, title, "training step" if by == STEP else by, unit, logx=min(places) > 0, bands=bands)
    else:
        plots.rows(series, bands, [record["name"] for record in records], path, title, unit)


def draw_over_tau(records: list[dict], output: Path) -> None:
    """information_tau.png, of the noisy latents."""
    noisy = {}  # intervals
    for record in filter(lambda record: record["over_tau"], records):
        taus = [part["tau"] for part in record["over_tau"]]
        noisy[record["name"]] = taus, *zip(*(part["bracket_nats"]["interval"] for part in record["over_tau"]),
                                           strict=True)
    if noisy:
        plots.lines({}, output / "information_tau.png", "I(x; z + tau noise), from .. to", "tau, in deviations of z",
                    "nats", logx=True, bands=noisy)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="result files, or folders that hold them")
    parser.add_argument("--output", type=Path, default=Path("figures"), help="folder of the figures (default: figures)")
    parser.add_argument("--by", choices=(*config_module.names_of("model"), STEP), metavar="FLAG",
                        help="numeric flag of the model to draw information.png over, e.g. mmd_weight; or step")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        records = gather(args.results)
        measured = {mode: [record for record in records if record["mode"] == mode] for mode in ("nll", "mutual_info")}
        if measured["nll"]:
            draw_bounds(measured["nll"], args.output)
        draw_training(records, args.output)
        if measured["mutual_info"]:
            draw_information(measured["mutual_info"], args.output, args.by)
    except CommandError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 2
    print(f"figures: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
