"""Figures and tables of the measuring modes, drawn from what stands in their result files: curves over log-SNR,
the bounds, densities of the plane, and the information in z.

A curve is a dict of lists {'logsnr', 'mean', 'se', 'nats'}, as `columns` makes it from a `density.Profile`; curves of
errors carry 'gap' and 'gap_se' too, how far they lie below the Gaussian's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import plots

REFERENCE = "gaussian"


def columns(profile) -> dict[str, list[float]]:
    """A density.Profile as it stands in a result file."""
    return {name: value.tolist() for name, value in vars(profile).items()}


def _band(panel, curve: dict, scale: float = 1.0, **style) -> None:
    """A curve with two standard errors on either side."""
    x, y, se = (np.asarray(curve[name]) for name in ("logsnr", "mean", "se"))
    line = panel.plot(x, scale * y, **style)[0]
    panel.fill_between(x, scale * (y - 2 * se), scale * (y + 2 * se), color=line.get_color(), alpha=0.2, linewidth=0)


def errors(shapes: dict[str, dict], path: str | Path, title: str) -> None:
    """Squared noise errors over log-SNR beside the Gaussian's, and how far below it they lie.

    shapes  name -> curve; the reference is 'gaussian', or has a name that ends so
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve in shapes.items():
        if name.endswith(REFERENCE):
            _band(left, curve, color="black", linestyle="--", label=name)
        else:
            _band(left, curve, label=name)
            _band(right, {"logsnr": curve["logsnr"], "mean": curve["gap"], "se": curve["gap_se"]}, label=name)
    left.set(title=title, xlabel="log-SNR", ylabel="E |eps - eps_hat|$^2$")
    right.axhline(0, color="black", linewidth=0.8)
    right.set(title="gap below the Gaussian: twice the nats gained", xlabel="log-SNR")
    left.legend(frameon=False, fontsize=8)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    plots.save(figure, path)


def density(axes, log_density, points, samples, path: str | Path) -> None:
    """log p over a grid, [n, m] along axes ([n], [m]), beside held-out points and the model's samples, [N, 2] each."""
    x, y = (np.asarray(axis) for axis in axes)
    values = np.asarray(log_density).T
    top = np.ceil(2 * values.max()) / 2
    levels = np.linspace(top - 8, top, 17)
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    filled = panels[0].contourf(x, y, values, levels=levels, extend="min", cmap="viridis")
    figure.colorbar(filled, ax=panels[0], label="nats", shrink=0.8)
    panels[0].set_title("log p of the model")
    clouds = {"held-out points": points, "the model's samples": samples}
    for panel, (title, cloud) in zip(panels[1:], clouds.items(), strict=True):
        panel.scatter(*np.asarray(cloud).T, s=2, alpha=0.5, linewidths=0)
        panel.set_title(title)
    for panel in panels:
        panel.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")
    plots.save(figure, path)


def information(record: dict, folder: str | Path) -> None:
    """The figures of one mutual_info.json: over log-SNR, over tau where there is one, per latent dimension."""
    folder = Path(folder)
    figure, panel = plots.axes("Where along log-SNR x gains from z", "log-SNR", "nats per unit of log-SNR")
    for name, curve in record["curves"].items():
        _band(panel, curve, scale=0.5, label=name)
    panel.axhline(0, color="black", linewidth=0.8)
    panel.legend(frameon=False, fontsize=8)
    plots.save(figure, folder / "mutual_info_logsnr.png")
    if record["over_tau"]:
        over_tau(record["over_tau"], folder / "mutual_info_tau.png")
    if record.get("iq_per_dimension_nats"):
        per_dimension(record, folder / "mutual_info_dimensions.png")


def over_tau(parts: list[dict], path: str | Path) -> None:
    """I(x; z + noise) as the noise shrinks, by every estimate, with the limit of I_q."""
    taus = [part["tau"] for part in parts]
    series = {}
    for name, key in (("difference", "difference"), ("orthogonal", "orthogonal"), ("I_q of the encoder", "iq")):
        values, errors_ = [part[f"{key}_nats"] for part in parts], [part[f"{key}_se"] for part in parts]
        series[name] = (taus, values, errors_)
    series["log N, where I_q saturates"] = (taus, [part["iq_limit_nats"] for part in parts])
    plots.lines(series, path, "I(x; z + tau noise)", "tau, in deviations of z", "nats", logx=True)


def per_dimension(record: dict, path: str | Path) -> None:
    """Each entry of z: what the encoder puts there, and what the denoiser loses without it."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    values = record["iq_per_dimension_nats"]
    left.bar(range(len(values)), values)
    left.set(title="I_q of each latent dimension alone", xlabel="dimension", ylabel="nats")
    if record["reliance_nats"]:
        means, errors_ = ([one[key] for one in record["reliance_nats"]] for key in ("mean", "se"))
        right.bar(range(len(means)), means, yerr=2 * np.asarray(errors_), error_kw={"linewidth": 0.8})
    right.set(title="nats lost when it comes from another image", xlabel="dimension")
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    plots.save(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# Tables in Markdown


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def bounds_table(entries: list[dict], names: list[str] | None = None) -> str:
    """Entries of nll.json as a table; `names` of their experiments, one an entry, where they are of several."""
    head = ["bound", "branch", "nats", "SE", "bits/dim", "log-SNR", "tails", "chosen on", "reported on"]
    exact = any("excess_nats" in entry for entry in entries)
    rows = []
    for i, entry in enumerate(entries):
        key = "nll" if "nll_nats" in entry else "nll_lattice"
        row = [entry["bound"], entry["branch"], f"{entry[f'{key}_nats']:.4f}", f"{entry['se_nats']:.4f}",
               f"{entry[f'{key}_bpd']:.4f}", f"{entry['low']:.1f} .. {entry['high']:.1f}", entry["tails"],
               entry["chosen_on"] or "-", entry["reported_on"]]  # fmt: skip
        if exact:
            row.append(f"{entry['excess_nats']:.4f} +- {entry['excess_se']:.4f}" if "excess_nats" in entry else "-")
        rows.append(([names[i]] if names else []) + row)
    return _table((["experiment"] if names else []) + head + (["excess over exact"] if exact else []), rows)


def information_table(record: dict) -> str:
    """Estimates of mutual_info.json and its checks as two tables."""
    keys = {"difference": "difference", "orthogonal": "orthogonal", "I_q": "iq", "I_q, leave-one-out": "iq_upper",
            "rate": "rate", "KL(q(z) || p(z))": "marginal_kl"}  # fmt: skip
    parts = record["over_tau"] or [record]
    head = ["tau"] + [label for label, key in keys.items() if f"{key}_nats" in parts[0]]
    rows = []
    for part in parts:
        row = ["-" if part["tau"] is None else f"{part['tau']:g}"]
        rows.append(row + [f"{part[f'{key}_nats']:.3f} +- {part[f'{key}_se']:.3f}" for key in keys.values()
                           if f"{key}_nats" in part])  # fmt: skip
    text = _table(head, rows)
    if record["exact_nats"] is not None:
        text += f"\n\nexact: {record['exact_nats']:.4f} nats"
    results = [[check["name"], "passed" if check["passed"] else "VIOLATED", check["detail"]]
               for check in record["checks"]]  # fmt: skip
    return text + "\n\n" + _table(["check", "result", "detail"], results)
