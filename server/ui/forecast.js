// Requests expected in each hour of the day to come, as bars and as a sentence.

import { element } from "./element.js";
import { count, counted } from "./figures.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, FOOT] = [700, 160, 22];

// forecast: the body of /v1/forecast, or null where the server has none.
export function showForecast(place, forecast) {
  if (!forecast?.data.length)
    return place.replaceChildren(element("p", { className: "note", textContent: missing(forecast) }));
  const { peak, bearable, data } = forecast;
  const most = `Most is expected at ${hour(peak.start)}: ${count(peak.expected)} requests, ${count(peak.upper)} at the upper end of the band.`;
  const borne =
    bearable === null
      ? "No hour so far had requests waiting."
      : `From ${count(bearable)} an hour on, some had to wait.`;
  place.replaceChildren(element("p", { textContent: `${most} ${borne}` }), chart(data));
}

function missing(forecast) {
  if (forecast === null) return "This server makes no forecast.";
  const { observed_hours: seen, needed_hours: needed } = forecast;
  return `A forecast needs ${counted(needed, "hour")} of traffic; ${counted(seen, "hour has", "hours have")} been observed.`;
}

const hour = (start) => new Date(1000 * start).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });

function drawn(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function chart(data) {
  const most = Math.max(...data.map(({ upper }) => upper), 1);
  const step = WIDTH / data.length;
  const height = (value) => ((HEIGHT - FOOT) * value) / most;
  const drawing = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "forecast" });
  drawing.setAttribute("aria-label", data.map(({ start, expected }) => `${hour(start)} ${count(expected)}`).join(", "));
  data.forEach(({ start, expected, upper }, number) => {
    for (const [name, value] of [
      ["upper", upper],
      ["expected", expected],
    ]) {
      const bar = {
        x: number * step + 2,
        width: step - 4,
        y: HEIGHT - FOOT - height(value),
        height: height(value),
        class: name,
      };
      drawing.append(drawn("rect", bar));
    }
    if (number % 6 === 0)
      drawing.append(drawn("text", { x: number * step + 2, y: HEIGHT - 6, "font-size": 12 }, hour(start)));
  });
  return drawing;
}
