"""Frechet distance of a trained model's samples against the steps of the sampler, for ddpm, ddim and dpmpp:

    python -m scripts.compare_samplers --model vanilla --dataset digits --sampling_number 5000 [the experiment's flags]

Every sampler draws the same numbered samples from the same x_T. The distance is to the test split, between features of
the image classifier of the set (train_classifier.py --images); the training split's own distance to it is the floor.
--spacing is for ddim and dpmpp: ddpm's steps are even in time, as published. Writes results/EXP/samplers.json and .png.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import config as config_module
from dataset import registry
from utils import CommandError, check_writable, exit_status, versions, write_json

PROG = "python -m scripts.compare_samplers"


def _flags(group) -> None:
    steps = config_module.integer(2)
    group.add_argument("--steps", type=steps, nargs="+", default=[5, 10, 20, 50, 100],
                       help="steps of ddim and dpmpp (default: 5 10 20 50 100)")
    group.add_argument("--ddpm_steps", type=steps, nargs="+", default=[50, 100, 1000],
                       help="steps of ddpm (default: 50 100 1000)")
    group.add_argument("--classifier", metavar="PATH",
                       help="checkpoint of the image classifier (default: {model_folder}/DATASET_classifier.pth)")


def settings_of(own, total: int) -> list[tuple[str, int]]:
    """(sampler, steps) of every point of the figure; no more steps than the model's schedule has."""
    asked = {"ddpm": own.ddpm_steps, "ddim": own.steps, "dpmpp": own.steps}
    wanted = [(sampler, steps) for sampler in asked for steps in asked[sampler] if steps <= total]
    if not wanted:
        raise CommandError(f"--steps and --ddpm_steps: the model's schedule has {total} steps and no more")
    return wanted


def samples_of(trained, sampler: str, steps: int):
    """The samples numbered 0 .. --sampling_number - 1 as `fid.Images`, drawn when they are read."""
    import torch

    import plots
    from metrics import fid
    from modes import samples
    from rng import Rng

    spacing = "time" if sampler == "ddpm" else trained.config.spacing
    config = replace(trained.config, sampler=sampler, sample_steps=steps, spacing=spacing, deterministic=False)
    draw, _ = samples.drawer(replace(trained, config=config), phases=False)

    def read(numbers):
        x = draw(Rng(config.r_seed, torch.from_numpy(numbers).to(trained.device)))
        return plots.to_uint8(x).transpose(0, 3, 1, 2)  # [B, C, H, W]

    return fid.Images(f"{sampler}, {steps} steps", config.sampling_number, trained.model.shape, read)


def compare(command: config_module.Command, own) -> None:
    import plots
    from experiment import open_trained
    from metrics import extractors, fid

    trained = open_trained(command)
    config = trained.config
    folder = config_module.folder(config, "results")
    check_writable(folder)
    path = own.classifier or Path(config.model_folder) / f"{config.dataset}_classifier.pth"
    extractor = extractors.classifier(path, trained.device)
    settings = settings_of(own, trained.model.schedule.steps)
    test, train = (
        fid.measure(fid.dataset_images(config.dataset, config.data_dir, split, extractor.channels), extractor)
        for split in ("test", "train")
    )
    rows = []
    for sampler, steps in settings:
        measured = fid.measure(samples_of(trained, sampler, steps), extractor, config.batch_size)
        rows.append({"sampler": sampler, "steps": steps, **fid.compare(test, measured)})
        print(f"{sampler:5} {steps:4} steps: {rows[-1]['fid']:.4g}{with_error(rows[-1]['fid_se'])}", flush=True)
    floor = fid.compare(test, train)["fid"]
    record = {"rows": rows, "floor": floor, "seed": config.r_seed, "spacing": config.spacing, "versions": versions(),
              "verdict": verdict(rows), **trained.provenance()}
    write_json(folder / "samplers.json", record)
    draw_curves(plots, rows, floor, folder / "samplers.png", f"{config.sampling_number} samples of {config.experiment}")
    print(f"training split: {floor:.4g}")
    if record["verdict"]:
        print("dpmpp at {dpmpp_steps} steps against ddpm at {ddpm_steps}: {difference:+.4g} ± {difference_se:.2g}"
              .format(**record["verdict"]))
    print(f"-> {folder / 'samplers.json'}, {folder / 'samplers.png'}")


def with_error(se: float | None) -> str:
    return "" if se is None else f" ± {se:.2g}"


def verdict(rows: list[dict]) -> dict | None:
    """dpmpp at 20 steps against ddpm at its most, where both were measured with an error.

    The samples share x_T, so the error of the difference, which takes them for independent, is on the safe side.
    """
    quick = [row for row in rows if row["sampler"] == "dpmpp" and row["steps"] == 20]
    slow = [row for row in rows if row["sampler"] == "ddpm"]
    if not quick or not slow or quick[0]["fid_se"] is None:
        return None
    quick, slow = quick[0], max(slow, key=lambda row: row["steps"])
    return {"dpmpp_steps": quick["steps"], "ddpm_steps": slow["steps"], "difference": quick["fid"] - slow["fid"],
            "difference_se": (quick["fid_se"] ** 2 + slow["fid_se"] ** 2) ** 0.5}


def draw_curves(plots, rows: list[dict], floor: float, path: Path, title: str) -> None:
    series = {}
    for sampler in dict.fromkeys(row["sampler"] for row in rows):
        own = sorted((row["steps"], row["fid"], row["fid_se"] or 0.0) for row in rows if row["sampler"] == sampler)
        series[sampler] = tuple(zip(*own, strict=True))
    ends = [min(row["steps"] for row in rows), max(row["steps"] for row in rows)]
    series["training split"] = (ends, [floor, floor])
    plots.lines(series, path, title, "steps of the sampler", "Frechet distance to the test split", logx=True, logy=True)


def _run(argv: list[str]) -> None:
    if "--from" in argv:
        from experiment import expand_from

        argv = expand_from(argv)
    command, own = config_module.parse(["--mode", "eval", *argv], PROG, registry.SPECS, extra=_flags)
    if command.config.model == "vae":
        raise CommandError("--model vae has no sampler: diff or vanilla")
    if registry.SPECS[command.config.dataset].kind == "points":
        raise CommandError(f"--dataset {command.config.dataset} has points: a classifier takes images")
    if command.config.sampling_number < 2:
        raise CommandError("--sampling_number: a covariance needs two samples or more, thousands to say anything")
    compare(command, own)


def main(argv: list[str] | None = None) -> int:
    """Run the program. Returns the exit status: 0, or 2 after one line on stderr."""
    return exit_status(PROG, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
