"""Self-contained HTML pages from jinja2 templates: nothing loaded, only the page's own style and script allowed.

Every text that a template shows is made visible (`escape_control`) and escaped; only `Markup` passes as it is.
"""

import base64
import hashlib
import html
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from dpr_core.text import escape_control, escape_control_lines

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def page(template: str, title: str, *, style: str = "", script: str = "", images: bool = False, **values: Any) -> str:
    """A whole document. `style` and `script` are this project's own files: data never goes into them.

    With `images`, pictures may be shown that stand in the document itself; in a picture no script runs.
    """
    style = asset("page.css") + style
    policy = ["default-src 'none'", f"style-src {_digest(style)}", "base-uri 'none'", "form-action 'none'"]
    if images:
        policy.insert(1, "img-src data:")
    if script:
        policy.insert(1, f"script-src {_digest(script)}")
    own = {"title": title, "policy": "; ".join(policy), "style": Markup(style), "script": Markup(script)}
    return f"<!doctype html>\n{render(template, **own, **values)}\n"


def render(template: str, **values: Any) -> Markup:
    """What a template makes of the values: a page, or a part of one."""
    return Markup(_environment().get_template(template).render(values))


def asset(name: str) -> str:
    """A style or script, as it stands in a page."""
    return "\n" + (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    class Templates(FileSystemLoader):
        """Line breaks in templates are for their readers: between tags they are nothing, between words a space."""

        def get_source(self, environment: Environment, template: str) -> Any:
            source, *rest = super().get_source(environment, template)
            source = re.sub(r"(?<=[>}])\s*\n\s*|\s*\n\s*(?=[<{])", "", source.strip())
            return re.sub(r"\s*\n\s*", " ", source), *rest

    environment = Environment(
        loader=Templates(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_escaped, cache_size=-1
    )
    environment.filters["lines"] = lambda text: Markup(html.escape(escape_control_lines(text)))
    return environment


def _escaped(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(html.escape(escape_control(str(value))))


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
