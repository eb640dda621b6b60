"""Figures: labels that do not collide, and SVG that belongs into a page."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lilliput.report import plots
from lilliput.report.plots import AccuracyPoint, Curve, Span

POINTS = [
    AccuracyPoint("train, simulated", 0.98, 1_654_824, measured=False),
    AccuracyPoint("prune, simulated", 0.98, 1_654_824, measured=False),
    AccuracyPoint("model.lil, measured", 0.975, 220_000, measured=True),
]
CURVES = [
    Curve("train", 0, 2, [(1, 2.0), (2, 1.0)], [(2, 1.5)]),
    Curve("prune", 2, 1, [(3, 1.2)], []),
]


def figures() -> dict[str, str]:
    with plots.style():
        return {
            "accuracy": plots.accuracy_by_stage(POINTS),
            "loss": plots.loss_curves(CURVES),
            "pareto": plots.accuracy_against_size(POINTS),
            "arena": plots.arena_plan([Span("x", 0, 1, 0, 64), Span("y", 1, 2, 64, 128)], 3, 192),
        }


@given(
    wanted=st.lists(st.floats(0, 100), min_size=1, max_size=12),
    gaps=st.lists(st.floats(0.01, 8), min_size=12, max_size=12),
)
def test_spread_keeps_order_gaps_and_bounds(wanted: list[float], gaps: list[float]) -> None:
    gaps = gaps[: len(wanted)]
    places = plots.spread(wanted, gaps, 0, 100)
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    for before, after in pairwise(order):
        assert places[after] - places[before] >= (gaps[before] + gaps[after]) / 2 - 1e-6
    assert min(places) >= -1e-6
    assert max(places) <= 100 + 1e-6


def test_spread_leaves_alone_what_is_apart_and_centres_what_is_not() -> None:
    assert plots.spread([30, 10, 20], [5, 5, 5], 0, 100) == pytest.approx([30, 10, 20])
    assert plots.spread([50, 50], [10, 10], 0, 100) == pytest.approx([45, 55])
    assert plots.spread([100, 100], [10, 10], 0, 100) == pytest.approx([90, 100])


def test_figures_are_wellformed_titled_and_coloured_by_the_page() -> None:
    for name, svg in figures().items():
        root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
        assert root[0].tag.endswith("title"), name
        assert root[0].text, name
        assert root.get("role") == "img"
        assert "<style" not in svg
        assert "var(--accent)" in svg
        assert not re.search(r"#0a0b", svg), "a stand-in colour was left"
        assert not re.search(r"(?:fill|stroke): (?!none|var\()", svg), "a colour that does not follow the page"


def test_ids_are_unique_over_all_figures_or_mean_the_same() -> None:
    seen: dict[str, str] = {}
    for svg in figures().values():
        for element in re.findall(r'<[^>]* id="[^"]*"[^>]*>', svg):
            identity = re.search(r' id="([^"]*)"', element)
            assert identity is not None
            assert seen.setdefault(identity[1], element) == element
    assert seen


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert figures() == figures()


def test_texts_say_simulated_and_measured() -> None:
    svg = figures()["accuracy"]
    assert ">train, simulated</text>" in svg
    assert ">model.lil, measured</text>" in svg
    assert ">97.50 %</text>" in svg


def test_a_single_curve_point_is_drawn_as_a_dot() -> None:
    with plots.style():
        single = plots.loss_curves([Curve("quantize", 0, 1, [(1, 1.0)], [(1, 1.1)])])
    assert "<use" in single
