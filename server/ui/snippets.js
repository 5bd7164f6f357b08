// A request as a program that anybody can run: curl, Python, JavaScript. A key never becomes part of it.

import { key } from "./access.js";
import { JAVASCRIPT, JSON_TEXT, literal } from "./literal.js";
import { fileName } from "./pictures.js";

export const KEY_VARIABLE = "COVERVLM_API_KEY";

// Each takes { path, body, pictures, job, python }: `body` is null for GET; `pictures` are those that occur in it;
// `job`: the answer is a job to wait for; `python`: the program, which calls a client and not a path.
export const WRITERS = { curl, Python: ({ python }) => python(), JavaScript: javascript };

export const serverAddress = () => new URL(".", document.baseURI).href.replace(/\/$/, "");
export const own = (pictures) => pictures.some(({ sample }) => sample === null);
export const sampled = (pictures) => pictures.some(({ sample }) => sample !== null);
export const callOf = (picture, quoted) =>
  picture.sample === null ? `picture(${quoted(picture.name)})` : `sample(${quoted(fileName(picture.sample))})`;

const beginning = (picture) => picture.url.slice(0, picture.url.indexOf(",") + 1); // data:image/png;base64,

function curl({ path, body, pictures, job }) {
  const lines = [`SERVER=${serverAddress()}`];
  const authorized = key() ? ` -H "Authorization: Bearer $${KEY_VARIABLE}"` : "";
  if (own(pictures)) lines.push(`picture() { base64 < "$1" | tr -d '\\n'; }`);
  if (sampled(pictures)) lines.push(`sample() { curl -s "$SERVER/ui/examples/$1" | base64 | tr -d '\\n'; }`);
  if (body === null) return [...lines, `curl -s${authorized} "$SERVER/${path}"`, ""].join("\n");
  // In a here-document the shell reads $, ` and \ of the JSON.
  const text = (value) => JSON.stringify(value).replace(/[\\$`]/g, "\\$&");
  const picture = (one) => {
    const name = one.sample === null ? one.name : fileName(one.sample);
    return `"${beginning(one)}$(${one.sample === null ? "picture" : "sample"} ${shellQuoted(name)})"`;
  };
  const json = literal(body, { syntax: { ...JSON_TEXT, key: text }, pictures, picture, text });
  const asked = `curl -s "$SERVER/${path}" -H 'Content-Type: application/json'${authorized} -d @- <<JSON`;
  if (!job) return [...lines, asked, json, "JSON", ""].join("\n");
  return [
    ...lines,
    `JOB=$(${asked}`,
    json,
    "JSON",
    ")",
    `JOB=$(printf %s "$JOB" | sed 's/.*"id": *"\\([^"]*\\)".*/\\1/')`,
    "# The job's states as they come; the last one has its result.",
    `curl -sN${authorized} "$SERVER/v1/jobs/$JOB/events"`,
    "",
  ].join("\n");
}

function shellQuoted(text) {
  return /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function javascript({ path, body, pictures, job }) {
  const lines = ["// Node 18 or newer, as a file that ends in .mjs."];
  if (own(pictures)) lines.push('import { readFile } from "node:fs/promises";');
  lines.push("", `const server = ${JSON.stringify(serverAddress())};`);
  const authorized = key() ? `, Authorization: \`Bearer \${process.env.${KEY_VARIABLE}}\`` : "";
  lines.push(`const headers = { "Content-Type": "application/json"${authorized} };`);
  if (own(pictures)) lines.push('const picture = async (name) => (await readFile(name)).toString("base64");');
  if (sampled(pictures)) {
    lines.push("const sample = async (name) =>");
    lines.push('  Buffer.from(await (await fetch(`${server}/ui/examples/${name}`)).arrayBuffer()).toString("base64");');
  }
  if (body === null) {
    const read = path === "metrics" ? "text" : "json";
    return [...lines, `console.log(await (await fetch(\`\${server}/${path}\`, { headers })).${read}());`, ""].join(
      "\n",
    );
  }
  const picture = (one) => `\`${beginning(one)}\${await ${callOf(one, JSON.stringify)}}\``;
  const written = literal(body, { syntax: JAVASCRIPT, pictures, picture });
  lines.push(`const body = ${written};`);
  lines.push(
    `const response = await fetch(\`\${server}/${path}\`, { method: "POST", headers, body: JSON.stringify(body) });`,
  );
  if (!job) return [...lines, "console.log(JSON.stringify(await response.json(), null, 2));", ""].join("\n");
  return [
    ...lines,
    "let job = await response.json();",
    'while (["queued", "running"].includes(job.state)) {',
    "  await new Promise((resolve) => setTimeout(resolve, 500));",
    "  job = await (await fetch(`${server}/v1/jobs/${job.id}`, { headers })).json();",
    "}",
    "console.log(JSON.stringify(job.result ?? job.error ?? job, null, 2));",
    "",
  ].join("\n");
}
