// SPDX-License-Identifier: GPL-2.0-only
// Starts Python in the page.
//
// What it needs comes as text inside scripts: a page that was opened from disk may not fetch a file, but it may load a
// script.  Each such script hands its content, packed with gzip and written in base64, to kvmPf.part().

const kvmPf = (() => {
  const parts = {};

  const HERE = "parts://here/"; // what the parts' addresses begin with, for whoever wants addresses

  const TYPES = { wasm: "application/wasm", zip: "application/zip", mjs: "text/javascript" };

  const decode = (text) =>
    Uint8Array.fromBase64?.(text) ?? Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  /** Return a part as the response to a request for it would be; a damaged one is found out here. */
  const response = async (name) => {
    if (!(name in parts)) throw new Error(`${name}.js is missing or damaged`);
    let content;
    try {
      const packed = new Blob([decode(parts[name])]).stream();
      content = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
    } catch {
      throw new Error(`${name}.js is damaged`);
    }
    delete parts[name]; // each is wanted once
    const type = TYPES[name.split(".").at(-1)] ?? "application/octet-stream";
    return new Response(content, { headers: { "content-type": type } });
  };

  /** Return the address of a part, for whoever takes nothing else. */
  const address = async (name) => URL.createObjectURL(await (await response(name)).blob());

  /** Do something that asks for a part by address, and answer it with that part. */
  const answering = async (name, work) => {
    const fetch = window.fetch;
    const part = await response(name); // before the work begins, which never ends without it
    window.fetch = async (url, ...rest) => (String(url.url ?? url) === HERE + name ? part : fetch(url, ...rest));
    try {
      return await work();
    } finally {
      window.fetch = fetch;
    }
  };

  /** Start Python, unpack the libraries and the project, return the interpreter. */
  const python = async () => {
    const [module, library] = await Promise.all([
      address("pyodide.asm.mjs").then((url) => import(url)),
      address("library.zip"),
    ]);
    const settings = { stdLibURL: library, createPyodideModule: module.default, lockFileContents: kvmPf.lock };
    const py = await answering("pyodide.asm.wasm", () => loadPyodide({ indexURL: HERE, ...settings }));
    await unpack(py, "app.zip");
    if ("recordings.zip" in parts) await unpack(py, "recordings.zip");
    py.runPython("import sys; sys.path.insert(0, '/app')");
    return py;
  };

  /** Unpack an archive of modules where Python finds them. */
  const unpack = async (py, name) => {
    py.unpackArchive(await (await response(name)).arrayBuffer(), name.split(".").at(-1), { extractDir: "/app" });
  };

  /** Load the packages, built for this Python, whose wheels are among the parts. */
  const install = async (py) => {
    for (const name of Object.keys(parts).filter((each) => each.endsWith(".whl"))) {
      await answering(name, () => py.loadPackage(HERE + name, { messageCallback() {} }));
    }
  };

  /** Load a script; several load side by side and run in the order in which they were asked for. */
  const script = (address, data = {}) =>
    new Promise((done, failed) => {
      const tag = document.createElement("script");
      Object.assign(tag.dataset, data);
      Object.assign(tag, { src: address, async: false, onload: done });
      tag.onerror = () => failed(new Error(`${address} did not load`));
      document.head.append(tag);
    });

  return { part: (name, text) => (parts[name] = text), python, install, script };
})();
