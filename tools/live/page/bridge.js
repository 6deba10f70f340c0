// SPDX-License-Identifier: GPL-2.0-only
// Carries messages between the models in the page and the widgets in Python, and shows views.

/** Return a function that shows the model of an id in a place; `bridge` is the Python module of that name. */
kvmPf.connect = (manager, bridge) => {
  const comms = {};
  let sent = 0;
  let last = Promise.resolve(); // messages arrive in the order in which they are sent
  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

  const comm = (id) =>
    (comms[id] ??= {
      comm_id: id,
      target_name: "jupyter.widget",
      early: [], // updates that came before their model was made
      on_msg(hear) {
        this.hear = hear;
        this.early.splice(0).forEach(hear);
      },
      on_close(hear) {
        this.closed = hear;
      },
      close() {
        delete comms[id];
      },
      send(data, callbacks, _metadata, buffers) {
        const name = `message ${++sent}`;
        // Nothing is painted while Python works: before it begins, the button that was pressed shows that it does.
        const pressed = data.method === "custom" ? document.activeElement : null;
        pressed?.setAttribute("aria-busy", "true");
        last = last.then(() => pause(pressed ? 30 : 0)).then(() => {
          try {
            bridge.receive(id, name, JSON.stringify(data), buffers ?? []);
          } catch (error) {
            console.error(error);
          }
          pressed?.removeAttribute("aria-busy");
          // Until it hears that Python is idle, a model holds its next change back.
          callbacks?.iopub?.status?.({ content: { execution_state: "idle" } });
        });
        return name;
      },
    });

  bridge.sink = (kind, id, text, buffers) => {
    const views = buffers.map((each) => new DataView(each.buffer, each.byteOffset, each.byteLength));
    const message = { ...JSON.parse(text), buffers: views };
    if (kind === "comm_open") {
      manager.handle_comm_open(comm(id), message);
    } else if (kind === "comm_msg") {
      comm(id).hear ? comm(id).hear(message) : comm(id).early.push(message);
    } else {
      comms[id]?.closed?.(message);
      delete comms[id];
    }
  };

  const children = async (view) => {
    for (const child of await Promise.all(view.children_views?.views ?? [])) {
      await children(child);
    }
  };

  return async (id, place) => {
    const view = await manager.create_view(await manager.get_model(id));
    await manager.display_view(view, place);
    await view.displayed;
    await children(view);
  };
};
