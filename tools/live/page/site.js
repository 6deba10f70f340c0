// SPDX-License-Identifier: GPL-2.0-only
// Puts live widgets in the place of their still twins, once the page is shown and if the browser can.
//
// An element of class `live` holds the twin; `data-source` has the lines of the notebook that make the widget.  A twin
// whose widget cannot be made stays as it is.

{
  const own = document.currentScript;

  /** Say on the page, above a twin, why it stands still. */
  const tell = (twin, error) => {
    console.error(error);
    twin.dataset.state = "still";
    if (twin.previousElementSibling?.className === "kvm-pf-still") return;
    const line = document.createElement("p");
    line.className = "kvm-pf-still";
    line.setAttribute("role", "status");
    const why = String(error).trim().split("\n").at(-1);
    line.textContent = `This widget stands still: what runs it did not start here (${why}).`;
    twin.before(line);
  };

  const bringToLife = async (twins) => {
    const load = (name) => kvmPf.script(new URL(name, own.src), { module: name.replace(/\.js$/, "") });
    await Promise.all(own.dataset.scripts.split(" ").map(load));
    Object.assign(kvmPf, await kvmPf.start(own.src));
    for (const twin of twins) {
      const still = [...twin.childNodes];
      const place = twin.appendChild(document.createElement("div")); // a view is shown in what the page has already
      try {
        await kvmPf.put(twin.dataset.source, place);
        still.forEach((node) => node.remove());
        twin.dataset.state = "live";
      } catch (error) {
        place.remove();
        tell(twin, error);
      }
      await new Promise((done) => setTimeout(done)); // let the page breathe
    }
  };

  const twins = [...document.querySelectorAll(".live")];
  const able = typeof WebAssembly === "object" && typeof DecompressionStream === "function";
  const thrifty = navigator.connection?.saveData; // the reader pays for what is loaded: twelve megabytes are much
  if (twins.length && able && !thrifty) {
    const idle = window.requestIdleCallback ?? setTimeout;
    const allStill = (error) => twins.filter((twin) => !twin.dataset.state).forEach((twin) => tell(twin, error));
    addEventListener("unhandledrejection", (event) => allStill(event.reason)); // so a damaged part may end
    idle(() => bringToLife(twins).catch(allStill));
  }
}
