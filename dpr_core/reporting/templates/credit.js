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
