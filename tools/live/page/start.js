// SPDX-License-Identifier: GPL-2.0-only
// Starts Python with the widgets, and makes widgets from lines of Python.

/**
 * Return what shows the widget that the last of some lines names, in an element of the page; and Python itself.
 * `folder` is where the solver's script is, should it be wanted.
 */
kvmPf.start = async (folder) => {
  const py = await kvmPf.python();
  const show = kvmPf.connect(await kvmPf.widgetManager(), py.pyimport("bridge"));
  const cells = py.pyimport("cells");

  const put = async (lines, place) => {
    const widget = cells.widget(lines);
    if (cells.uses_solver(widget)) place.append(solverButton());
    await show(widget.model_id, place);
    return widget;
  };

  let solver; // the promise of it, once it was asked for

  const solverButton = () => {
    const button = document.createElement("button");
    button.className = "kvm-pf-solver";
    button.textContent = "load the solver, to have claims proved here";
    button.onclick = async () => {
      button.disabled = true;
      button.textContent = "the solver is loading …";
      solver ??= kvmPf.script(new URL("solver.js", folder)).then(() => kvmPf.install(py));
      try {
        await solver;
        button.textContent = "the solver is here: ask again";
      } catch (error) {
        solver = undefined;
        button.disabled = false;
        button.textContent = "solver.js could not be loaded: it belongs into the folder of this page";
        console.error(error);
      }
    };
    return button;
  };

  return { py, cells, put };
};
