"""Self-contained HTML pages: every text escaped, nothing loaded, only this page's own style and script allowed."""

import base64
import hashlib
import html
from collections.abc import Mapping

from dpr_core.text import escape_control


class Html(str):
    """Markup that is already safe; a plain str is text, and gets escaped."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | int | bool) -> Html:
    """An element. `class_` stands for class, `data_x` for data-x; True gives a bare attribute, False none."""
    opening = tag
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            opening += f" {name}"
        elif value is not False:
            opening += f' {name}="{html.escape(str(value))}"'
    if tag in _VOID:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(*children)}</{tag}>")


def join(*children: str) -> Html:
    """One piece of markup out of several; plain text among them is escaped."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def image(png: bytes, caption: str) -> Html:
    """A picture that stands in the page itself; the page has to be made with `images`."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    shown = element("img", src=source, alt=escape_control(caption))
    return element("figure", element("figcaption", escape_control(caption)), shown)


def page(title: str, *body: str, style: str = "", script: str = "", images: bool = False) -> str:
    """A whole document. `style` and `script` are this project's own constants: data never goes into them.

    With `images`, pictures may be shown that stand in the document itself; in a picture no script runs.
    """
    style = BASE_STYLE + style
    policy = ["default-src 'none'", f"style-src {_source(style)}", "base-uri 'none'", "form-action 'none'"]
    if images:
        policy.insert(1, "img-src data:")
    if script:
        policy.insert(1, f"script-src {_source(script)}")
    head = join(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content="; ".join(policy)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", escape_control(title)),
        element("style", Html(style)),
    )
    tail = element("script", Html(script)) if script else Html("")
    return f"<!doctype html>\n{element('html', element('head', head), element('body', *body, tail), lang='en')}\n"


def definitions(values: Mapping[str, str], class_: str) -> Html:
    """Names and values as a list of pairs."""
    pairs = [
        element("div", element("dt", escape_control(name)), element("dd", escape_control(value)))
        for name, value in values.items()
    ]
    return element("dl", *pairs, class_=class_)


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_VOID = {"meta", "input", "br", "img"}

BASE_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #fafafa; --ink: #1c1e21; --quiet: #646a73; --line: #e2e4e8;
  --accent: #2f5fb3; --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14161a; --card: #1b1e24; --ink: #e6e8eb; --quiet: #9aa1ab; --line: #2e333b; --accent: #86aef2; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; line-height: 1.25; letter-spacing: -.01em; }
p { margin: .5rem 0; }
.quiet { color: var(--quiet); }
dl { margin: 0; }
dt { color: var(--quiet); }
dd { margin: 0; }
.provenance { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: .85rem; }
.provenance div { display: grid; grid-template-columns: minmax(8rem, 12rem) 1fr; gap: 1rem; padding: .15rem 0; }
.provenance dd { font-family: var(--mono); }
"""
