// The playground: what is chosen in the form, asked of the server, and shown.

import { ApiError, chat, prune } from "./api.js";
import { draw } from "./overlay.js";

const PREVIEW_DELAY = 200; // milliseconds without a change before the preview is asked for
const element = (id) => document.getElementById(id);
const form = element("form");
const question = element("question");
const budget = element("budget");
const method = element("method");
const key = element("key");
const panels = { pruned: element("pruned"), full: element("full") };

let model = "";
let picture = null; // the chosen image, loaded, with its data URL as src
let choosing = null; // stands for the latest choice of a picture
let preview = null; // { timer, controller } of the preview that is under way
let running = null; // AbortController of the answers that are under way

start().catch(showError);

async function start() {
  key.value = sessionStorage.getItem("covervlm-key") ?? "";
  const response = await fetch("ui/config.json");
  if (!response.ok) throw new ApiError("The server's settings cannot be read.", response.status);
  const config = await response.json();
  model = config.model;
  element("model").textContent = model;
  method.append(...config.methods.map((name) => new Option(name, name, name === config.method, name === config.method)));
  setBudgetLimit(config.vision_tokens ?? 576);
  config.examples.forEach(addExample);
  listen();
  document.body.dataset.ready = "true";
  if (config.examples.length) element("examples").querySelector("input").click();
}

function addExample({ url, question: text }, number) {
  const label = document.createElement("label");
  const choice = Object.assign(document.createElement("input"), { type: "radio", name: "example", value: url });
  const image = Object.assign(new Image(), { src: url, alt: `Example ${number + 1}: ${text}` });
  choice.addEventListener("change", () => {
    question.value = text;
    guarded(() => choose(async () => dataUrl(await (await fetch(url)).blob())));
  });
  label.append(choice, image);
  element("examples").append(label);
}

function listen() {
  const drop = element("drop");
  element("file").addEventListener("change", (event) => chooseFile(event.target.files[0]));
  for (const name of ["dragover", "dragenter", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover" || name === "dragenter");
      if (name === "drop") chooseFile(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) chooseFile(event.clipboardData.files[0]);
  });
  budget.addEventListener("input", () => {
    showBudget();
    requestPreview();
  });
  method.addEventListener("change", requestPreview);
  question.addEventListener("input", requestPreview);
  key.addEventListener("input", () => {
    sessionStorage.setItem("covervlm-key", key.value);
    requestPreview();
  });
  element("compare").addEventListener("change", (event) => (panels.full.hidden = !event.target.checked));
  element("stop").addEventListener("click", () => running?.abort());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (picture) guarded(ask);
  });
}

function chooseFile(file) {
  if (!file) return;
  guarded(async () => {
    if (!(await choose(() => dataUrl(file)))) return;
    element("drop-text").textContent = file.name || "Pasted picture";
    for (const choice of element("examples").querySelectorAll("input")) choice.checked = false;
  });
}

// Takes the picture whose data URL `load` brings; false where another was chosen meanwhile, which then counts.
async function choose(load) {
  const mine = (choosing = {});
  const image = Object.assign(new Image(), { src: await load() });
  try {
    await image.decode();
  } catch {
    if (choosing === mine) throw new ApiError("This file is not a picture that the browser can show.", 0);
  }
  if (choosing !== mine) return false;
  running?.abort();
  picture = image;
  element("ask").disabled = false;
  for (const panel of Object.values(panels)) reset(panel);
  requestPreview();
  return true;
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ApiError("The file cannot be read.", 0));
    reader.readAsDataURL(blob);
  });
}

// Shows which patches would be kept, a moment after the last change; nothing is generated for that.
function requestPreview() {
  cancelPreview();
  element("error").hidden = true;
  if (!picture || !question.value.trim() || running) return;
  const controller = new AbortController();
  const timer = setTimeout(() => reported(() => showKept(controller.signal)), PREVIEW_DELAY);
  preview = { timer, controller };
}

function cancelPreview() {
  if (!preview) return;
  clearTimeout(preview.timer);
  preview.controller.abort();
  preview = null;
}

async function showKept(signal) {
  const kept = await prune(asked({ keep_tokens: Number(budget.value) }), { key: key.value, signal });
  if (!signal.aborted) showImage(panels.pruned, kept);
}

async function ask() {
  cancelPreview();
  running?.abort();
  const controller = (running = new AbortController());
  element("ask").disabled = true;
  element("stop").hidden = false;
  element("summary").textContent = "";
  for (const panel of Object.values(panels)) reset(panel);
  try {
    // Fills the server's cache of image features, so that neither answer pays for the vision tower.
    await showKept(controller.signal);
    const pruned = await answer(panels.pruned, { keep_tokens: Number(budget.value) }, controller.signal);
    if (element("compare").checked) {
      compare(pruned, await answer(panels.full, { method: "none" }, controller.signal));
    }
  } finally {
    if (running === controller) {
      running = null;
      element("ask").disabled = false;
      element("stop").hidden = true;
    }
  }
}

async function answer(panel, pruning, signal) {
  const text = panel.querySelector(".answer");
  text.classList.add("busy");
  try {
    const request = { ...asked(pruning), schema: schema() };
    const result = await chat(request, { key: key.value, signal }, (piece) => text.append(text.textContent ? piece : piece.trimStart()));
    if (request.schema) text.textContent = indented(text.textContent);
    showImage(panel, result.image);
    showTimes(panel, result);
    return result;
  } finally {
    text.classList.remove("busy");
  }
}

function asked(pruning) {
  const named = { method: method.value, ...pruning };
  return { model, question: question.value, image: picture.src, pruning: { ...named, return_indices: true } };
}

// The schema in the form, if there is one.
function schema() {
  const text = element("schema").value.trim();
  try {
    return text && JSON.parse(text);
  } catch (error) {
    throw new ApiError(`The schema is not JSON: ${error.message}.`, 0);
  }
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // it was cut off at its longest
  }
}

function reset(panel) {
  panel.querySelector(".badge").textContent = "";
  panel.querySelector(".answer").textContent = "";
  panel.querySelector("dl").replaceChildren();
  draw(panel.querySelector("canvas"), picture, null);
}

function showImage(panel, kept) {
  if (panel === panels.pruned && kept.total > 0) setBudgetLimit(kept.total);
  panel.querySelector(".badge").textContent = `${kept.kept} of ${kept.total} tokens`;
  draw(panel.querySelector("canvas"), picture, kept.kept < kept.total ? kept : null);
  panel.dataset.kept = kept.kept;
}

function showTimes(panel, { firstToken, total, promptTokens, image }) {
  const entries = [
    ["Time to first token", firstToken === null ? "no token" : milliseconds(firstToken)],
    ["Whole answer", milliseconds(total)],
    ["Prompt tokens", String(promptTokens)],
  ];
  if (image.kept < image.total) {
    entries.push(["Selection", milliseconds(image.milliseconds)]);
    if (image.coverage !== null) entries.push(["Coverage", image.coverage.toFixed(3)]);
  }
  panel.querySelector("dl").replaceChildren(
    ...entries.flatMap(([name, value]) => [
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    ]),
  );
}

function compare(pruned, full) {
  const tokens = `${pruned.promptTokens} prompt tokens instead of ${full.promptTokens}`;
  const both = pruned.firstToken !== null && full.firstToken !== null;
  const times = both ? `, first token after ${milliseconds(pruned.firstToken)} instead of ${milliseconds(full.firstToken)}` : "";
  addBars("Prompt tokens", pruned.promptTokens, full.promptTokens);
  if (both) addBars("Time to first token", pruned.firstToken, full.firstToken);
  element("summary").textContent = tokens + times + ".";
}

// A bar under a figure of each panel, on a common scale.
function addBars(name, ...values) {
  Object.values(panels).forEach((panel, number) => {
    const entry = [...panel.querySelectorAll("dt")].find((dt) => dt.textContent === name);
    const bar = Object.assign(document.createElement("progress"), { max: Math.max(...values), value: values[number] });
    const place = document.createElement("dd");
    place.setAttribute("aria-hidden", "true"); // the figure says it already
    place.append(bar);
    entry.nextElementSibling.after(place);
  });
}

function milliseconds(value) {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

function setBudgetLimit(total) {
  budget.max = total;
  showBudget();
}

function showBudget() {
  const text = `${budget.value} of ${budget.max} (${Math.round((100 * budget.value) / budget.max)} %)`;
  element("budget-text").textContent = text;
  budget.setAttribute("aria-valuetext", text);
}

// Runs what somebody asked for: what went wrong before is no longer shown.
async function guarded(action) {
  element("error").hidden = true;
  await reported(action);
}

// Runs an action and shows what goes wrong with it; an action that was aborted is not an error.
async function reported(action) {
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") showError(error);
  }
}

function showError(error) {
  const box = element("error");
  box.textContent = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
  box.hidden = false;
  if (error.status === 401) {
    element("access").open = true;
    key.focus();
  }
}
