// The tab "Group": pictures grouped by an aspect, as a gallery and as a map whose places belong together.

import { startCopying } from "./copying.js";
import { byId } from "./element.js";
import { counted } from "./figures.js";
import { showGallery } from "./gallery.js";
import { guarded } from "./guard.js";
import { runJob } from "./jobs.js";
import { firstSteps, pictureBox } from "./picture_set.js";
import { Plane, swatch } from "./plane.js";
import { ApiError } from "./server.js";
import { clusterSnippet } from "./snippet_clip.js";
import { bringIntoView } from "./view.js";

const SAMPLE = { aspect: "color", words: "red, green, blue, yellow" };

const error = byId("group-error");
const gallery = byId("group-gallery");
const said = byId("group-said");

let set = null;
let plane = null;
let shown = null; // { pictures, labels, asked, cards: Map of picture to card }
let only = null; // the group that is picked out, or null
let running = null;

export function startGroup(pictures) {
  set = pictures;
  plane = new Plane(byId("plane"), { onPoint: pointPressed, onOver: light });
  pictureBox(byId("group-pictures"), set, error);
  set.addEventListener("pictures", forget);
  for (const name of ["aspect", "words", "subject", "clusters"]) byId(name).addEventListener("input", markOld);
  byId("group-form").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(error, group);
  });
  byId("group-stop").addEventListener("click", () => running?.abort());
  byId("group-try").addEventListener("click", () =>
    guarded(error, async () => {
      await set.useSamples();
      for (const [name, value] of Object.entries(SAMPLE)) byId(name).value = value;
      await group();
    }),
  );
  byId("group-try").hidden = !set.samples.length;
  gallery.addEventListener("pointerover", (event) => light(pictureOf(event.target)));
  gallery.addEventListener("focusin", (event) => light(pictureOf(event.target)));
  gallery.addEventListener("pointerleave", () => light(null));
  startCopying(byId("copy-group"), () => clusterSnippet(fields(), chosen()));
}

function fields() {
  const wanted = { aspect: byId("aspect").value.trim() };
  if (!wanted.aspect) throw new ApiError("Say what to group by, for example color.");
  const subject = byId("subject").value.trim();
  const words = [
    ...new Set(
      byId("words")
        .value.split(/[,\n]/)
        .map((word) => word.trim())
        .filter(Boolean),
    ),
  ];
  if (subject) wanted.subject = subject;
  if (words.length === 1) throw new ApiError("Give at least two words, or none: then the model is asked for them.");
  if (words.length) wanted.words = words;
  if (byId("clusters").value) wanted.clusters = Number(byId("clusters").value);
  return wanted;
}

function chosen() {
  if (set.pictures.length < 2)
    throw new ApiError("Choose at least two pictures first: a folder, some files, or the samples.");
  return set.pictures;
}

async function group() {
  const wanted = fields();
  const pictures = chosen();
  running?.abort();
  const controller = (running = new AbortController());
  const progress = byId("group-progress");
  byId("group-stop").hidden = progress.hidden = false;
  progress.value = 0;
  bringIntoView(byId("group-results"));
  said.textContent = `Sending ${counted(pictures.length, "picture")} …`;
  try {
    const body = { ...wanted, images: pictures.map(({ url }) => url) };
    const result = await runJob("v1/clusterings", body, controller.signal, ({ share = 0, phase = "waiting" }) => {
      progress.value = share;
      said.textContent = `${phase} …`;
    });
    show(result, pictures, JSON.stringify(wanted));
  } catch (failure) {
    said.textContent = "";
    throw failure;
  } finally {
    if (running === controller) {
      running = null;
      byId("group-stop").hidden = progress.hidden = true;
    }
  }
}

function show(result, pictures, asked) {
  only = null;
  const sections = result.clusters.map(({ name }, number) => ({
    name,
    swatch: swatch(number),
    cards: pictures
      .filter((_, index) => result.labels[index] === number)
      .map((picture) => ({ picture, told: picture.name.split("/").pop(), onPress: () => pick(number) })),
  }));
  shown = {
    pictures,
    labels: result.labels,
    names: result.clusters.map(({ name }) => name),
    asked,
    cards: showGallery(gallery, sections),
  };
  plane.show(pictures, result.projection, result.labels);
  byId("legend").replaceChildren(...result.clusters.map(({ name, size }, number) => legendButton(name, size, number)));
  byId("group-empty").hidden = true;
  byId("group-result").hidden = false;
  markOld();
  tell(result);
}

function tell(result) {
  const parts = [`${counted(result.clusters.length, "group")} of ${counted(shown.pictures.length, "picture")}`];
  if (result.silhouette !== null) parts.push(`silhouette ${result.silhouette.toFixed(2)}`);
  const words = `${result.words_from === "model" ? "the model's words" : "words"}: ${result.words.join(", ")}`;
  said.textContent = `${[...parts, words].join("; ")}. ${result.warnings.join(" ")}`;
}

function legendButton(name, size, number) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet legend";
  button.setAttribute("aria-pressed", "false");
  button.append(swatch(number), `${name} (${size})`);
  button.addEventListener("click", () => pick(number));
  return button;
}

// Picks one group out, on the map and in the gallery; the same again shows all.
function pick(number) {
  only = only === number ? null : number;
  [...byId("legend").children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === only)));
  [...gallery.children].forEach((section, index) =>
    section.classList.toggle("dimmed", only !== null && index !== only),
  );
  plane.pick(only);
  if (only !== null) gallery.children[only].scrollIntoView({ block: "nearest" });
}

function pointPressed(picture) {
  const card = shown.cards.get(picture);
  card.focus();
  card.scrollIntoView({ block: "nearest" });
}

// Lights a picture up in both places.
function light(picture) {
  if (!shown) return;
  for (const [one, card] of shown.cards) card.classList.toggle("lit", one === picture);
  plane.light(picture);
}

function pictureOf(target) {
  const card = target.closest(".card");
  if (!card || !shown) return null;
  for (const [picture, one] of shown.cards) if (one === card) return picture;
  return null;
}

// The groups in sight were asked for with something else than what is chosen now.
function markOld() {
  let now = null;
  try {
    now = JSON.stringify(fields());
  } catch {
    // Not enough to ask with yet.
  }
  const old = shown !== null && now !== shown.asked;
  byId("group-result").classList.toggle("old", old);
  byId("group-before").hidden = !old;
}

function forget() {
  running?.abort();
  shown = null;
  said.textContent = "";
  byId("group-before").hidden = true;
  byId("group-result").hidden = true;
  byId("group-empty").hidden = false;
}

firstSteps("group-steps", [
  "Drop a folder of pictures, and say by what they differ: color, mood, place.",
  "Write the values that it takes, or leave them out: then the served model is asked.",
  "Press Group. Pictures that lie close together on the map are alike in that aspect.",
  "Press a group, in the map's legend or in the gallery, to see it alone.",
]);
