// SPDX-License-Identifier: GPL-2.0-only
// Sixty-four bits to click: the picture of a number and the way to change it.
// The model's `value` is hexadecimal text, for a u64 does not fit into a number of JavaScript's.

const STEPS = { ArrowLeft: 1, ArrowRight: -1, ArrowUp: 8, ArrowDown: -8 };

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function render({ model, el }) {
  const grid = element("div", "kvm-pf-bits");
  grid.setAttribute("role", "group");
  const cells = Array.from({ length: 64 }, () => {
    const cell = element("button", "");
    cell.type = "button";
    cell.append(element("span", "number"), element("span", "mark"), element("span", "name"));
    return cell;
  });
  grid.append(...cells.toReversed());
  const legend = element("div", "kvm-pf-bits-legend");

  const stopAt = (here) => cells.forEach((cell, n) => (cell.tabIndex = n === here ? 0 : -1));

  cells.forEach((cell, n) => {
    cell.addEventListener("click", () => {
      const flipped = BigInt(model.get("value")) ^ (1n << BigInt(n));
      model.set("value", "0x" + flipped.toString(16));
      model.save_changes();
    });
    cell.addEventListener("focus", () => stopAt(n));
    cell.addEventListener("keydown", (event) => {
      if (event.key in STEPS) {
        cells[n + STEPS[event.key]]?.focus();
        event.preventDefault();
      }
      if (event.key in STEPS || event.key === " " || event.key === "Enter") event.stopPropagation();
    });
  });

  function draw() {
    const value = BigInt(model.get("value"));
    const table = model.get("table");
    const inks = model.get("inks");
    grid.setAttribute("aria-label", model.get("description"));
    cells.forEach((cell, n) => {
      const set = ((value >> BigInt(n)) & 1n) === 1n;
      const { name = "", means = "no meaning here", setter = "" } = table[n] ?? {};
      const [number, mark, label] = cell.children;
      number.textContent = n;
      mark.textContent = set ? "■" : "□";
      label.textContent = name.replaceAll("_", " ");
      cell.title = `bit ${n}: ${means}`;
      cell.setAttribute("aria-pressed", set);
      cell.setAttribute("aria-label", [`bit ${n}`, name, set ? "set" : "clear"].filter(Boolean).join(", "));
      cell.style.borderTop = setter ? `4px ${inks[setter].line} ${inks[setter].colour}` : "";
    });
    const setters = new Set(Object.values(table).map((bit) => bit.setter));
    legend.replaceChildren(
      "set by ",
      ...Object.keys(inks).filter((name) => setters.has(name)).map((name) => {
        const entry = element("span", "", name);
        entry.style.borderTop = `4px ${inks[name].line} ${inks[name].colour}`;
        return entry;
      }),
    );
  }

  stopAt(63);
  draw();
  for (const name of ["value", "table"]) model.on(`change:${name}`, draw);
  el.append(grid, legend);
  return () => ["value", "table"].forEach((name) => model.off(`change:${name}`, draw));
}

export default { render };
