// What a GET answers, as a program.

import { key } from "./access.js";
import { KEY_VARIABLE, serverAddress } from "./snippets.js";

export function readSnippet(path) {
  return { path, body: null, pictures: [], job: false, python: () => python(path) };
}

function python(path) {
  const secret = key() ? `{"Authorization": "Bearer " + os.environ["${KEY_VARIABLE}"]}` : "{}";
  return [
    ...(key() ? ["import os"] : []),
    "import urllib.request",
    "",
    `request = urllib.request.Request("${serverAddress()}/${path}", headers=${secret})`,
    "with urllib.request.urlopen(request) as answer:",
    "    print(answer.read().decode())",
    "",
  ].join("\n");
}
