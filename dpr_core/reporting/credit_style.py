"""Style and script of the token-credit page."""

STEPS = 10
"""Shades on each side of zero."""

RED = (178, 24, 43)
BLUE = (33, 102, 172)
INK = "#1c1e21"
WHITE = "#ffffff"


def hue(step: int) -> tuple[int, int, int]:
    """Red above zero, blue below."""
    return RED if step > 0 else BLUE


def takes_white_ink(step: int) -> bool:
    """Whether white reads better than dark ink on this shade over a light page."""
    return step >= 8 or step <= -9


def _shades() -> str:
    rules = []
    for prefix, by in (("rew", "reward"), ("ret", "return")):
        for step in range(-STEPS, STEPS + 1):
            channels = " ".join(str(channel) for channel in hue(step))
            ink = f"; color: {WHITE}" if takes_white_ink(step) else ""
            rule = f"background: rgb({channels} / {abs(step) / STEPS:.2f}){ink}"
            rules.append(f"#by-{by}:checked ~ * .{prefix}{step} {{ {rule} }}")
    return "\n".join(rules)


STYLE = (
    """
h2 { margin: 0 0 .3rem; font-size: .75rem; font-weight: 600; letter-spacing: .06em; text-transform: uppercase;
  color: var(--quiet); }
#by-reward, #by-return { position: absolute; opacity: 0; pointer-events: none; }
.bar { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; align-items: center; gap: .75rem 2rem;
  margin: 1rem 0 1.25rem; padding: .75rem 0; background: var(--paper); border-bottom: 1px solid var(--line); }
.switch { display: inline-flex; border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.switch label { padding: .3rem .9rem; cursor: pointer; font-size: .9rem; color: var(--quiet); }
#by-reward:checked ~ .bar [for=by-reward], #by-return:checked ~ .bar [for=by-return] {
  background: var(--accent); color: var(--paper); font-weight: 600; }
#by-reward:focus-visible ~ .bar [for=by-reward], #by-return:focus-visible ~ .bar [for=by-return] {
  outline: 2px solid var(--ink); outline-offset: -3px; }
.legend { display: none; align-items: center; gap: .6rem; font: .8rem var(--mono); color: var(--quiet); }
#by-reward:checked ~ .bar .legend-reward, #by-return:checked ~ .bar .legend-return { display: flex; }
.ramp { display: inline-flex; border: 1px solid var(--line); border-radius: .25rem; overflow: hidden; }
.ramp i { width: .7rem; height: 1rem; }
section { margin: 0 0 1.25rem; padding: 1.1rem 1.25rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .75rem; }
.prompt { margin: 0 0 1rem; white-space: pre-wrap; }
.tokens { margin: 0; font: .95rem/2.05 var(--mono); white-space: pre-wrap; }
.t { padding: .22em 0; margin-right: 1px; border-radius: .25em; cursor: default; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.t:hover, .t:focus { outline: 2px solid var(--ink); outline-offset: 0; }
.totals { display: flex; flex-wrap: wrap; gap: .5rem 1.75rem; margin-top: 1rem; padding-top: .75rem;
  border-top: 1px solid var(--line); font-size: .8rem; }
.totals dd { font: .9rem var(--mono); }
#tip { position: fixed; z-index: 2; max-width: min(22rem, 90vw); padding: .6rem .8rem; background: var(--ink);
  color: var(--paper); border-radius: .5rem; box-shadow: 0 .4rem 1.5rem rgb(0 0 0 / .3); pointer-events: none;
  font-size: .8rem; }
#tip dl { display: grid; grid-template-columns: auto auto; gap: .1rem 1rem; }
#tip dt { color: inherit; opacity: .7; }
#tip dd { font-family: var(--mono); text-align: right; }
#tip[hidden] { display: none; }
@media print { .bar { position: static; } }
"""
    + _shades()
    + "\n"
)

SCRIPT = """
(() => {
  const tip = document.getElementById("tip");
  const cells = tip.querySelectorAll("[data-show]");
  const token = (event) => event.target.closest && event.target.closest(".t");
  let shown = null;
  const hide = () => {
    if (shown) shown.removeAttribute("aria-describedby");
    shown = null;
    tip.hidden = true;
  };
  const show = (t) => {
    hide();
    shown = t;
    for (const cell of cells) cell.textContent = t.dataset[cell.dataset.show];
    t.setAttribute("aria-describedby", "tip");
    tip.hidden = false;
    place(t);
  };
  const place = (t) => {
    const at = t.getClientRects()[0], box = tip.getBoundingClientRect();
    const below = at.bottom + 8 + box.height < innerHeight;
    tip.style.left = Math.max(8, Math.min(at.left, innerWidth - box.width - 8)) + "px";
    tip.style.top = Math.max(8, below ? at.bottom + 8 : at.top - box.height - 8) + "px";
  };
  const main = document.querySelector("main");
  main.addEventListener("pointerover", (event) => { const t = token(event); if (t) show(t); else hide(); });
  main.addEventListener("pointerleave", hide);
  main.addEventListener("focusin", (event) => { const t = token(event); if (t) show(t); });
  main.addEventListener("focusout", hide);
  main.addEventListener("keydown", (event) => {
    const t = token(event);
    const next = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (event.key === "Escape") hide();
    if (!t || !next || !t[next]) return;
    event.preventDefault();
    t.tabIndex = -1;
    t[next].tabIndex = 0;
    t[next].focus();
  });
  addEventListener("scroll", () => { if (shown) place(shown); }, { passive: true });
})();
"""
