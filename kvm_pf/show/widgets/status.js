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
  const guard = requestAnimationFrame(() => {
    const panel = el.closest(".kvm-pf-panel");
    if (panel) panel.dataset.lmSuppressShortcuts = "true";
  });
  return () => {
    cancelAnimationFrame(guard);
    model.off("change:value", draw);
  };
}

export default { render };
