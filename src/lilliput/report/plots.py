"""The page's plots, as inline SVG whose colours are CSS variables, so that they follow a light or a dark page.

Text stays text (searchable, in the page's own font); every figure has a title for those who cannot see it. The same
numbers give the same bytes: ids are hashed with a fixed salt and no date is written.
"""

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lilliput.report.text import percent, short_bytes

# Stand-ins that are drawn with and then replaced by the page's CSS variables of these names.
COLORS = {name: f"#0a0b{index:02x}" for index, name in enumerate(("ink", "muted", "line", "accent", "second", "paper"))}
WIDTH = 4.6  # inches; 331 units of the view box, so that text stays legible on a narrow screen
FONT_SIZE = 10.0


@dataclass(frozen=True)
class AccuracyPoint:
    """One accuracy (0..1) and the bytes that this stage's weights take when they are stored."""

    name: str
    accuracy: float
    size_bytes: int
    measured: bool


@dataclass(frozen=True)
class Curve:
    """Losses of one stage: (epochs since the start of the run, loss)."""

    name: str
    first_epoch: int
    epochs: int
    train: Sequence[tuple[float, float]]
    validation: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Span:
    """One buffer of the arena: alive from op `first` to op `last`, at `offset`, `size` bytes long."""

    name: str
    first: int
    last: int
    offset: int
    size: int


def style() -> AbstractContextManager[None]:
    """Drawing settings of every figure: matplotlib's own defaults, whatever the user's configuration says, and ours."""
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
    return matplotlib.rc_context(defaults | {"svg.fonttype": "none", "font.size": FONT_SIZE, "path.simplify": False})


def spread(wanted: Sequence[float], gaps: Sequence[float], low: float, high: float) -> list[float]:
    """Positions nearest to `wanted` whose neighbours lie at least half the sum of their `gaps` apart, in [low, high].

    Least squares: isotonic regression of the positions less the room that the ones before need.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    room, used = [], 0.0
    for place, index in enumerate(order):
        used += (gaps[order[place - 1]] + gaps[index]) / 2 if place else 0.0
        room.append(used)
    blocks: list[list[float]] = []  # mean, count
    for index, before in zip(order, room, strict=True):
        blocks.append([wanted[index] - before, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, number = blocks.pop()
            total = blocks[-1][1] + number
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + mean * number) / total, total]
    means = [mean for mean, number in blocks for _ in range(int(number))]
    positions = [0.0] * len(wanted)
    for index, before, mean in zip(order, room, means, strict=True):
        positions[index] = max(low, min(mean, high - used)) + before
    return positions


def accuracy_by_stage(points: Sequence[AccuracyPoint]) -> str:
    """One row a stage: an open dot where the number is simulated, a full one where it was measured on the file."""
    figure, axes = _figure(0.55 + 0.33 * len(points), left=0.355, right=0.84)
    rows = range(len(points))
    low, high = _accuracy_range([point.accuracy for point in points])
    axes.set_xlim(low, high)
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.hlines(list(rows), low, high, color=COLORS["line"], linewidth=0.8)
    for row, point in zip(rows, points, strict=True):
        _dot(axes, point.accuracy, row, point.measured)
        weight = "bold" if point.measured else "normal"
        axes.annotate(
            percent(point.accuracy),
            (1, row),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=COLORS["ink"],
            weight=weight,
        )
    axes.set_yticks(list(rows), [point.name for point in points])
    for label, point in zip(axes.get_yticklabels(), points, strict=True):
        label.set(color=COLORS["ink"], weight="bold" if point.measured else "normal")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
    axes.spines["bottom"].set_visible(False)
    listed = ", ".join(f"{point.name} {percent(point.accuracy)}" for point in points)
    return _svg(figure, "accuracy", f"Test accuracy by stage: {listed}")


def loss_curves(curves: Sequence[Curve]) -> str:
    """Training and validation loss over the epochs of all stages, one after another."""
    figure, axes = _figure(2.75, left=0.11, right=0.83, bottom=0.15, top=0.9)
    for curve in curves:
        for name, color in (("train", "accent"), ("validation", "second")):
            line: Sequence[tuple[float, float]] = getattr(curve, name)
            marker = "o" if len(line) == 1 else ""
            axes.plot(*zip(*line, strict=True), color=COLORS[color], linewidth=1.6, marker=marker, markersize=3)
    end = max(curve.first_epoch + curve.epochs for curve in curves)
    axes.set_xlim(0, end)
    axes.margins(y=0.06)
    for curve in curves[1:]:
        axes.axvline(curve.first_epoch, color=COLORS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
    # A letter takes about 0.55 of the font's size; the plot is 0.72 of the figure's width.
    letter = 0.58 * (FONT_SIZE - 0.5) / 72 / (WIDTH * 0.72) * end
    widths = [(len(curve.name) + 1) * letter for curve in curves]
    middles = [curve.first_epoch + curve.epochs / 2 for curve in curves]
    places = spread(middles, widths, min(widths[0] / 2, end), end - widths[-1] / 2)
    for curve, place in zip(curves, places, strict=True):
        axes.annotate(
            curve.name,
            (place, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            ha="center",
            textcoords="offset points",
            color=COLORS["muted"],
            size=FONT_SIZE - 0.5,
        )
    _end_labels(axes, curves[-1])
    axes.set_xlabel("epochs, all stages")
    axes.set_ylabel("loss")
    axes.grid(axis="y", color=COLORS["line"], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    stages = ", ".join(f"{curve.name} ({curve.epochs} epochs)" for curve in curves)
    return _svg(figure, "loss", f"Training and validation loss over the epochs of the stages {stages}")


def accuracy_against_size(points: Sequence[AccuracyPoint]) -> str:
    """One point a stage over the bytes that it would ship; bytes on a logarithmic axis."""
    figure, axes = _figure(2.75, left=0.13, right=0.96, bottom=0.15, top=0.96)
    sizes = [point.size_bytes for point in points]
    low, high = _accuracy_range([point.accuracy for point in points])
    axes.set_xscale("log")
    crowded = max(sizes) < 5 * min(sizes)  # then the file's label goes to the left, out of the way of the others
    axes.set_xlim(min(sizes) / (6 if crowded else 1.5), max(sizes) * 4.5)
    axes.set_ylim(low, high)
    axes.plot(sizes, [point.accuracy for point in points], color=COLORS["line"], linewidth=1.4, zorder=1)
    gap = (high - low) * 0.075
    for column in sorted(set(sizes)):
        here = [point for point in points if point.size_bytes == column]
        places = spread([point.accuracy for point in here], [gap] * len(here), low + gap / 2, high - gap / 2)
        for point, place in zip(here, places, strict=True):
            _dot(axes, column, point.accuracy, point.measured)
            aside = 1 / 1.13 if crowded and point.measured else 1.13
            axes.plot([column, column * aside], [point.accuracy, place], color=COLORS["line"], linewidth=0.8, zorder=1)
            axes.annotate(
                point.name,
                (column, point.accuracy),
                xytext=(column * aside, place),
                ha="left" if aside > 1 else "right",
                va="center",
                color=COLORS["ink"],
                size=FONT_SIZE - 0.5,
                weight="bold" if point.measured else "normal",
            )
    axes.xaxis.set_major_locator(FixedLocator(_log_ticks(*axes.get_xlim())))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_bytes(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
    axes.set_xlabel("bytes that this stage would ship (log scale)")
    axes.grid(axis="y", color=COLORS["line"], linewidth=0.8)
    listed = ", ".join(f"{point.name} {percent(point.accuracy)} at {short_bytes(point.size_bytes)}" for point in points)
    return _svg(figure, "pareto", f"Test accuracy against size: {listed}")


def arena_plan(spans: Sequence[Span], num_ops: int, arena_bytes: int) -> str:
    """The buffer plan: a rectangle a buffer, as wide as its life and as high as its bytes."""
    figure, axes = _figure(2.75, left=0.18, right=0.97, bottom=0.15, top=0.96)
    for span in spans:
        axes.add_patch(
            Rectangle(
                (span.first, span.offset),
                span.last - span.first + 1,
                span.size,
                facecolor=COLORS["accent"],
                alpha=0.55,
                edgecolor=COLORS["paper"],
                linewidth=0.8,
            )
        )
    axes.set_xlim(0, num_ops)
    axes.set_ylim(0, max(arena_bytes, 1))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_bytes(value) if value else "0"))
    axes.set_xlabel("op, in the order of execution")
    return _svg(
        figure, "arena", f"Plan of the arena: {len(spans)} buffers share {arena_bytes} bytes over {num_ops} ops"
    )


def _figure(
    height: float, left: float, right: float, bottom: float | None = None, top: float = 1.0
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((left, 0.0, right - left, 1.0))
    low = bottom if bottom is not None else 0.32 / height
    axes.set_position((left, low, right - left, top - low))
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(COLORS["muted"])
    axes.tick_params(length=0, colors=COLORS["muted"], labelsize=FONT_SIZE - 0.5, pad=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=COLORS["muted"], size=FONT_SIZE - 0.5)
    return figure, axes


def _dot(axes: Axes, x: float, y: float, measured: bool) -> None:
    face = COLORS["accent"] if measured else COLORS["paper"]
    axes.plot(
        [x],
        [y],
        "o",
        color=face,
        markeredgecolor=COLORS["accent"],
        markeredgewidth=1.6,
        markersize=7.5 if measured else 6.5,
        clip_on=False,
        zorder=3,
    )


def _end_labels(axes: Axes, curve: Curve) -> None:
    low, high = axes.get_ylim()
    named = [
        (name, color, line[-1])
        for name, color, line in (("train", "accent", curve.train), ("validation", "second", curve.validation))
        if line
    ]
    gap = (high - low) * 0.075
    places = spread([point[1] for _, _, point in named], [gap] * len(named), low, high)
    for (name, color, _), place in zip(named, places, strict=True):
        axes.annotate(
            name,
            (1, place),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=COLORS[color],
            size=FONT_SIZE - 0.5,
            weight="bold",
        )


def _accuracy_range(accuracies: Sequence[float]) -> tuple[float, float]:
    margin = max((max(accuracies) - min(accuracies)) * 0.35, 0.004)
    return max(0.0, min(accuracies) - margin), min(1.0, max(accuracies) + margin)


def _log_ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high / low < 300 else (1,)
    return [step * 10.0**power for power in range(1, 13) for step in steps if low <= step * 10.0**power <= high]


def _svg(figure: Figure, name: str, title: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"lilliput-{name}"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    head = f'<svg class="plot" role="img" viewBox="{view[1]}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    text = re.sub(r"^<svg[^>]*>", f"{head}<title>{escape(title)}</title>", text)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(
        r"font: (bold )?([0-9.]+px) [^;\"]*",
        lambda m: f"font-size: {m[2]}" + ("; font-weight: bold" if m[1] else ""),
        text,
    )
    text = re.sub(r'<g id="[a-z0-9_.]+">', "<g>", text)  # the same ids in every figure; nothing refers to them
    for color_name, color in COLORS.items():
        text = text.replace(color, f"var(--{color_name})")
    return text
