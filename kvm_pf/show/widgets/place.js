// SPDX-License-Identifier: GPL-2.0-only
// A place in a sequence: a slider that can be dragged, stepped with the arrow keys, or left to run.

function render({ model, el }) {
  const name = model.get("description");
  const play = document.createElement("button");
  play.type = "button";
  const slider = Object.assign(document.createElement("input"), { type: "range", step: 1 });
  slider.setAttribute("aria-label", name);
  const told = document.createElement("span");
  el.className += " kvm-pf-place";
  el.title = model.get("tooltip");
  el.append(play, name, slider, told);

  let timer = 0;

  function draw() {
    const [value, min, max] = ["value", "min", "max"].map((key) => model.get(key));
    Object.assign(slider, { min, max, value });
    told.textContent = `${value} of ${max}`;
    slider.setAttribute("aria-valuetext", told.textContent);
    play.textContent = timer ? "❚❚" : "▶";
    play.setAttribute("aria-label", timer ? `stop at this ${name}` : `play from this ${name}`);
    if (timer && value >= max) stop();
  }

  function put(value) {
    model.set("value", value);
    model.save_changes();
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    draw();
  }

  function start() {
    if (model.get("value") >= model.get("max")) put(model.get("min"));
    timer = setInterval(() => put(Math.min(model.get("value") + 1, model.get("max"))), model.get("interval"));
    draw();
  }

  play.addEventListener("click", () => (timer ? stop() : start()));
  slider.addEventListener("input", () => put(Number(slider.value)));
  el.addEventListener("keydown", (event) => event.stopPropagation()); // JupyterLab has its own use for the keys
  model.on("change", draw);
  draw();
  return () => {
    clearInterval(timer);
    model.off("change", draw);
  };
}

export default { render };
