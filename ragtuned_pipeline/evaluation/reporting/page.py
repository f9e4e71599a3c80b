"""What every page has: one style sheet, one script, one policy, and the names and colours of the
systems. A page holds everything it shows and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from ragtuned_pipeline.evaluation.reporting import findings

TEMPLATES = Path(__file__).parent / "templates"
# A system keeps its colour wherever it is shown; others than these share the last ones.
_STYLES = tuple(findings.SYSTEM_LABELS)
_STYLES_OF_OTHERS = 2


def render_page(template: str, **shown: Any) -> str:
    """Return the page made of `template` and what it shows.

    Names, questions and answers come from documents nobody has vetted, so all text is escaped and
    the page's own script is the only one that its policy lets run.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": findings.percent,
        "label": findings.label,
        "sentence_case": sentence_case,
        "style": style,
        "figure": figure,
        "cut": cut,
    }
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        **shown,
        set_labels=findings.SET_LABELS,
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def sentence_case(text: str) -> str:
    """Return `text` with a capital first, the rest as it is (GraphRAG stays GraphRAG)."""
    return f"{text[:1].upper()}{text[1:]}"


def cut(text: str, most: int) -> tuple[str, str]:
    """Return `text` in two: at most `most` characters, to the end of a word, and the rest; all of
    it in the first where the rest would be short."""
    if len(text) <= most * 1.2:
        return text, ""
    end = text.rfind(" ", most // 2, most)
    end = most if end < 0 else end
    return text[:end], text[end:].lstrip()


def style(system: str) -> str:
    """Return the class that gives a system its colour: the same wherever it is shown."""
    if system in _STYLES:
        return f"s-{_STYLES.index(system)}"
    place = int(hashlib.blake2b(system.encode()).hexdigest(), 16) % _STYLES_OF_OTHERS
    return f"s-{len(_STYLES) + place}"


def figure(value: float) -> str:
    """Return a mean as a reader wants it: three significant digits, no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.5f}"


def picture_address(svg: str) -> str:
    """Return the picture as an image of its own: an image's scripts never run."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
