"""From the content of a report to Markdown and to one HTML file that needs nothing besides itself.

Both templates escape by default: what comes from data sets and models is text, never markup.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemw2s.runs.report_format import Markdown, escape_markdown, escape_markdown_line, markdown_fence
from ensemw2s.runs.report_systems import MAIN_SPLIT

if TYPE_CHECKING:
    import jinja2

    from ensemw2s.runs.report import Report

_TEMPLATES = Path(__file__).parent / "templates"


def render_html(report: Report) -> str:
    """One HTML page with style and figures inside, for dark and light, wide and narrow screens."""
    environment = _environment(autoescape=True)
    environment.filters["data_uri"] = _data_uri
    environment.filters["nobreak"] = _nobreak
    return _render(environment, "report.html.j2", report)


def render_markdown(report: Report) -> str:
    """GitHub-flavored Markdown that refers to figures/*.png."""
    environment = _environment(autoescape=False, finalize=escape_markdown)
    environment.filters["line"] = _markdown_line
    environment.filters["fence"] = markdown_fence
    return _render(environment, "report.md.j2", report)


def page(folder: Path, template: str, **content: Any) -> str:
    """An HTML page from a template of another folder; ``report.css`` and the filters of reports are there, too."""
    environment = _environment(folder, autoescape=True)
    environment.filters["data_uri"] = _data_uri
    return environment.get_template(template).render(**content)


def _environment(*folders: Path, **options: Any) -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, _TEMPLATES]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )


def _render(environment: jinja2.Environment, template: str, report: Report) -> str:
    return environment.get_template(template).render(report=report, main_split=MAIN_SPLIT)


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _nobreak(text: str) -> str:
    # A number keeps its unit, and an interval its two ends, on one line.
    with_unit = re.sub(r"(?<=\d) (?=%)", "\u00a0", text)
    return re.sub(r"(?<=\d)(-|\.\.)(?=[+-]?\d)", "\\1\u2060", with_unit)


def _markdown_line(text: str) -> Markdown:
    return Markdown(escape_markdown_line(text))
