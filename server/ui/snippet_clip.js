// Labels, classifiers and groups as programs; in Python with this project's client.

import { key } from "./access.js";
import { literal, PYTHON } from "./literal.js";
import { callOf, KEY_VARIABLE, sampled, serverAddress } from "./snippets.js";

// fields: of /v1/classify beside its images.
export function classifySnippet(fields, pictures) {
  const body = { images: pictures.map(({ url }) => url), ...fields };
  const call = ["labels = client.classify(", "    pictures,", ...argumentsOf(fields), ")"];
  const shown = ["for label in labels:", "    print(label.label, round(label.confidence, 2))"];
  return { path: "v1/classify", body, pictures, job: false, python: () => python(pictures, [...call, ...shown]) };
}

export function trainSnippet(name, pictures, labels) {
  const body = { name, examples: pictures.map(({ url }, number) => ({ image: url, label: labels[number] })) };
  const lines = [
    `labels = ${literal(labels, { syntax: PYTHON, pictures: [] })}`,
    `job = client.classifiers.train(${JSON.stringify(name)}, labels, pictures)`,
    "print(client.jobs.wait(job))",
  ];
  return { path: "v1/classifiers", body, pictures, job: true, python: () => python(pictures, lines) };
}

// fields: of /v1/clusterings beside its images.
export function clusterSnippet(fields, pictures) {
  const body = { images: pictures.map(({ url }) => url), ...fields };
  const call = [
    "job = client.cluster(",
    "    pictures,",
    ...argumentsOf(fields),
    ")",
    "groups = client.jobs.wait(job)",
  ];
  const shown = ["for cluster in groups.clusters:", "    print(cluster.name, cluster.size)"];
  return { path: "v1/clusterings", body, pictures, job: true, python: () => python(pictures, [...call, ...shown]) };
}

function argumentsOf(fields) {
  return Object.entries(fields).map(
    ([name, value]) => `    ${name}=${literal(value, { syntax: PYTHON, pictures: [] }, "    ")},`,
  );
}

function python(pictures, lines) {
  const head = [];
  if (key()) head.push("import os");
  if (sampled(pictures)) head.push("import urllib.request");
  if (head.length) head.push("");
  head.push("from covervlm.clients import Client", "", `SERVER = ${JSON.stringify(serverAddress())}`);
  if (sampled(pictures)) {
    head.push("", "", "def sample(name):", '    with urllib.request.urlopen(f"{SERVER}/ui/examples/{name}") as file:');
    head.push("        return file.read()", "", "");
  }
  const list = pictures.map((one) => (one.sample === null ? JSON.stringify(one.name) : callOf(one, JSON.stringify)));
  const secret = key() ? `, api_key=os.environ["${KEY_VARIABLE}"]` : "";
  head.push(`client = Client(SERVER${secret})`, "pictures = [", ...list.map((one) => `    ${one},`), "]");
  return [...head, ...lines, ""].join("\n");
}
