// The tab "Label": class names or a stored classifier over many pictures, and what somebody corrected.

import { startCopying } from "./copying.js";
import { correct } from "./correction.js";
import { byId, element } from "./element.js";
import { counted, percent } from "./figures.js";
import { showGallery } from "./gallery.js";
import { guarded, reported } from "./guard.js";
import { firstSteps, pictureBox } from "./picture_set.js";
import { ApiError, get, post } from "./server.js";
import { classifySnippet } from "./snippet_clip.js";
import { startTraining } from "./training.js";
import { bringIntoView } from "./view.js";

const AT_ONCE = 16; // pictures in one request: answers come in as they are made
const UNSURE = 0.6;
const SAMPLE_CLASSES = "circle, square, star, triangle";

const error = byId("label-error");
const gallery = byId("label-gallery");
const stored = byId("stored");

let set = null;
let found = []; // [{ picture, label, confidence, top, corrected }]
let asked = null; // the fields that the labels in sight were asked with
let running = null;

export function startLabel(pictures) {
  set = pictures;
  pictureBox(byId("label-pictures"), set, error);
  set.addEventListener("pictures", () => forget());
  for (const choice of document.getElementsByName("source")) choice.addEventListener("change", showSource);
  byId("classes").addEventListener("input", markOld);
  stored.addEventListener("change", markOld);
  byId("label-form").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(error, label);
  });
  byId("label-stop").addEventListener("click", () => running?.abort());
  byId("label-try").addEventListener("click", () =>
    guarded(error, async () => {
      await set.useSamples();
      byId("by-names").click();
      byId("classes").value = SAMPLE_CLASSES;
      await label();
    }),
  );
  byId("label-try").hidden = !set.samples.length;
  startCopying(byId("copy-label"), () => classifySnippet(fields(), chosen()));
  startTraining({ examples: () => found, error, trained: use });
  showSource();
  forget();
}

// The stored classifiers, newest version of each name.
export function labelOpened() {
  return reported(error, async () => {
    const { data } = await (await get("v1/classifiers")).json();
    const before = stored.value;
    const newest = new Map(data.map((card) => [card.name, card]));
    stored.replaceChildren(
      ...[...newest.values()].reverse().map(({ name, version, about }) => {
        const id = `${name}@${version}`;
        return new Option(`${id} (${counted(about.classes.length, "class", "classes")})`, id);
      }),
    );
    if (before && [...stored.options].some((option) => option.value === before)) stored.value = before;
    byId("by-classifier").disabled = newest.size === 0;
    byId("no-stored").hidden = newest.size > 0;
    if (!newest.size) byId("by-names").click();
  });
}

async function use(id) {
  await labelOpened();
  stored.value = id;
  byId("by-classifier").click();
}

function showSource() {
  const names = byId("by-names").checked;
  byId("names-field").hidden = !names;
  byId("stored-field").hidden = names;
  markOld();
}

function fields() {
  if (!byId("by-names").checked) return { classifier: stored.value };
  const classes = [
    ...new Set(
      byId("classes")
        .value.split(/[,\n]/)
        .map((name) => name.trim())
        .filter(Boolean),
    ),
  ];
  if (classes.length < 2) throw new ApiError("Give at least two class names, with commas between them.");
  return { classes };
}

function chosen() {
  if (!set.pictures.length) throw new ApiError("Choose pictures first: a folder, some files, or the samples.");
  return set.pictures;
}

async function label() {
  const wanted = fields();
  const pictures = chosen();
  running?.abort();
  const controller = (running = new AbortController());
  const progress = byId("label-progress");
  byId("label-stop").hidden = progress.hidden = false;
  found = [];
  asked = JSON.stringify(wanted);
  markOld();
  bringIntoView(byId("label-results"));
  try {
    for (let start = 0; start < pictures.length; start += AT_ONCE) {
      const some = pictures.slice(start, start + AT_ONCE);
      progress.value = start / pictures.length;
      byId("label-said").textContent = `Labelling ${start + 1} to ${start + some.length} of ${pictures.length} …`;
      const body = { ...wanted, top: 5, images: some.map(({ url }) => url) };
      const { data } = await (await post("v1/classify", body, controller.signal)).json();
      found.push(...data.map((one, number) => ({ picture: some[number], corrected: false, ...one })));
      show();
    }
  } finally {
    if (running === controller) {
      running = null;
      byId("label-stop").hidden = progress.hidden = true;
      if (!found.length) byId("label-said").textContent = "";
      else say();
    }
  }
}

function show() {
  const labels = [...new Set(found.map((one) => one.label))].sort((one, other) => one.localeCompare(other));
  byId("label-empty").hidden = found.length > 0;
  byId("train").hidden = found.length === 0;
  const buttons = showGallery(
    gallery,
    labels.map((name) => ({
      name,
      cards: found
        .filter((one) => one.label === name)
        .sort((one, other) => one.confidence - other.confidence) // what may be wrong comes first
        .map((one) => ({
          picture: one.picture,
          told: one.corrected ? "corrected" : percent(one.confidence),
          mark: one.corrected ? "corrected" : one.confidence < UNSURE ? "unsure" : "",
          onPress: () => change(one),
        })),
    })),
  );
  return buttons;
}

async function change(one) {
  const label = await correct(one, [...new Set([...classNames(), ...found.map((other) => other.label)])]);
  if (label !== null && label !== one.label) {
    one.label = label;
    one.corrected = true;
    say();
  }
  show().get(one.picture).focus();
}

function classNames() {
  const { classes } = JSON.parse(asked);
  return classes ?? found.flatMap((one) => one.top.map((other) => other.label));
}

function say() {
  const corrected = found.filter((one) => one.corrected).length;
  const unsure = found.filter((one) => !one.corrected && one.confidence < UNSURE).length;
  const parts = [counted(found.length, "picture") + " labelled"];
  if (unsure) parts.push(`${unsure} below ${percent(UNSURE)}, first in each row`);
  if (corrected) parts.push(`${corrected} corrected`);
  byId("label-said").textContent = `${parts.join("; ")}.`;
  byId("train-said").textContent = "";
}

// The labels in sight were asked for with something else than what is chosen now.
function markOld() {
  let now = null;
  try {
    now = JSON.stringify(fields());
  } catch {
    // Not enough to ask with yet.
  }
  const old = found.length > 0 && now !== asked;
  gallery.classList.toggle("old", old);
  byId("label-before").hidden = !old;
}

function forget() {
  running?.abort();
  found = [];
  gallery.replaceChildren();
  byId("label-said").textContent = "";
  byId("label-before").hidden = true;
  byId("train").hidden = true;
  byId("label-empty").hidden = false;
}

firstSteps("label-steps", [
  "Drop a folder of pictures, and write the names of what may be on them.",
  "Press Label. The pictures that the model is least sure of come first.",
  "Press a picture with a wrong label, and choose the right one.",
  "Train: the server learns a classifier from the labels as they stand, and says how good it is.",
]);
