"""A report's HTML: pieces that take plain values and give markup, with everything from files escaped.

The shell, with the style and the script, is report_page.html; a picture becomes a data URI, a curve an SVG.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
from PIL import Image

import plots
from utils import to_its_error

SHELL = Path(__file__).with_name("report_page.html")
COLOURS = 6  # of experiments: --c0 ... in the style


def page(title: str, head: str, contents: dict[str, str], body: str, foot: str, data: dict) -> str:
    """The whole document. `contents` are the sections' names by id; `data` is what the script reads."""
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name in contents.items())
    stored = json.dumps(data, allow_nan=False).replace("<", r"\u003c").replace("&", r"\u0026")
    return Template(SHELL.read_text()).substitute(title=escape(title), head=head, contents=links, body=body, foot=foot,
                                                  data=stored)


def escape(value) -> str:
    return html.escape(str(value))


def section(key: str, name: str, *parts: str) -> str:
    heading = f'<h2 id="{key}-h">{escape(name)}</h2>'
    return f'<section id="{key}" aria-labelledby="{key}-h">{heading}{"".join(parts)}</section>'


def note(text: str, kind: str = "", command: str | None = None) -> str:
    """A line in a box. kind: '', 'care' or 'failed'; `command` makes what is missing."""
    shown = "" if command is None else f"<pre>{escape(command)}</pre>"
    return f'<div class="note {kind}">{escape(text)}{shown}</div>'


def details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def swatch(number: int) -> str:
    return f'<i class="swatch" style="background:var(--c{number % COLOURS})"></i>'


def side(parts: Sequence[tuple[str, str]]) -> str:
    """(heading, markup) of several experiments beside each other; one alone needs no heading."""
    if len(parts) == 1:
        return parts[0][1]
    return '<div class="side">' + "".join(
        f"<div><h3>{swatch(i)}{escape(name)}</h3>{content}</div>" for i, (name, content) in enumerate(parts)) + "</div>"


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and tables


def number(value) -> str:
    """A value of a result file as a person writes it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return rounded(value, 4)
    return str(value)


def rounded(value: float, digits: int) -> str:
    return f"{value:.{digits}g}".replace("-", "−")


def measured(value, error: float | None = None) -> str:
    """Markup of a value with its error, to the error's second digit."""
    if error is None or math.isnan(error) or not isinstance(value, int | float):
        return escape(number(value))
    shown, spread = (text.replace("-", "−") for text in to_its_error(value, error))
    return f'<span class="number">{shown} <span class="pm">± {spread}</span></span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`head` is text, `rows` are markup; the first cell names the row."""
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows)
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>'


def tiles(found: Iterable[tuple[str, str]]) -> str:
    """(name, markup of the value) as large numbers."""
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{value}</b><span>{escape(name)}</span></div>' for name, value in found) + "</div>"


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def uri(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def image_of(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, C]"""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def strip(pixels: np.ndarray, columns: int, alt: str, shown: int = 64, gap: int = 2) -> str:
    """uint8 [N, H, W, C] as one picture, smoothly enlarged to `shown` pixels a tile or so, with clear gaps."""
    tiles_ = plots.enlarged(pixels, shown)
    count, height, width, _ = tiles_.shape
    rows = math.ceil(count / columns)
    canvas = Image.new("RGBA" if pixels.shape[3] == 3 else "LA",
                       (columns * (width + gap) - gap, rows * (height + gap) - gap))
    for i, tile in enumerate(tiles_):
        canvas.paste(image_of(tile), (i % columns * (width + gap), i // columns * (height + gap)))
    return (f'<img src="{uri(canvas)}" alt="{escape(alt)}" width="{canvas.width}" height="{canvas.height}">')


def hidden_sheet(key: str, pixels: np.ndarray, columns: int) -> str:
    """Tiles [N, H, W, C] without gaps, for the script to draw from."""
    count, height, width, channels = pixels.shape
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = pixels
    joined = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(
        rows * height, columns * width, channels)
    return f'<img class="hidden" id="{key}" alt="" aria-hidden="true" src="{uri(image_of(joined))}">'


# ---------------------------------------------------------------------------------------------------------------------
# Curves


class Series(NamedTuple):
    """A curve: y over x, with a band of two standard errors where they are known. `dash` is '' or SVG's pattern."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    se: Sequence[float] | None = None
    colour: int = 0
    dash: str = ""


WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 26, 40


def chart(title: str, series: Sequence[Series], xlabel: str, ylabel: str = "") -> str:
    """Curves as an SVG, logarithmic where the values are positive and span more than a factor of ten."""
    series = [clean(one) for one in series]
    series = [one for one in series if len(one.x)]
    if not series:
        return ""
    y = np.concatenate([one.y for one in series])
    log = bool(y.min() > 0 and y.max() > 10 * y.min())
    ends = min(min(s.x) for s in series), max(max(s.x) for s in series)
    whole = all(isinstance(x, int) for s in series for x in s.x)
    across = scale(*ends, False, LEFT, WIDTH - RIGHT, margin=0, whole=whole)
    band = np.concatenate([np.zeros(len(s.x)) if s.se is None else 2 * s.se for s in series])
    up = scale(y.min() if log else (y - band).min(), (y + band).max(), log, HEIGHT - BOTTOM, TOP + 4)
    parts = [f'<text class="title" x="0" y="13">{escape(title)}</text>',
             f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(xlabel)}</text>']
    if ylabel:
        parts.append(f'<text x="{WIDTH - RIGHT}" y="13" text-anchor="end">{escape(ylabel)}</text>')
    for value in up.ticks:
        place = up(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
                     f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{escape(tick(value))}</text>')
    for value in across.ticks:
        parts.append(f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
                     f"{escape(tick(value))}</text>")
    parts += [curve(one, across, up) for one in series]
    return (f'<figure><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)} over {escape(xlabel)}">{"".join(parts)}</svg></figure>')


def clean(one: Series) -> Series:
    """Without the points that are no numbers."""
    keep = [i for i, y in enumerate(one.y) if isinstance(y, int | float) and math.isfinite(y)]
    se = None if one.se is None else np.array([one.se[i] if one.se[i] is not None else 0.0 for i in keep])
    return one._replace(x=[one.x[i] for i in keep], y=np.array([one.y[i] for i in keep], dtype=float), se=se)


def curve(one: Series, across, up) -> str:
    stroke = f"var(--c{one.colour % COLOURS})"
    parts = []
    if one.se is not None:
        top = [f"{across(x):.1f},{up(y + 2 * se):.1f}" for x, y, se in zip(one.x, one.y, one.se, strict=True)]
        low = [f"{across(x):.1f},{up(y - 2 * se):.1f}" for x, y, se in zip(one.x, one.y, one.se, strict=True)]
        parts.append(f'<polygon points="{" ".join(top + low[::-1])}" fill="{stroke}" opacity="0.16"/>')
    points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(one.x, one.y, strict=True))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="1.8" '
                 f'stroke-dasharray="{one.dash}"/>')
    if len(one.x) <= 40:
        parts += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="2.4" fill="{stroke}"><title>{escape(one.name)}, '
                  f"{tick(x)}: {escape(number(float(y)))}</title></circle>" for x, y in zip(one.x, one.y, strict=True)]
    return "".join(parts)


class scale:
    """Values to places along one axis, with ticks at round values, or at whole ones, as of epochs."""

    def __init__(self, low: float, high: float, log: bool, start: float, end: float, margin: float = 0.04,
                 whole: bool = False):
        self.log, self.start, self.end, self.whole = log, start, end, whole
        low, high = self._bend(low), self._bend(high)
        spread = (high - low) or max(abs(high), 1.0) * 0.1
        self.low, self.high = (low - margin * spread, high + margin * spread) if high > low else (
            low - spread, high + spread)
        self.ticks = self._round()

    def _bend(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value

    def __call__(self, value: float) -> float:
        share = min(1.0, max(0.0, (self._bend(value) - self.low) / (self.high - self.low)))
        return self.start + share * (self.end - self.start)

    def _round(self) -> list[float]:
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**k for k in decades for m in steps if self.low <= math.log10(m) + k <= self.high]
                if len(found) <= 6:
                    return found
            return found[:: math.ceil(len(found) / 6)]
        raw = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(raw))
        step = max(next(size * m for m in (1, 2, 5, 10) if size * m >= raw * 0.999), float(self.whole))
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def tick(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e-300 or 1e-3 <= abs(value) < 1e5 else f"{value:.0e}"


def line_key(entries: Iterable[tuple[str, int, str]]) -> str:
    """What the lines of charts are: (name, colour, dash)."""
    return '<div class="legend">' + "".join(
        f'<span><svg viewBox="0 0 26 10" aria-hidden="true"><line x1="1" x2="25" y1="5" y2="5" stroke-width="2" '
        f'stroke="var(--c{colour % COLOURS})" stroke-dasharray="{dash}"/></svg>{escape(name)}</span>'
        for name, colour, dash in entries) + "</div>"


# ---------------------------------------------------------------------------------------------------------------------
# What moves


def field(points: np.ndarray, box: tuple[np.ndarray, float], side_: int = 320, label: str = "") -> str:
    """Points [N, 2] within a square of the plane, (its lower left corner [2], its side), with the ends of its axes."""
    (corner, length), left, low = box, 56, 24
    size = side_ - left - 6
    places = (points[within(points, box)] - corner) / length * size
    circles = "".join(f'<circle cx="{left + x:.1f}" cy="{side_ - low - y:.1f}" r="2" fill="var(--c0)" '
                      f'fill-opacity="0.7"/>' for x, y in places)
    ends = [rounded(value, 3) for start in corner for value in (start, start + length)]
    where = [(left, side_ - 8, "start"), (left + size, side_ - 8, "end"), (left - 6, side_ - low, "end"),
             (left - 6, side_ - low - size + 10, "end")]
    words = "".join(f'<text x="{x}" y="{y}" font-size="11" text-anchor="{anchor}">{end}</text>'
                    for (x, y, anchor), end in zip(where, ends, strict=True))
    return (f'<svg class="plane" viewBox="0 0 {side_} {side_}" role="img" aria-label="{escape(label)}">'
            f'<rect x="{left}" y="{side_ - low - size}" width="{size}" height="{size}" fill="none" '
            f'stroke="var(--line)"/>{circles}{words}</svg>')


def box_of(points: np.ndarray, margin: float = 0.1) -> tuple[np.ndarray, float]:
    """The square about points [N, 2] with a margin: its lower left corner [2], and its side."""
    low, high = points.min(0), points.max(0)
    length = (1 + 2 * margin) * (float(max(high - low)) or 1.0)
    return (low + high - length) / 2, length


def within(points: np.ndarray, box: tuple[np.ndarray, float]) -> np.ndarray:
    """Which of points [N, 2] lie in a square: [N]."""
    corner, length = box
    return ((points >= corner) & (points <= corner + length)).all(1)


def cloud(points: np.ndarray, side_: int = 400, label: str = "") -> str:
    """Points [N, 2] as circles of a square SVG, in their order."""
    low, high = points.min(0), points.max(0)
    spread = float(max(high - low)) or 1.0
    shift = (spread - (high - low)) / 2
    places = 14 + (points - low + shift) / spread * (side_ - 28)
    circles = "".join(f'<circle cx="{x:.1f}" cy="{side_ - y:.1f}" r="4" fill="var(--c0)" fill-opacity="0.8"/>'
                      for x, y in places)
    return (f'<svg class="plane" viewBox="0 0 {side_} {side_}" role="img" tabindex="0" aria-label="{escape(label)}">'
            f"{circles}</svg>")


def card(row: int, name: str, start: int, last: int, kinds: Sequence[str], about: str, share: float | None) -> str:
    """One latent dimension: its pictures, its slider, and a line about it; `share` draws a bar."""
    canvases = "".join(f'<canvas width="176" height="176" role="img" aria-label="{escape(name)}, {escape(kind)}">'
                       f"</canvas>" for kind in kinds)
    bar = "" if share is None else f'<div class="bar"><i style="width:{100 * min(1, max(0, share)):.0f}%"></i></div>'
    return (f'<div class="card"><div class="pictures">{canvases}</div>'
            f'<canvas class="film" width="300" height="60" role="img" aria-label="{escape(name)} over its range">'
            f"</canvas><label><span>{escape(name)}</span><output></output></label>"
            f'<input type="range" min="0" max="{last}" value="{start}" data-row="{row}" aria-label="{escape(name)}">'
            f"{bar}<p>{escape(about)}</p></div>")
