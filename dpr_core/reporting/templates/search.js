(() => {
  const field = document.getElementById("find");
  const said = document.getElementById("found");
  const all = [...document.querySelectorAll("[data-find]")];
  const texts = all.map((each) => each.textContent.toLowerCase());
  const mark = (words) => {
    if (!CSS.highlights) return;
    const ranges = [];
    for (const each of words ? all : []) {
      const nodes = document.createTreeWalker(each, NodeFilter.SHOW_TEXT);
      while (!each.hidden && nodes.nextNode()) {
        const node = nodes.currentNode, text = node.data.toLowerCase();
        for (let at = text.indexOf(words); at >= 0; at = text.indexOf(words, at + words.length)) {
          if (at + words.length > node.length) break;
          const range = new Range();
          range.setStart(node, at);
          range.setEnd(node, at + words.length);
          ranges.push(range);
        }
      }
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  };
  const search = () => {
    const words = field.value.trim().toLowerCase();
    let count = 0;
    all.forEach((each, i) => {
      const matches = texts[i].includes(words);
      each.hidden = !matches;
      count += matches;
      for (let fold = each.closest("details"); fold; fold = fold.parentElement.closest("details")) {
        if (!words) fold.open = false;
        else if (matches) fold.open = true;
      }
    });
    said.textContent = words ? `${count} of ${all.length}` : "";
    mark(words);
  };
  field.addEventListener("input", search);
  field.closest(".find").hidden = false;
})();
