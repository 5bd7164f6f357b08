// The tab "Ask": what is chosen in its form, asked by up to three methods side by side.

import { chat, chatBody, prune } from "./chat.js";
import { Column } from "./column.js";
import { comparison } from "./comparison.js";
import { startCopying } from "./copying.js";
import { byId, element } from "./element.js";
import { percent } from "./figures.js";
import { guarded, reported } from "./guard.js";
import { fetchSample, fileName, wholePicture } from "./pictures.js";
import { ApiError } from "./server.js";
import { chatSnippet } from "./snippet_chat.js";
import { bringIntoView } from "./view.js";

const PREVIEW_DELAY = 200; // milliseconds without a change before the preview is asked for
const EVERY = "none"; // the method that keeps every token

const form = byId("form");
const question = byId("question");
const budget = byId("budget");
const methods = ["method", "second", "third"].map(byId);
const error = byId("error");
const columns = methods.map(() => new Column());

let model = "";
let pictures = [];
let choosing = null; // stands for the latest choice of pictures
let preview = null; // { timer, controller } of the preview that is under way
let running = null; // AbortController of the answers that are under way

export function startAsk(config) {
  model = config.model;
  fillMethods(config);
  setBudgetLimit(config.vision_tokens ?? 576);
  byId("columns").append(...columns.map((column) => column.root));
  config.examples.forEach(addExample);
  listen();
  startCopying(byId("copy-ask"), () => chatSnippet(body(methods[0].value, []), pictures, schema()));
  nameColumns();
  if (config.examples.length) byId("examples").querySelector("input").click();
}

function fillMethods(config) {
  const options = config.methods.map((name) => [name, name]);
  const others = [["", "nothing"], [EVERY, "every token"], ...options];
  const choices = [options, others, others];
  methods.forEach((select, number) =>
    select.append(...choices[number].map(([value, text]) => new Option(text, value))),
  );
  methods[0].value = config.methods.includes(config.method) ? config.method : config.methods[0];
  methods[1].value = EVERY;
}

function addExample({ url, question: text }, number) {
  const choice = element("input", { type: "radio", name: "example", value: url });
  const image = Object.assign(new Image(), { src: url, alt: `Sample ${number + 1}: ${text}` });
  choice.addEventListener("change", () => {
    question.value = text;
    guarded(error, () => choose(async () => [await wholePicture(await fetchSample(url), fileName(url), url)]));
  });
  byId("examples").append(element("label", {}, choice, image));
}

function listen() {
  byId("file").addEventListener("change", (event) => {
    addFiles([...event.target.files].map((file) => ({ file, name: file.name })));
    event.target.value = "";
  });
  budget.addEventListener("input", showBudget);
  for (const control of [budget, question]) control.addEventListener("input", changed);
  methods.forEach((select) => select.addEventListener("change", nameColumns));
  for (const control of [...methods, byId("follow")]) control.addEventListener("change", changed);
  byId("schema").addEventListener("input", markOld);
  byId("stop").addEventListener("click", () => running?.abort());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (pictures.length) guarded(error, ask);
  });
}

// Adds pictures to one's own, or takes them in place of a sample.
export function addFiles(files) {
  guarded(error, async () => {
    const own = pictures.filter(({ sample }) => sample === null);
    const load = () => Promise.all(files.map(({ file, name }) => wholePicture(file, fileName(name))));
    if (!(await choose(async () => [...own, ...(await load())]))) return;
    for (const choice of byId("examples").querySelectorAll("input")) choice.checked = false;
  });
}

// Takes the pictures that `load` brings; false where others were chosen meanwhile, which then count.
async function choose(load) {
  const mine = (choosing = {});
  let loaded = null;
  try {
    loaded = await load();
  } catch (failure) {
    if (choosing === mine) throw failure;
  }
  if (choosing !== mine) return false;
  running?.abort();
  take(loaded);
  return true;
}

function take(chosen) {
  pictures = chosen;
  byId("ask").disabled = pictures.length === 0;
  byId("follow").disabled = true;
  byId("follow").checked = false;
  for (const column of columns) column.begin(pictures);
  byId("chosen").replaceChildren(...pictures.filter(({ sample }) => sample === null).map(ownPicture));
  byId("summary").textContent = "";
  requestPreview();
}

function ownPicture(picture) {
  const remove = element("button", { type: "button", className: "quiet", textContent: "Remove" });
  remove.setAttribute("aria-label", `Remove ${picture.name}`);
  remove.addEventListener("click", () => {
    take(pictures.filter((one) => one !== picture));
    byId("file").focus();
  });
  return element(
    "li",
    {},
    Object.assign(new Image(), { src: picture.url, alt: "" }),
    element("span", { textContent: picture.name }),
    remove,
  );
}

function nameColumns() {
  columns.forEach((column, number) => {
    const method = methods[number].value;
    column.root.hidden = method === "";
    column.name(method === EVERY ? "Every token" : method);
  });
  byId("columns").dataset.count = String(chosenColumns().length);
}

const chosenColumns = () => columns.filter((_, number) => methods[number].value !== "");
const methodOf = (column) => methods[columns.indexOf(column)].value;

// The question has changed, or what answers it: old answers are marked, and the patches shown are those of now.
export function changed() {
  markOld();
  requestPreview();
}

function markOld() {
  const old = chosenColumns().filter((column) => column.age(signature(column)));
  byId("summary").classList.toggle("old", old.length > 0);
}

// What an answer depends on, as text.
function signature(column) {
  const method = methodOf(column);
  const kept = method === EVERY ? null : budget.value;
  return JSON.stringify([method, kept, question.value.trim(), byId("schema").value.trim()]);
}

// Shows which patches would be kept, a moment after the last change; nothing is generated for that.
function requestPreview() {
  cancelPreview();
  error.hidden = true;
  if (!pictures.length || !question.value.trim() || running) return;
  const controller = new AbortController();
  const timer = setTimeout(() => reported(error, () => showKept(controller.signal)), PREVIEW_DELAY);
  preview = { timer, controller };
}

function cancelPreview() {
  if (!preview) return;
  clearTimeout(preview.timer);
  preview.controller.abort();
  preview = null;
}

async function showKept(signal) {
  const shown = pictures;
  for (const column of chosenColumns()) {
    const method = methodOf(column);
    if (method === EVERY) continue;
    const kept = await prune(body(method, turnsOf(column)), signal);
    if (signal.aborted) return;
    if (kept.length === 1 && kept[0].total > 0) setBudgetLimit(kept[0].total);
    column.showKept(shown, kept);
  }
}

const turnsOf = (column) => (byId("follow").checked ? [...column.turns, ...answeredTurn(column)] : []);

// The answer in sight is a turn once another question follows.
function answeredTurn(column) {
  return column.asked?.complete ? [{ question: column.asked.question, answer: column.text.textContent }] : [];
}

function body(method, turns) {
  const pruning = method === EVERY ? { method } : { method, keep_tokens: Number(budget.value) };
  return chatBody({ model, pictures, turns, question: question.value, pruning, schema: schema() });
}

async function ask() {
  cancelPreview();
  running?.abort();
  const controller = (running = new AbortController());
  const asked = chosenColumns();
  schema(); // told before anything is asked
  byId("ask").disabled = true;
  byId("stop").hidden = false;
  byId("summary").textContent = "";
  for (const column of asked) {
    column.turns = turnsOf(column);
    column.clear();
  }
  bringIntoView(byId("results"));
  try {
    // Fills the server's cache of image features, so that no answer pays for the vision tower.
    await showKept(controller.signal);
    const results = [];
    for (const column of asked) results.push(await answer(column, controller.signal));
    if (asked.length > 1) compare(asked, results);
    byId("follow").disabled = false;
  } finally {
    if (running === controller) {
      running = null;
      byId("ask").disabled = false;
      byId("stop").hidden = true;
      markOld(); // what was moved meanwhile
    }
  }
}

async function answer(column, signal) {
  const method = methodOf(column);
  const request = body(method, column.turns);
  const kept = method === EVERY ? "every token" : `${budget.value} tokens by ${method}`;
  column.asked = {
    signature: signature(column),
    question: question.value,
    told: `${kept}, “${question.value}”`,
    complete: false,
  };
  column.text.classList.add("busy");
  try {
    const result = await chat(request, signal, (piece) =>
      column.text.append(column.text.textContent ? piece : piece.trimStart()),
    );
    if (request.response_format) column.text.textContent = indented(column.text.textContent);
    column.asked.complete = true;
    column.showKept(pictures, result.images);
    column.showFigures(result);
    return result;
  } finally {
    column.text.classList.remove("busy");
  }
}

function compare(asked, results) {
  for (const [name, field] of [
    ["Prompt tokens", "promptTokens"],
    ["Time to first token", "firstToken"],
  ]) {
    const values = results.map((result) => result[field]);
    if (values.includes(null)) continue;
    asked.forEach((column, number) => column.addBar(name, values[number], Math.max(...values)));
  }
  const told = asked.map((column, number) => ({
    name: column.title.textContent,
    text: column.text.textContent,
    ...results[number],
  }));
  byId("summary").textContent = comparison(told);
}

// The schema in the form, if there is one.
function schema() {
  const text = byId("schema").value.trim();
  try {
    return text && JSON.parse(text);
  } catch (failure) {
    throw new ApiError(`The schema is not JSON: ${failure.message}.`);
  }
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // it was cut off at its longest
  }
}

function setBudgetLimit(total) {
  budget.max = total;
  showBudget();
}

function showBudget() {
  const text = `${budget.value} of ${budget.max} (${percent(budget.value / budget.max)})`;
  byId("budget-text").textContent = text;
  budget.setAttribute("aria-valuetext", text);
}
