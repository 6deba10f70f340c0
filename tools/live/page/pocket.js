// SPDX-License-Identifier: GPL-2.0-only
// The one page with all widgets: a section for each, made when it is first opened, and drop of a file into any box.

{
  const state = document.getElementById("state");
  const sections = [...document.querySelectorAll("main > section")];
  const links = [...document.querySelectorAll("nav a")];
  let started;

  const open = async () => {
    const wanted = sections.find((each) => `#${each.id}` === location.hash) ?? sections[0];
    sections.forEach((each) => (each.hidden = each !== wanted));
    links.forEach((each) => (each.ariaCurrent = each.hash === `#${wanted.id}` ? "page" : null));
    if (!wanted.dataset.source || wanted.dataset.state) return;
    wanted.dataset.state = "starting";
    started ??= kvmPf.start(location.href).then((made) => Object.assign(kvmPf, made));
    await started;
    await kvmPf.put(wanted.dataset.source, wanted.appendChild(document.createElement("div")));
    wanted.dataset.state = "live";
    state.textContent = "";
  };

  const tell = (error) => {
    state.textContent = `Python did not start here: ${String(error).trim().split("\n").at(-1)}`;
    console.error(error);
  };

  /** Put a file's text into the box that it is dropped on, or into the only one of the section. */
  const take = async (event) => {
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    event.preventDefault();
    const section = sections.find((each) => !each.hidden);
    const box = event.target.closest?.("textarea") ?? section.querySelector("textarea");
    if (!box) return;
    box.value = await file.text();
    box.dispatchEvent(new Event("input", { bubbles: true }));
    box.dispatchEvent(new Event("change", { bubbles: true }));
  };

  addEventListener("hashchange", () => open().catch(tell));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => take(event).catch(tell));
  open().catch(tell);
}
