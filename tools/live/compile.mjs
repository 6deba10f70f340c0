// SPDX-License-Identifier: GPL-2.0-only
// node compile.mjs FOLDER APP MADE: compile the Python in Pyodide's FOLDER and in the archive APP; see compile.py.

import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [folder, app, made] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(`${folder}/pyodide.mjs`));
const py = await loadPyodide({ indexURL: folder });
const files = new Uint8Array(readFileSync(app));
py.FS.writeFile("/app.zip", files);
py.unpackArchive(files, "zip", { extractDir: "/app" });
py.runPython(readFileSync(new URL("compile.py", import.meta.url), "utf8"), { filename: "compile.py" });
for (const name of ["app.zip", "library.zip"]) {
  writeFileSync(`${made}/${name}`, py.FS.readFile(`/made/${name}`));
}
