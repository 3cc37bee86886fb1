"""Every picture. Figures are made without pyplot, so that nothing global (style, current figure) is touched."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from utils import atomic


def to_uint8(x) -> np.ndarray:
    """Images in [-1, 1], [B,C,H,W] (a tensor on any device) -> uint8 [B,H,W,C]."""
    pixels = ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """uint8 [H,W,C], C 1 or 3 -> a PNG file that is whole or absent."""
    with atomic(path) as temporary:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(temporary)


def sheet(pixels: np.ndarray, columns: int, shown: int = 64, gap: int = 2) -> np.ndarray:
    """uint8 [B,H,W,C] -> one uint8 picture [.,.,C], white between the tiles, each magnified to `shown` pixels or so."""
    count, height, width, channels = pixels.shape
    factor = max(1, shown // max(height, width))
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    rows, (height, width) = math.ceil(count / columns), pixels.shape[1:3]
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, tile in enumerate(pixels):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = tile
    return canvas


def image_grid(x, path: str | Path, columns: int | None = None) -> None:
    """Images [B,C,H,W] in [-1, 1] as one picture, about square unless the columns are given."""
    write_png(path, sheet(to_uint8(x), columns or math.ceil(math.sqrt(len(x)))))


def save(figure: Figure, path: str | Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120)


def axes(title: str, xlabel: str = "", ylabel: str = "", size: tuple[float, float] = (6, 4)):
    """A figure of one panel: (figure, axes)."""
    figure = Figure(figsize=size, layout="constrained")
    panel = figure.add_subplot(title=title, xlabel=xlabel, ylabel=ylabel)
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def training_curve(metrics: str | Path, path: str | Path) -> None:
    """Loss terms over epochs from a metrics.jsonl, training solid and validation dashed, a panel each."""
    lines = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    terms = list(lines[0]["train"])
    figure = Figure(figsize=(3.6 * len(terms), 3.2), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
        epochs = [line["epoch"] for line in lines]
        panel.plot(epochs, [line["train"][name] for line in lines], label="training")
        held_out = [line.get("val", {}).get(name) for line in lines]
        if any(value is not None for value in held_out):
            panel.plot(epochs, held_out, "--", label="validation")
        unit = lines[0]["unit"] if name == "denoise" else ""
        if name == "denoise" and "nll_nats" in lines[0].get("val", {}):
            panel.plot(epochs, [line["val"]["nll_nats"] for line in lines], ":", label="held-out bound")
        panel.set(title=name, xlabel="epoch", ylabel=unit)
        if all(line["train"][name] > 0 for line in lines):
            panel.set_yscale("log")
    figure.axes[0].legend(frameon=False)
    save(figure, path)


def error_curve(columns: dict[str, list[float]]) -> Figure:
    """A model's squared error over log-SNR beside the Gaussian reference's, as training logs it."""
    figure, panel = axes("held-out error", "log-SNR", "squared error")
    for name in ("model", "gaussian"):
        panel.plot(columns["logsnr"], columns[name], label=name)
    panel.legend(frameon=False)
    return figure


def scatter(points: np.ndarray, path: str | Path, title: str, labels: np.ndarray | None = None,
            names: tuple[str, ...] = ()) -> None:  # fmt: skip
    """Points [N, 2], coloured by their labels [N] where they have some."""
    figure, panel = axes("", size=(5.6, 5))
    figure.suptitle(title, fontsize=10)  # over the whole figure: a legend leaves the panel narrow
    if labels is None:
        panel.scatter(*points.T, s=2, alpha=0.5, linewidths=0)
    else:
        kinds = np.unique(labels)
        for place, kind in enumerate(kinds):
            name = names[kind] if kind < len(names) else str(kind)
            colour = colormaps["tab10"](place) if len(kinds) <= 10 else colormaps["viridis"](place / (len(kinds) - 1))
            panel.scatter(*points[labels == kind].T, s=8, alpha=0.7, linewidths=0, color=colour, label=name)
        if len(kinds) <= 15:
            panel.legend(frameon=False, markerscale=2, fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    panel.set_aspect("equal", adjustable="datalim")
    save(figure, path)


def heat_map(matrix: np.ndarray, rows: list[str], columns: list[str], title: str, path: str | Path) -> None:
    """A matrix [R, C] of values from 0 up, with names on both sides."""
    size = (2.5 + 0.5 * len(columns), 1.8 + 0.22 * len(rows))
    figure, panel = axes(title, size=size)
    picture = panel.imshow(matrix, aspect="auto", cmap="viridis", vmin=0)
    panel.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    panel.set_yticks(range(len(rows)), rows, fontsize=7)
    figure.colorbar(picture)
    save(figure, path)


def lines(series: dict[str, tuple], path: str | Path, title: str, xlabel: str, ylabel: str, logx: bool = False,
          logy: bool = False) -> None:  # fmt: skip
    """Curves by name, each (x, y) or (x, y, standard error)."""
    figure, panel = axes(title, xlabel, ylabel)
    for name, (x, y, *error) in series.items():
        if error:
            panel.errorbar(x, y, yerr=2 * np.asarray(error[0]), marker="o", markersize=4, capsize=3, label=name)
        else:
            panel.plot(x, y, marker="o" if len(x) < 20 else None, markersize=4, label=name)
    panel.set_xscale("log" if logx else "linear")
    panel.set_yscale("log" if logy else "linear")
    places = sorted({value for x, *_ in series.values() for value in x})
    if logx and len(places) <= 10:
        panel.set_xticks(places, [f"{value:g}" for value in places])
        panel.minorticks_off()
    if len(series) > 1:
        panel.legend(frameon=False, fontsize=8)
    save(figure, path)
