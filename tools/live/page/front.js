// SPDX-License-Identifier: GPL-2.0-only
// Starts the front end of ipywidgets without a notebook.
//
// The wheel `widgetsnbextension` holds it as one AMD module, made for the classic notebook.  A page has no notebook,
// so this file plays one: `define` and `require` know the few modules that are asked for, and `nothing` stands for
// whatever else is touched (menus, notifications, the keyboard).  The script of that wheel comes after this one, then
// those of other makers' widgets (anywidget); each has its module's name in `data-module`.

{
  const nothing = new Proxy(function () {}, {
    get: (_, key) => (key === "then" ? undefined : key === Symbol.toPrimitive ? () => "" : nothing),
    apply: () => nothing,
    construct: () => nothing,
  });
  const events = { on() {} };
  const kernel = {
    comm_manager: { register_target() {}, new_comm: () => Promise.reject(new Error("no kernel answers here")) },
  };
  const notebook = { kernel, events, container: events, metadata: {}, get_cells: () => [], keyboard_manager: nothing };
  const modules = {
    "base/js/namespace": { notebook },
    "base/js/events": events,
    "notebook/js/outputarea": { OutputArea: { prototype: { register_mime_type() {} } } },
  };

  window.Jupyter = { version: "7.0.0", menubar: nothing, notification_area: nothing };
  window.requirejs = window.require = (names, then) => then(...names.map((name) => modules[name] ?? nothing));
  requirejs.config = () => {};

  // The first is the extension, which is also what other makers' widgets want of @jupyter-widgets/base.
  window.define = (names, make) => {
    const made = make(...names.map((name) => modules[name] ?? {}));
    modules[document.currentScript.dataset.module] = made;
    modules["@jupyter-widgets/base"] ??= made;
  };

  /** Return ipywidgets' own manager of models and views. */
  kvmPf.widgetManager = async () => {
    const menu = document.createElement("ul"); // the extension wires an entry of the notebook's help menu
    menu.innerHTML = "<li><a id=help_menu></a></li>";
    menu.hidden = true;
    document.body.append(menu);
    await modules["@jupyter-widgets/base"].load_ipython_extension();
    menu.remove();
    kernel.widget_manager.display_view = async (view, place) => {
      view.luminoWidget.constructor.attach(view.luminoWidget, place);
    };
    return kernel.widget_manager;
  };
}
