"""Every picture. Figures are made without pyplot, so that nothing global (style, current figure) is touched."""

from __future__ import annotations

import io
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from utils import atomic, read_npz

DPI = 120  # pixels an inch of a figure


def to_uint8(x) -> np.ndarray:
    """Images in [-1, 1], [B,C,H,W] (a tensor on any device) -> uint8 [B,H,W,C]."""
    pixels = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H,W,C], C 1 or 3 -> the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(content, "PNG")
    return content.getvalue()


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """uint8 [H,W,C], C 1 or 3 -> a PNG file that is whole or absent."""
    with atomic(path) as temporary:
        temporary.write_bytes(png(pixels))


def enlarged(pixels: np.ndarray, shown: int = 64) -> np.ndarray:
    """uint8 [B,H,W,C], each image enlarged by a whole number to `shown` pixels or so, smoothly (bicubic)."""
    count, height, width, channels = pixels.shape
    factor = max(1, shown // max(height, width))
    if factor == 1 or not count:
        return pixels
    size = width * factor, height * factor
    tiles = [np.asarray(Image.fromarray(tile[:, :, 0] if channels == 1 else tile).resize(
        size, Image.Resampling.BICUBIC)) for tile in pixels]
    return np.stack(tiles).reshape(count, size[1], size[0], channels)


def read_png(path: str | Path) -> np.ndarray:
    """A picture of our own: uint8 [H,W,3]."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def sheet(pixels: np.ndarray, columns: int, shown: int = 64, gap: int = 2) -> np.ndarray:
    """uint8 [B,H,W,C] -> one uint8 picture [.,.,C], white between the tiles, each enlarged to `shown` pixels or so."""
    count, channels = len(pixels), pixels.shape[3]
    pixels = enlarged(pixels, shown)
    rows, (height, width) = math.ceil(count / columns), pixels.shape[1:3]
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, tile in enumerate(pixels):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def image_grid(x, path: str | Path, columns: int | None = None) -> None:
    """Images [B,C,H,W] in [-1, 1] as one picture, about square unless the columns are given."""
    write_png(path, sheet(to_uint8(x), columns or math.ceil(math.sqrt(len(x)))))


def labelled_sheet(pixels: np.ndarray, heads: list[str], rows: list[str], title: str, path: str | Path) -> None:
    """uint8 [R * K,H,W,C] as R rows of K tiles: a head above each column, a name beside each row."""
    picture = sheet(pixels, len(heads))
    height, width = picture.shape[0] / len(rows), picture.shape[1] / len(heads)
    tile = (0.7, 0.7 * height / width)  # inches
    beside = 0.25 + 0.065 * max(map(len, rows))
    widest = max(tile[0] * len(heads) + beside, 0.085 * max(map(len, title.split("\n"))))  # no title is cut
    figure = Figure(figsize=(widest + 0.1, tile[1] * len(rows) + 0.65), layout="constrained")
    figure.suptitle(plain(title), fontsize=10)
    panel = figure.add_subplot()
    grey = {"cmap": "gray", "vmin": 0, "vmax": 255}
    panel.imshow(picture[:, :, 0] if picture.shape[2] == 1 else picture, interpolation="nearest", **grey)
    panel.set_xticks([(k + 0.5) * width for k in range(len(heads))], list(map(plain, heads)), fontsize=8)
    panel.set_yticks([(k + 0.5) * height for k in range(len(rows))], list(map(plain, rows)), fontsize=8)
    panel.tick_params(length=0, labelbottom=False, labeltop=True)
    panel.spines[:].set_visible(False)
    save(figure, path)


def save(figure: Figure, path: str | Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def plain(text: str) -> str:
    """Somebody's text, for a figure: dollar signs are no mathematics."""
    return text.replace("$", r"\$")


def axes(title: str, xlabel: str = "", ylabel: str = "", size: tuple[float, float] = (6, 4)):
    """A figure of one panel: (figure, axes)."""
    figure = Figure(figsize=size, layout="constrained")
    panel = figure.add_subplot(title=plain(title), xlabel=plain(xlabel), ylabel=plain(ylabel))
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def say_spread(figure: Figure) -> None:
    """What bars and bands are, in a corner."""
    figure.text(0.995, 0.005, "bars, bands: ±2 standard errors", ha="right", va="bottom", fontsize=6, color="grey")


def read_log(metrics: str | Path) -> list[dict]:
    """The lines of a metrics.jsonl that training wrote; half a line, or what else stands there, is passed over."""
    lines = []
    for line in Path(metrics).read_bytes().splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and {"epoch", "step", "unit", "train"} <= record.keys():
            lines.append(record)
    return lines


VARIES = 1.5  # a term that varies by less than this factor stands on a linear axis
BOUNDS = {"nll_nats": "held-out bound", "nll_given_z_nats": "held-out bound, given z"}  # as training logs them


def training_curve(metrics: str | Path, path: str | Path) -> None:
    """Loss terms over epochs from a metrics.jsonl, training solid and validation dashed, a panel each."""
    lines = read_log(metrics)
    if not lines:
        return
    terms = list(lines[0]["train"])
    figure = Figure(figsize=(3.6 * len(terms), 3.2), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
        epochs = [line["epoch"] for line in lines]
        marker = "." if len(epochs) < 20 else None
        panel.plot(epochs, [line["train"][name] for line in lines], marker=marker, label="training")
        held_out = [line.get("val", {}).get(name) for line in lines]
        if any(value is not None for value in held_out):
            panel.plot(epochs, held_out, "--", marker=marker, label="validation")
        unit = {"denoise": lines[0]["unit"], "loss": "weighted sum of the terms"}.get(name, "")
        for bound, label in BOUNDS.items():
            if name == "denoise" and bound in lines[0].get("val", {}):
                panel.plot(epochs, [line["val"].get(bound) for line in lines], ":", label=label)
        panel.set(title=name, xlabel="epoch", ylabel=unit)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        values = [line["train"][name] for line in lines]
        if 0 < VARIES * min(values) < max(values):
            panel.set_yscale("log")
            panel.yaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5), numticks=9), major_formatter="{x:g}",
                            minor_formatter=NullFormatter())
        panel.legend(frameon=False, fontsize=8, loc="best")
    save(figure, path)


def error_curve(columns: dict[str, list[float]]) -> Figure:
    """A model's squared error over log-SNR beside the Gaussian reference's, as training logs it."""
    figure, panel = axes("held-out error", "log-SNR", "squared error")
    for name in ("model", "gaussian"):
        panel.plot(columns["logsnr"], columns[name], label=name)
    panel.legend(frameon=False)
    return figure


def scatter(points: np.ndarray, path: str | Path, title: str, labels: np.ndarray | None = None,
            names: tuple[str, ...] = (), across: str = "", up: str = "") -> None:
    """Points [N, 2], coloured by their labels [N] where they have some; a few classes are named at their means."""
    figure, panel = axes("", across, up, size=(5.6, 5))
    figure.suptitle(plain(title), fontsize=10)  # over the whole figure: a legend leaves the panel narrow
    if labels is None:
        panel.scatter(*points.T, s=np.clip(4000 / len(points), 2, 40), alpha=0.5, linewidths=0)
    else:
        kinds = np.unique(labels)
        for place, kind in enumerate(kinds):
            name = names[kind] if kind < len(names) else str(kind)
            colour = colormaps["tab10"](place) if len(kinds) <= 10 else colormaps["viridis"](place / (len(kinds) - 1))
            panel.scatter(*points[labels == kind].T, s=8, alpha=0.7, linewidths=0, color=colour, label=plain(name))
            if len(kinds) <= 15:
                panel.text(*points[labels == kind].mean(0), plain(name), fontsize=8, ha="center", va="center",
                           bbox={"facecolor": "white", "edgecolor": colour, "alpha": 0.8, "pad": 1.5})
        if len(kinds) <= 15:
            panel.legend(frameon=False, markerscale=2, fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    panel.set_aspect("equal", adjustable="datalim")
    save(figure, path)


def heat_map(matrix: np.ndarray, rows: list[str], columns: list[str], title: str, path: str | Path) -> None:
    """A matrix [R, C] of values from 0 up, with names on both sides."""
    size = (max(2.5 + 0.5 * len(columns), 0.1 * len(title)), 1.8 + 0.22 * len(rows))
    figure, panel = axes("", size=size)
    figure.suptitle(plain(title), fontsize=11)  # over the whole figure, or it is cut
    picture = panel.imshow(matrix, aspect="auto", cmap="viridis", vmin=0)
    panel.set_xticks(range(len(columns)), list(map(plain, columns)), rotation=45, ha="right", fontsize=8)
    panel.set_yticks(range(len(rows)), list(map(plain, rows)), fontsize=7)
    figure.colorbar(picture)
    save(figure, path)


def lines(series: dict[str, tuple], path: str | Path, title: str, xlabel: str, ylabel: str, logx: bool = False,
          logy: bool = False, bands: dict[str, tuple] | None = None) -> None:
    """Curves by name, each (x, y) or (x, y, standard error), over bands by name, each (x, low, high)."""
    figure, panel = axes(title, xlabel, ylabel)
    for number, (name, (x, low, high)) in enumerate((bands or {}).items()):
        panel.fill_between(x, low, high, color=f"C{9 - number}", alpha=0.4, linewidth=4, label=plain(name))
    for name, (x, y, *error) in series.items():
        if error:
            panel.errorbar(x, y, yerr=2 * np.asarray(error[0]), marker="o", markersize=4, capsize=3, label=plain(name))
        else:
            panel.plot(x, y, marker="o" if len(x) < 20 else None, markersize=4, label=plain(name))
    panel.set_xscale("log" if logx else "linear")
    panel.set_yscale("log" if logy else "linear")
    places = sorted({value for x, *_ in [*series.values(), *(bands or {}).values()] for value in x})
    if not logx and all(isinstance(value, int) for value in places):  # epochs
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if logx and len(places) <= 10:
        panel.set_xticks(places, [f"{value:g}" for value in places])
        panel.minorticks_off()
    count = len(series) + len(bands or {})
    if count > 3:
        figure.set_figheight(4 + 0.19 * count)
        figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    elif count > 1:
        panel.legend(frameon=False, fontsize=8)
    if any(len(curve) > 2 for curve in series.values()):
        say_spread(figure)
    save(figure, path)


def rows(series: dict[str, tuple], intervals: dict[str, tuple], names: list[str], path: str | Path, title: str,
         xlabel: str) -> None:
    """A row a name: intervals, each (rows, low, high), and points, each (rows, x) or (rows, x, standard error)."""
    figure, panel = axes("", xlabel, size=(4.5 + 0.065 * max(map(len, names)), 1.8 + 0.4 * len(names)))
    figure.suptitle(plain(title), fontsize=11)
    for number, (name, (places, low, high)) in enumerate(intervals.items()):
        middle = (np.asarray(low) + high) / 2
        panel.errorbar(middle, places, xerr=np.asarray(high) - middle, fmt="none", color=f"C{9 - number}", linewidth=5,
                       alpha=0.5, label=plain(name))
    for number, (name, (places, x, *error)) in enumerate(series.items()):
        panel.errorbar(x, np.asarray(places) + 0.15 * number, xerr=2 * np.asarray(error[0]) if error else None,
                       fmt="o", markersize=4, capsize=3, label=plain(name))
    panel.set_yticks(range(len(names)), list(map(plain, names)), fontsize=8)
    panel.set_ylim(len(names) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    if any(len(points) > 2 for points in series.values()):
        say_spread(figure)
    save(figure, path)


DASHES = ("-", "--", ":", "-.")


def sampler_panels(panels: dict[tuple[str, str], dict[str, tuple]], levels: dict[str, float], path: str | Path,
                   title: str) -> None:
    """Curves (evaluations, distance, standard error) by sampler, in a panel for each (spacing, 'fid' or 'path').

    levels      distances by name that do not depend on the panel, drawn across every 'fid'
    """
    spacings = list(dict.fromkeys(spacing for spacing, _ in panels))
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    places = sorted({value for series in panels.values() for x, *_ in series.values() for value in x})
    figure = Figure(figsize=(3 * len(spacings) + 2, 5.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(2, len(spacings), squeeze=False, sharex=True, sharey="row")
    for (spacing, measure), series in panels.items():
        panel = grid[("fid", "path").index(measure), spacings.index(spacing)]
        for name, (x, y, se) in series.items():
            panel.errorbar(x, y, yerr=2 * np.asarray(se), marker="o", markersize=3, capsize=2, linewidth=1.2,
                           color=f"C{names.index(name)}", label=name)
        if measure == "fid":
            panel.set_title(f"--spacing {spacing}", fontsize=9)
            for number, (name, level) in enumerate(levels.items()):
                panel.axhline(level, color="grey", linestyle=DASHES[number % len(DASHES)], linewidth=1, label=name)
        else:
            panel.set_xlabel("evaluations of the denoiser")
            panel.set_yscale("log")
        panel.set_xscale("log")
        apart = [value for value, after in pairwise([*places, np.inf]) if after > 1.15 * value]
        panel.set_xticks(apart, [str(value) for value in apart])
        panel.minorticks_off()
    grid[0][0].set_ylabel("Frechet distance to the test split")
    grid[1][0].set_ylabel("distance to the exact flow's end")
    lines = {text: handle for handle, text in zip(*grid[0][0].get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside right center", frameon=False, fontsize=8)
    say_spread(figure)
    save(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# Figures of the measuring modes, drawn from what stands in their result files
#
# A curve is a dict of lists {'logsnr', 'mean', 'se', 'nats'}, as `Profile.columns` makes it; curves of errors carry
# 'gap' and 'gap_se' too, how far they lie below the Gaussian's.

REFERENCE = "gaussian"


def _band(panel, curve: dict, scale: float = 1.0, **style) -> None:
    """A curve with two standard errors on either side."""
    x, y, se = (np.asarray(curve[name]) for name in ("logsnr", "mean", "se"))
    line = panel.plot(x, scale * y, **style)[0]
    panel.fill_between(x, scale * (y - 2 * se), scale * (y + 2 * se), color=line.get_color(), alpha=0.2, linewidth=0)


def error_curves(shapes: dict[str, dict], path: str | Path, title: str) -> None:
    """Squared noise errors over log-SNR beside the Gaussian's, and how far below it they lie.

    shapes  name -> curve; the reference is 'gaussian', or has a name that ends so
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve in shapes.items():
        if name.endswith(REFERENCE):
            _band(left, curve, color="black", linestyle="--", label=plain(name))
        else:
            _band(left, curve, label=plain(name))
            _band(right, {"logsnr": curve["logsnr"], "mean": curve["gap"], "se": curve["gap_se"]}, label=plain(name))
    left.set(title=plain(title), xlabel="log-SNR", ylabel="E |eps - eps_hat|$^2$")
    right.axhline(0, color="black", linewidth=0.8)
    right.set(title="gap below the Gaussian: twice the nats gained", xlabel="log-SNR",
              ylabel="E |eps - eps_G|$^2$ - |eps - eps_hat|$^2$")
    left.legend(frameon=False, fontsize=8, loc="upper left")  # the error rises with log-SNR
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    say_spread(figure)
    save(figure, path)


def density(sides, log_density, points, samples, path: str | Path) -> None:
    """log p over a grid [n, m] with sides [n] and [m], beside held-out points and the model's samples, [N, 2] each."""
    x, y = (np.asarray(axis) for axis in sides)
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
        cloud = np.asarray(cloud)
        panel.scatter(*cloud.T, s=2, alpha=0.5, linewidths=0)
        outside = ((cloud < (x[0], y[0])) | (cloud > (x[-1], y[-1]))).any(1).mean()
        panel.set_title(title + (f" ({outside:.0%} beyond the edges)" if outside >= 0.005 else ""), fontsize=10)
    for panel in panels:
        panel.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal")
    save(figure, path)


def information_figures(record: dict, folder: str | Path, form: str = "png") -> None:
    """The figures of one mutual_info.json: over tau and per latent dimension; over log-SNR what the denoiser uses."""
    folder = Path(folder)
    if record.get("curves"):
        figure, panel = axes("Where along log-SNR the denoiser gains from z", "log-SNR", "nats per unit of log-SNR")
        for name, curve in record["curves"].items():
            _band(panel, curve, scale=0.5, label=name)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.legend(frameon=False, fontsize=8)
        say_spread(figure)
        save(figure, folder / f"mutual_info_logsnr.{form}")
    if record.get("by_logsnr"):
        by_logsnr(record["by_logsnr"], folder / "information.png")
    for key, name, title in (("maps", "information_maps", "Where in the picture the information lies, nats by log-SNR"),
                             ("usable_maps", "usable_maps", "Where this denoiser uses z, nats by log-SNR")):
        if key in record and (folder / f"{name}.npz").exists():
            information_maps(record[key]["of"], read_npz(folder / f"{name}.npz"), title, folder / f"{name}.{form}")
    if record["over_tau"]:
        over_tau(record["over_tau"], folder / f"mutual_info_tau.{form}")
    if record.get("per_dimension_nats"):
        per_dimension(record, folder / f"mutual_info_dimensions.{form}")


def by_logsnr(found: dict[str, dict], path: str | Path) -> None:
    """Lower bounds of I(x_a; z) over log-SNR a, exact curves dashed, and their slopes: where along a x determines z."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, curve in found.items():
        _band(left, {**curve, "mean": curve["nats"]}, label=name)
        if "exact" in curve:
            left.errorbar(curve["logsnr"], curve["exact"], yerr=2 * np.asarray(curve["exact_se"]), fmt="k--",
                          linewidth=1, capsize=2, label=f"{name}, exact")
        _band(right, {"logsnr": curve["slope_at"], "mean": curve["slope"], "se": curve["slope_se"]}, label=name)
    left.set(title="I(x_a; .), lower bounds", xlabel="log-SNR a", ylabel="nats")
    right.set(title="slope: where x begins to inform about it", xlabel="log-SNR a", ylabel="nats per unit of log-SNR")
    left.legend(frameon=False, fontsize=8)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    say_spread(figure)
    save(figure, path)


def information_maps(found: dict[str, dict], stored: dict[str, np.ndarray], title: str, path: str | Path) -> None:
    """A row a name: its map in every band of log-SNR on one scale, and the sum over the bands on its own.

    White is the row's largest value in any band, or the sum's own.
    """
    edges, average = stored["logsnr"], stored["average"]
    names, bands = list(found), len(edges) - 1
    figure = Figure(figsize=(1.25 * (bands + 2) + 0.4, 1.3 * len(names) + 0.8), layout="constrained")
    figure.suptitle(plain(title), fontsize=11)
    panels = figure.subplots(len(names), bands + 2, squeeze=False)
    for number, (row, name) in enumerate(zip(panels, names, strict=True)):
        pictures, one = stored[name], found[name]
        heads = [f"{low:.1f} .. {high:.1f}" for low, high in pairwise(edges)] + ["all, own scale"]
        nats = [*one["by_band_nats"], one["nats"]]
        for panel, picture, head, sum_ in zip(row[1:], [*pictures, pictures.sum(0)], heads, nats, strict=True):
            top = picture.max() if head.startswith("all") else pictures.max()
            panel.imshow(picture, cmap="magma", vmin=0, vmax=max(top, 1e-12), interpolation="nearest")
            over = "" if number else f"{head}\n"
            panel.set_title(f"{over}{sum_:.2g} nats", fontsize=8)
        row[0].imshow(average if average.shape[2] == 3 else average[:, :, 0], cmap="gray", vmin=0, vmax=255)
        row[0].set_ylabel(plain(name + shares(one)), fontsize=8, rotation=0, ha="right", va="center")
        for panel in row:
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
    panels[0][0].set_title("average\nimage", fontsize=8)
    save(figure, path)


def shares(one: dict) -> str:
    """Lines on the share of a map's sum on each region, with its error; none of a sum within two errors of 0."""
    if one["se"] is None or one["nats"] <= 2 * one["se"]:
        return ""
    return "".join(f"\n{region} {100 * share['mean']:.0f} ± {100 * share['se']:.2g} %"
                   for region, share in one.get("share_on", {}).items())


def over_tau(parts: list[dict], path: str | Path) -> None:
    """The interval of I(x; z + noise) as the noise shrinks; beside it, where measured, what the denoiser uses."""
    figure, panel = axes("I(x; z + tau noise)", "tau, in deviations of z", "nats")
    taus = [part["tau"] for part in parts]
    low, high = np.array([part["bracket_nats"]["interval"] for part in parts]).T
    panel.fill_between(taus, low, high, alpha=0.3, linewidth=0, label="interval")
    panel.plot(taus, low, "o-", color="C0", markersize=3)
    panel.plot(taus, high, "o-", color="C0", markersize=3)
    panel.axhline(parts[0]["bracket_nats"]["log_n"], color="black", linewidth=0.8, linestyle=":",
                  label="log N: no lower bound passes it")
    for name, colour in (("difference", "C1"), ("orthogonal", "C2")):
        known = [(part["tau"], part["usable_nats"]) for part in parts if "usable_nats" in part]
        if known:
            panel.errorbar([tau for tau, _ in known], [forms[name] for _, forms in known], fmt="s--", color=colour,
                           yerr=[2 * forms[f"{name}_se"] for _, forms in known], markersize=4, capsize=3,
                           label=f"usable by this denoiser: {name}")
    if any("usable_nats" in part for part in parts):
        say_spread(figure)
    panel.set(xscale="log", yscale="symlog" if high.max() > 20 else "linear")
    panel.set_xticks(taus, [f"{tau:g}" for tau in taus])
    panel.minorticks_off()
    panel.legend(frameon=False, fontsize=8)
    save(figure, path)


def per_dimension(record: dict, path: str | Path) -> None:
    """Each entry of z: the interval of its information, and what the denoiser loses without it."""
    relied = record.get("reliance_nats")
    figure = Figure(figsize=(10 if relied else 5.5, 3.4), layout="constrained")
    panels = figure.subplots(1, 2 if relied else 1, squeeze=False)[0]
    low, high = np.array([one["interval"] for one in record["per_dimension_nats"]]).T
    panels[0].bar(range(len(low)), low)
    panels[0].bar(range(len(low)), high - low, bottom=low, alpha=0.35, color="C0")
    noise = "" if record["tau"] is None else f" (tau {record['tau']:g})"
    panels[0].set(title=f"I(x; z_d): at least (dark), at most (pale){noise}", xlabel="dimension", ylabel="nats")
    if relied:
        means, errors_ = ([one[key] for one in relied] for key in ("mean", "se"))
        panels[1].bar(range(len(means)), means, yerr=2 * np.asarray(errors_), error_kw={"linewidth": 0.8})
        panels[1].set(title="what the denoiser loses with another image's z_d", xlabel="dimension", ylabel="nats")
        say_spread(figure)
    for panel in panels:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.spines[["top", "right"]].set_visible(False)
    save(figure, path)
