"""Self-contained HTML pages: one environment of templates for all reports."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from polar_rm.reporting.words import interval, measure


def render_page(package: str, template: str, report: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """Render a template of a package with the variables ``report`` and ``plots`` (name -> SVG).

    Texts are escaped, plots are not, and an undefined variable is an error. The filters are ``number`` (thousands separators),
    ``interval`` and ``measure`` (see :mod:`polar_rm.reporting.words`).
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["interval"] = interval
    environment.filters["measure"] = measure
    page = environment.from_string((files(package) / template).read_text(encoding="utf-8"))
    return page.render(report=report, plots={name: Markup(svg) for name, svg in plots.items()})
