"""The mode `mutual_info`: an interval that contains I(x; z), then what the model's denoiser makes of z.

The interval comes from codes alone (`information/interval.py`) and is there in seconds, for any encoder and for a file
of codes; the denoiser's forms follow under their own name, usable information (`usable.py`).
"""

from __future__ import annotations

from pathlib import Path

import config as config_module
import distributed
import plots
from config import Command, Config
from experiment import Trained, open_trained
from experiment.intervals import Latent, codes_of_file, codes_of_model, given_latent, latents_of
from experiment.measuring import Sample, provenance
from information.interval import check_order, check_taus
from modes.by_logsnr import curves
from modes.usable import usable_information, why_not
from utils import (
    check_writable,
    file_hash,
    markdown_table,
    read_json,
    refuse_other_inputs,
    to_its_error,
    versions,
    write_json,
)


def mutual_info(command: Command) -> None:
    """Mode `mutual_info`."""
    if not distributed.is_main():
        return
    if not command.config.codes:
        measure_information(open_trained(command))
    for path in map(Path, command.config.codes):
        measure_codes(command.config, path)


def measure_codes(config: Config, path: Path) -> None:
    """The interval of a file of codes; leaves results/codes-NAME/mutual_info.json and figures."""
    codes = codes_of_file(path, config.num_images, config.r_seed)
    folder = Path(config.result_folder, f"codes-{path.parent.name if path.stem == 'latents' else path.stem}")
    result = folder / "mutual_info.json"
    check_writable(folder)
    if result.exists():
        refuse_other_inputs(result, [read_json(result).get("codes")], [path])
    latents = latents_of(codes, config.tau, config.r_seed, config.prior == "regular")
    record = {"mode": "mutual_info", "codes": str(path), "codes_hash": file_hash(path), "seed": config.r_seed,
              "config": config_module.to_dict(config), "versions": versions(), "split": "file"}
    report(record | interval_record(latents), result, config.format)


def measure_information(trained: Trained) -> None:
    """Bracket I(x; z) and measure what the denoiser uses; leaves results/EXP/mutual_info.json and figures beside it.

    A stochastic encoder's z is sampled; a deterministic encoder's gets noise of each --tau. The interval is written
    before a denoiser is asked.
    """
    config, model = trained.config, trained.model
    result = trained.results("mutual_info.json")
    split = config.split or "test"
    sample = Sample.of(trained, split)
    latents = latents_of_model(trained, sample)
    record = {"mode": "mutual_info", **provenance(trained), "split": split, "exact_nats": sample.dataset.exact_mi,
              "entropy_nats": sample.dataset.spec.entropy}
    record |= interval_record(latents)
    if config.curve_steps:
        if latents[0].bracket is not None:
            report(record, result, config.format)
        record["by_logsnr"], maps = curves(trained, sample, latents)
        if maps.found:
            record["maps"] = maps.write(result.with_name("information_maps.npz"))
    missing = why_not(config, model)
    if missing:
        report({**record, "usable": f"not measured: {missing}"}, result, config.format)
        return
    if latents[0].bracket is not None:
        report(record, result, config.format)
        print("\nUsable by this denoiser, which is no estimate of I(x; z) unless the denoiser is near ideal:")
    usable = usable_information(trained, sample, latents)
    if usable.maps is not None:
        record["usable_maps"] = usable.maps.write(result.with_name("usable_maps.npz"))
    report(with_usable(record, latents, usable), result, config.format)


def latents_of_model(trained: Trained, sample: Sample) -> list[Latent]:
    """The latents that are measured, the least noisy first; where the data set gives z, that one."""
    config = trained.config
    if sample.dataset.given is not None:
        return [given_latent(trained, sample)]
    return latents_of(codes_of_model(trained, sample.split), config.tau, config.r_seed, config.prior == "regular")


def interval_record(latents: list[Latent]) -> dict:
    """What a result file says of the intervals, with their checks."""
    parts = [latent.part() for latent in latents]
    checks = [check_order(latent.name, latent.bracket) for latent in latents if latent.bracket]
    if len(latents) > 1:
        checks.append(check_taus([latent.tau for latent in latents], [latent.bracket for latent in latents]))
    return {"num_images": len(latents[0].z), **parts[0], "over_tau": parts if latents[0].tau is not None else None,
            "checks": [vars(check) for check in checks]}


def with_usable(record: dict, latents: list[Latent], usable) -> dict:
    """The record with the denoiser's forms of every latent."""
    parts = record["over_tau"] or [{}]
    more, checks = zip(*(usable.part(i, latent) for i, latent in enumerate(latents)), strict=True)
    parts = [{**part, **found} for part, found in zip(parts, more, strict=True)]
    relied = None if usable.relied is None else [one._asdict() for one in usable.relied]
    return {
        **record, **parts[0], **usable.shared, "over_tau": parts if record["over_tau"] else None,
        "checks": record["checks"] + [vars(check) for part in checks for check in part], "reliance_nats": relied,
        "curves": {latent.name: found.gap.columns()
                   for latent, found in zip(latents, usable.forms, strict=True)},
    }


def report(record: dict, path: Path, form: str) -> None:
    """Write a record and print it, then draw it."""
    write_json(path, record)
    if "range" in record:
        print(f"{record['range']}; at most {record['lost_below_range_nats']:.2f} nats of I(x; z) lie below")
        if record["reference"]["note"]:
            print(record["reference"]["note"])
    elif "usable" in record:
        print(f"usable information {record['usable']}")
    print(information_table(record))
    if "by_logsnr" in record:
        print(curve_table(record["by_logsnr"]))
    for key, title in (("maps", "where the information lies"), ("usable_maps", "where this denoiser uses z")):
        if key in record:
            print(f"\n{title}, {key}:\n" + map_table(record[key]["of"]))
    print(f"results: {path}", flush=True)
    plots.information_figures(record, path.parent, form)


def information_table(record: dict) -> str:
    """The intervals of mutual_info.json, the denoiser's forms where they were measured, and the checks, as tables."""
    head = ["tau", "I(x; z), interval", "lower", "upper", "by", "log N"]
    used = record.get("usable_nats") is not None
    head += ["usable: difference", "usable: orthogonal", "inside"] if used else []
    rows = []
    for part in record["over_tau"] or [record]:
        rows.append(["-" if part["tau"] is None else f"{part['tau']:g}", *_interval_cells(part["bracket_nats"])])
        if used:
            forms = part["usable_nats"]
            rows[-1] += [f"{forms[name]:.3f} +- {forms[f'{name}_se']:.3f}" for name in ("difference", "orthogonal")]
            rows[-1].append({None: "-", True: "yes", False: "NO"}[forms["inside"]])
    text = markdown_table(head, rows)
    if record.get("exact_nats") is not None:
        text += f"\n\nexact: {record['exact_nats']:.4f} nats"
    results = [[check["name"], "passed" if check["passed"] else "VIOLATED", check["detail"]]
               for check in record["checks"]]
    return text + ("\n\n" + markdown_table(["check", "result", "detail"], results) if results else "")


def curve_table(found: dict[str, dict]) -> str:
    """The curves of mutual_info.json over log-SNR: a row a log-SNR, a column a curve; beside it the exact one, and how
    far below that the bound lies."""
    head, columns = ["log-SNR"], []
    for name, curve in found.items():
        more = [(key, key, f"{key}_se") for key in ("exact", "gap") if key in curve]
        for title, key, error in [(f"I(x_a; {name}) >=", "nats", "se"), *more]:
            head.append(title)
            columns.append([f"{nats:.3f} +- {se:.3f}" for nats, se in zip(curve[key], curve[error], strict=True)])
    first = [f"{a:.1f}" for a in next(iter(found.values()))["logsnr"]]
    return markdown_table(head, [list(row) for row in zip(first, *columns, strict=True)])


def map_table(found: dict[str, dict]) -> str:
    """The sum of every map, and where masks are known the share of it on each."""
    regions = list(next((one["share_on"] for one in found.values() if "share_on" in one), {}))
    rows = []
    for name, one in found.items():
        shares = one.get("share_on")
        clear = shares and one["nats"] > 2 * one["se"]  # shares of what may be nothing say nothing
        rows.append([name, " +- ".join(to_its_error(one["nats"], one["se"]))])
        rows[-1] += [f"{shares[region]['mean']:.1%} +- {shares[region]['se']:.1%}" if clear else "-"
                     for region in regions]
    return markdown_table(["map of", "sum, nats", *(f"on the {region}" for region in regions)], rows)


def _interval_cells(found: dict | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    low, high = found["interval"]
    notes = [f"{found['measured_rows']} rows only"] if found.get("few") else []
    notes += ["saturated"] * found["saturated"]
    note = f" ({', '.join(notes)})" if notes else ""
    return [f"{low:.2f} .. {high:.2f}{note}", f"{found['lower']:.3f} +- {found['lower_se']:.3f}",
            f"{found['upper']:.3f} +- {found['upper_se']:.3f}", found["upper_by"], f"{found['log_n']:.2f}"]
