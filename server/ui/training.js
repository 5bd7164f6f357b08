// From labels in sight to a classifier on the server: pictures become vectors, vectors become a job.

import { startCopying } from "./copying.js";
import { byId, terms } from "./element.js";
import { counted, percent } from "./figures.js";
import { guarded } from "./guard.js";
import { runJob } from "./jobs.js";
import { ApiError, get, post } from "./server.js";
import { trainSnippet } from "./snippet_clip.js";

const AT_ONCE = 16;

// examples: returns [{ picture, label, confidence, corrected }]; trained: gets the new version's name.
export function startTraining({ examples, error, trained }) {
  const button = byId("train-start");
  const said = byId("train-said");
  const progress = byId("train-progress");

  function taught() {
    const least = Number(byId("train-least").value) / 100;
    const some = examples().filter((one) => one.corrected || one.confidence >= least);
    if (new Set(some.map(({ label }) => label)).size < 2) {
      throw new ApiError(
        "A classifier needs pictures of at least two labels; lower the confidence below which they are left out.",
      );
    }
    return some;
  }

  async function train() {
    const some = taught();
    button.disabled = true;
    progress.hidden = false;
    byId("train-report").replaceChildren();
    try {
      const vectors = await embedded(
        some.map(({ picture }) => picture),
        (share) => {
          progress.value = share / 2;
          said.textContent = `Reading the pictures: ${percent(share)} …`;
        },
      );
      const body = {
        name: byId("train-name").value,
        examples: some.map(({ picture, label }, number) => ({
          embedding: vectors[number],
          label,
          id: picture.name.slice(-900),
        })),
      };
      const { classifier } = await runJob("v1/classifiers", body, undefined, (now) => {
        progress.value = 0.5 + (now.share ?? 0) / 2;
        said.textContent = `Learning: ${percent(now.share ?? 0)} …`;
      });
      await report(classifier);
      await trained(classifier);
      said.textContent = `${classifier} has learned from ${counted(some.length, "picture")}, and is chosen above. Press Label to use it.`;
    } catch (failure) {
      said.textContent = "";
      throw failure;
    } finally {
      button.disabled = false;
      progress.hidden = true;
    }
  }

  byId("train-form").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(error, train);
  });
  startCopying(byId("copy-train"), () => {
    const some = taught();
    return trainSnippet(
      byId("train-name").value,
      some.map(({ picture }) => picture),
      some.map(({ label }) => label),
    );
  });
}

// Each picture's vector, as base64.
async function embedded(pictures, onProgress) {
  const vectors = [];
  for (let start = 0; start < pictures.length; start += AT_ONCE) {
    onProgress(start / pictures.length);
    const input = pictures.slice(start, start + AT_ONCE).map(({ url }) => ({ image: url }));
    const { data } = await (await post("v1/embeddings", { input, encoding_format: "base64" })).json();
    vectors.push(...data.map(({ embedding }) => embedding));
  }
  return vectors;
}

// What it is worth on examples that it has not learned from.
async function report(id) {
  const { about } = await (await get(`v1/classifiers/${encodeURIComponent(id)}`)).json();
  const { accuracy, held_out: heldOut, warnings = [] } = about.report ?? {};
  const entries = [["Method", about.method ?? "auto"]];
  if (accuracy?.value != null) {
    const [low, high] = accuracy.interval;
    entries.push([
      "Right on held-out pictures",
      `${percent(accuracy.value)} (95 % interval ${percent(low)} to ${percent(high)}, ${heldOut} pictures)`,
    ]);
  }
  if (warnings.length) entries.push(["Note", warnings.join(" ")]);
  byId("train-report").replaceChildren(...terms(entries));
}
