// SPDX-License-Identifier: GPL-2.0-only
// A line for screen readers, which keeps the panel's keys from JupyterLab, too.

function render({ model, el }) {
  const line = document.createElement("div");
  line.className = "kvm-pf-status";
  line.setAttribute("role", "status");
  const draw = () => (line.textContent = model.get("value"));
  draw();
  model.on("change:value", draw);
  el.append(line);

  // JupyterLab asks the element that has the focus whether its shortcuts are wanted; Escape leads back to the cell.
  const keep = ({ target }) => (target.dataset.lmSuppressShortcuts = "true");
  const leave = ({ key }) => key === "Escape" && el.closest(".jp-Cell")?.focus();
  const later = requestAnimationFrame(() => {
    const panel = el.closest(".kvm-pf-panel");
    panel?.addEventListener("focusin", keep);
    panel?.addEventListener("keydown", leave);
  });
  return () => {
    cancelAnimationFrame(later);
    model.off("change:value", draw);
  };
}

export default { render };
