"""The first page: one measure of all heads of a tower as a map; a click opens a head."""

from __future__ import annotations

from dashboard.drawn import clicked, draw
from dashboard.figures import heatmap
from dashboard.head_map import click_targets
from dashboard.page import Page
from dashboard.view import View

_MAP = "overview-map"


def show(view: View) -> None:
    """The map of the chosen measure."""
    heads = view.run.heads
    tower = view.choose("tower", "tower", heads.towers)
    known = heads.select(tower=tower)
    measure = view.choose("measure", "measure", known.measures)
    variant = view.choose("variant", "variant", known.variants(measure))
    figure = heatmap(heads, measure, tower, variant)
    grid = heads.grid(measure, tower, variant)
    figure.add_trace(click_targets(grid.shape, tower))
    draw(figure, _MAP, "A click opens a head.", known.select(measure, variant=variant).frame)


PAGE = Page("overview", "Overview", "One measure of all heads at a glance.", show)
