// The tab "Traffic": what the server keeps, saves and expects, read from its metrics while the tab is open.

import { startCopying } from "./copying.js";
import { byId, element } from "./element.js";
import { parse, quantile, total } from "./exposition.js";
import { count, milliseconds, percent } from "./figures.js";
import { showForecast } from "./forecast.js";
import { guarded, reported } from "./guard.js";
import { get } from "./server.js";
import { showShadow } from "./shadow.js";
import { readSnippet } from "./snippet_read.js";
import { table } from "./table.js";

const EVERY = 5000; // milliseconds between two looks

const error = byId("traffic-error");
let model = "";
let timer = null;

export function startTraffic(config) {
  model = config.model;
  byId("traffic-now").addEventListener("click", () => guarded(error, look));
  startCopying(byId("copy-traffic"), () => readSnippet("metrics"));
}

export function trafficOpened() {
  reported(error, look);
  timer = setInterval(() => reported(error, look), EVERY);
}

export function trafficClosed() {
  clearInterval(timer);
}

async function look() {
  const [metrics, models, forecast] = await Promise.all([
    get("metrics").then((response) => response.text()),
    get("v1/models").then((response) => response.json()),
    // A server may be without one.
    get("v1/forecast").then(
      (response) => response.json(),
      (failure) => (failure.status === 404 ? null : Promise.reject(failure)),
    ),
  ]);
  error.hidden = true;
  const read = parse(metrics);
  byId("tiles").replaceChildren(
    ...tiles(
      read,
      models.data.find(({ id }) => id === model),
    ).map(tile),
  );
  showMethods(byId("methods"), read);
  showShadow(byId("shadow"), read);
  showForecast(byId("forecast"), forecast);
  byId("traffic-said").textContent = `As of ${new Date().toLocaleTimeString("en-GB")}.`;
}

function tiles(read, card) {
  const [before, after] = ["before", "after"].map((when) => total(read, `covervlm_vision_tokens_${when}_total`) ?? 0);
  const first = quantile(read, "covervlm_time_to_first_token_seconds", 0.5);
  const waiting = total(read, "covervlm_num_requests_waiting") ?? 0;
  const prompts = total(read, "covervlm_prompt_tokens_total") ?? 0;
  return [
    ["Budget in force", ...budget(read, card)],
    [
      "Vision tokens saved",
      before ? percent((before - after) / before, 1) : "none yet",
      before
        ? `${count(before - after)} of ${count(before)} never reached the language model`
        : "no picture has been asked about",
    ],
    [
      "Requests running",
      count(total(read, "covervlm_num_requests_running") ?? 0),
      `${count(waiting)} waiting; ${count(total(read, "covervlm_request_success_total") ?? 0)} answers so far`,
    ],
    [
      "First token, median",
      first === null ? "none yet" : milliseconds(1000 * first),
      `${count(prompts)} prompt tokens read so far`,
    ],
  ];
}

// What a request without a budget of its own gets now.
function budget(read, card) {
  const adaptive = total(read, "covervlm_adaptive_budget_tokens");
  if (adaptive !== null) {
    const bounds = card?.adaptive_budget;
    return [
      `${count(adaptive)} tokens`,
      `of each picture, ${bounds ? `between ${bounds[0]} and ${bounds[1]} ` : ""}by load`,
    ];
  }
  const by = card?.method ? `of each picture, by ${card.method}, unless a request says otherwise` : "";
  if (card?.keep_tokens != null) return [`${count(card.keep_tokens)} tokens`, by];
  if (card?.keep_ratio != null) return [percent(card.keep_ratio), by];
  return ["every token", "unless a request has a budget of its own"];
}

function tile([name, value, note]) {
  return element(
    "div",
    { className: "tile" },
    element("dt", { textContent: name }),
    element("dd", { className: "value", textContent: value }),
    element("dd", { className: "note", textContent: note }),
  );
}

// A row for each method that pictures were pruned by.
function showMethods(place, read) {
  const of = (when) =>
    new Map(
      (read.samples.get(`covervlm_vision_tokens_${when}_total`) ?? []).map(({ labels, value }) => [
        labels.method,
        value,
      ]),
    );
  const [before, after] = [of("before"), of("after")];
  const rows = [...before].map(([method, all]) => {
    const kept = after.get(method) ?? 0;
    return [
      method === "none" ? "every token" : method,
      count(all),
      count(kept),
      all ? percent((all - kept) / all, 1) : "",
    ];
  });
  const none = "No picture has been asked about since the server started.";
  place.replaceChildren(
    rows.length
      ? table("Vision tokens by method", ["Method", "Of pictures", "Read", "Saved"], rows)
      : element("p", { className: "note", textContent: none }),
  );
}
