"""Distance of a trained model's samples to the test split against evaluations of the denoiser, for every sampler:

    python -m scripts.compare_samplers --model vanilla --dataset digits --sampling_number 5000 [the experiment's flags]

Every sampler draws the same numbered samples from the same x_T. Two distances:

    fid     Frechet, between features of the image classifier of the set (train_classifier.py --images) of the samples
            and of the test split; the training split's own distance to it is the floor
    path    of deterministic samplers: from the end of the exact flow that starts at the same x_T, relative to its norm

ddpm steps evenly in time, as published; the others on every spacing of --spacings. Writes results/EXP/samplers.json and
samplers.png.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import commandline
import config as config_module
from dataset import registry
from utils import CommandError, check_writable, exit_status, versions, write_json

PROG = "python -m scripts.compare_samplers"
REFERENCE_STEPS = 150  # of the exact flow, fourth order


def _flags(group) -> None:
    steps = config_module.integer(2)
    group.add_argument("--evaluations", type=steps, nargs="+", default=[5, 10, 20],
                       help="of the denoiser, for every sampler but ddpm (default: 5 10 20)")
    group.add_argument("--ddpm_steps", type=steps, nargs="+", default=[50, 1000],
                       help="steps of ddpm (default: 50 1000)")
    group.add_argument("--samplers", nargs="+", choices=list(config_module.SAMPLERS),
                       default=list(config_module.SAMPLERS), help="which (default: all)")
    group.add_argument("--spacings", nargs="+", choices=list(config_module.SPACINGS), default=["time", "logsnr"],
                       help="spacings of all but ddpm (default: time logsnr)")
    group.add_argument("--path_samples", type=steps, default=64, help="samples of the path error (default: 64)")
    group.add_argument("--classifier", metavar="PATH",
                       help="checkpoint of the image classifier (default: {model_folder}/DATASET_classifier.pth)")


def settings_of(own, total: int) -> list[dict]:
    """{sampler, spacing, steps, evaluations} of every point; no more steps than the model's schedule has.

    Heun calls the denoiser twice a step and once in the last: it gets the most steps that keep within the evaluations.
    """
    wanted = []
    for name in own.samplers:
        for spacing in own.spacings if name != "ddpm" else ():
            for n in own.evaluations:
                steps, calls = ((n + 1) // 2, n - 1 + n % 2) if name == "heun" else (n, n)
                wanted.append({"sampler": name, "spacing": spacing, "steps": steps, "evaluations": calls})
    wanted += [{"sampler": "ddpm", "spacing": "time", "steps": n, "evaluations": n} for n in own.ddpm_steps]
    wanted = [row for row in wanted if 2 <= row["steps"] <= total and row["sampler"] in own.samplers and not (
        row["spacing"] == "fitted" and (config_module.SAMPLERS[row["sampler"]].random
                                        or row["steps"] > config_module.FITTED_STEPS))]
    if not wanted:
        raise CommandError(f"--evaluations and --ddpm_steps: the model's schedule has {total} steps and no more")
    return wanted


def drawer_of(trained, row: dict):
    from modes import samples

    config = replace(trained.config, sampler=row["sampler"], sample_steps=row["steps"], spacing=row["spacing"],
                     deterministic=False)
    return samples.drawer(replace(trained, config=config), phases=False)[0]


def samples_of(trained, draw, name: str):
    """The samples numbered 0 .. --sampling_number - 1 as `fid.Images`, drawn when they are read."""
    import torch

    import plots
    from metrics import fid
    from rng import Rng

    def read(numbers):
        x = draw(Rng(trained.config.r_seed, torch.from_numpy(numbers).to(trained.device)))
        return plots.to_uint8(x).transpose(0, 3, 1, 2)  # [B, C, H, W]

    return fid.Images(name, trained.config.sampling_number, trained.model.shape, read)


def path_errors(trained, count: int):
    """A function from a drawer of samples to {'path', 'path_se'}: their mean relative distance to the exact flow's."""
    import torch

    from diffusion import even_grid
    from rng import Rng
    from sampling import generate

    model, rng = trained.model, Rng(trained.config.r_seed, torch.arange(count, device=trained.device))
    levels = model.grid(2)
    exact = generate(model, rng, trained.prior(rng), sampler="deis", order=4, guidance=trained.config.guidance,
                     grid=even_grid(levels[0].item(), levels[-2].item(), REFERENCE_STEPS)).flatten(1)
    scale = exact.norm(dim=1).mean()

    def measure(draw) -> dict[str, float]:
        distance = (draw(rng).flatten(1) - exact).norm(dim=1) / scale
        return {"path": distance.mean().item(), "path_se": distance.std().item() / math.sqrt(count)}

    return measure


def compare(command: config_module.Command, own) -> None:
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
        fid.measure(fid.images_of(trained.load_data(split), extractor.channels), extractor)
        for split in ("test", "train")
    )
    floor, path_error = fid.compare(test, train)["fid"], path_errors(trained, own.path_samples)
    rows = []
    for row in settings:
        draw, name = drawer_of(trained, row), "{sampler}, {spacing}, {evaluations} evaluations".format(**row)
        row |= fid.compare(test, fid.measure(samples_of(trained, draw, name), extractor, config.batch_size))
        row |= {} if config_module.SAMPLERS[row["sampler"]].random else path_error(draw)
        rows.append(row)
        print(f"{name:38} fid {with_error(row, 'fid'):16} path {with_error(row, 'path')}", flush=True)
        record = {"rows": rows, "floor": floor, "seed": config.r_seed, "versions": versions(),
                  "verdict": verdict(rows), **trained.provenance()}
        write_json(folder / "samplers.json", record)
    draw_curves(rows, floor, folder / "samplers.png", f"{config.sampling_number} samples of {config.experiment}")
    print(f"training split: {floor:.4g}")
    if record["verdict"]:
        print("{sampler}, {spacing}, {evaluations} evaluations against ddpm in {ddpm_steps}: {difference:+.4g} ± "
              "{difference_se:.2g}".format(**record["verdict"]))
    print(f"-> {folder / 'samplers.json'}, {folder / 'samplers.png'}")


def with_error(row: dict, name: str) -> str:
    if row.get(name) is None:
        return "-"
    se = row.get(f"{name}_se")
    return f"{row[name]:.4g}" + ("" if se is None else f" ± {se:.2g}")


def verdict(rows: list[dict]) -> dict | None:
    """What comes nearest to the exact flow in 20 evaluations at most, against ddpm at its most, where both have errors.

    The samples share x_T, so the error of the difference, which takes them for independent, is on the safe side.
    """
    quick = [row for row in rows if row["evaluations"] <= 20 and row.get("path") is not None]
    slow = [row for row in rows if row["sampler"] == "ddpm"]
    if not quick or not slow or quick[0]["fid_se"] is None:
        return None
    quick, slow = min(quick, key=lambda row: row["path"]), max(slow, key=lambda row: row["steps"])
    return {**{name: quick[name] for name in ("sampler", "spacing", "evaluations")}, "ddpm_steps": slow["steps"],
            "difference": quick["fid"] - slow["fid"],
            "difference_se": (quick["fid_se"] ** 2 + slow["fid_se"] ** 2) ** 0.5}


def draw_curves(rows: list[dict], floor: float, path: Path, title: str) -> None:
    """A column a spacing; above the Frechet distance (2 standard errors, ddpm as lines), below the path error."""
    import plots

    panels = {}
    slow = [row for row in rows if row["sampler"] == "ddpm"]
    for spacing in dict.fromkeys(row["spacing"] for row in rows if row["sampler"] != "ddpm"):
        for measure in ("fid", "path"):
            series = {}
            for row in rows:
                if row["sampler"] != "ddpm" and row["spacing"] == spacing and row.get(measure) is not None:
                    line = (row["evaluations"], row[measure], row[f"{measure}_se"] or 0.0)
                    series.setdefault(row["sampler"], []).append(line)
            panels[spacing, measure] = {name: tuple(zip(*sorted(own), strict=True)) for name, own in series.items()}
    levels = {f"ddpm, {row['steps']}": row["fid"] for row in slow} | {"training split": floor}
    plots.sampler_panels(panels, levels, path, title)


def _run(argv: list[str]) -> None:
    if commandline.value_of(argv, "--from"):
        from experiment import expand_from

        argv = expand_from(argv)
    command, own = commandline.parse(["--mode", "eval", *argv], PROG, registry.SPECS, extra=_flags)
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
