// A question about pictures as a program; in Python with the `openai` package, unchanged.

import { key } from "./access.js";
import { literal, PYTHON } from "./literal.js";
import { ApiError } from "./server.js";
import { callOf, KEY_VARIABLE, own, sampled, serverAddress } from "./snippets.js";

export function chatSnippet(body, pictures) {
  if (!pictures.length) throw new ApiError("Choose a picture first.");
  return { path: "v1/chat/completions", body, pictures, job: false, python: () => python(body, pictures) };
}

function python({ vision_pruning, ...body }, pictures) {
  const lines = ["import base64"];
  if (key()) lines.push("import os");
  if (sampled(pictures)) lines.push("import urllib.request");
  lines.push("", "from openai import OpenAI", "", `SERVER = ${JSON.stringify(serverAddress())}`);
  if (own(pictures)) {
    lines.push("", "", "def picture(path):", '    with open(path, "rb") as file:');
    lines.push("        return base64.b64encode(file.read()).decode()");
  }
  if (sampled(pictures)) {
    lines.push("", "", "def sample(name):", '    with urllib.request.urlopen(f"{SERVER}/ui/examples/{name}") as file:');
    lines.push("        return base64.b64encode(file.read()).decode()");
  }
  const picture = (one) => `"${one.url.slice(0, one.url.indexOf(",") + 1)}" + ${callOf(one, JSON.stringify)}`;
  const given = Object.entries({ ...body, extra_body: { vision_pruning } }).map(
    ([name, value]) => `    ${name}=${literal(value, { syntax: PYTHON, pictures, picture }, "    ")},`,
  );
  const secret = key() ? `os.environ["${KEY_VARIABLE}"]` : '"none"';
  return [
    ...lines,
    "",
    "",
    `client = OpenAI(base_url=f"{SERVER}/v1", api_key=${secret})`,
    "answer = client.chat.completions.create(",
    ...given,
    ")",
    "print(answer.choices[0].message.content)",
    "",
  ].join("\n");
}
