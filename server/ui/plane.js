// The 2-D map of groups: a numbered dot for each picture.

const SVG = "http://www.w3.org/2000/svg";
const SIZE = 400;
const MARGIN = 18;
const RADIUS = 9;

// Light enough for dark numbers on them, apart in lightness as well as in hue.
const COLORS = [
  "#56b4e9",
  "#f0a830",
  "#2fbf9a",
  "#f2e34c",
  "#e58fc0",
  "#9db8ff",
  "#ff8f70",
  "#b5d94c",
  "#c9b3f5",
  "#7fd8d8",
  "#d9b48f",
  "#c4c9d1",
];

export const colorOf = (group) => COLORS[group % COLORS.length];

function drawn(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function dot(x, y, group) {
  const made = drawn("g", { class: "dot" });
  const number = drawn("text", { x, y, "text-anchor": "middle", "dominant-baseline": "central", "font-size": 10 });
  number.textContent = String(group + 1);
  made.append(drawn("circle", { cx: x, cy: y, r: RADIUS, fill: colorOf(group) }), number);
  return made;
}

// A group's dot, for headings and legends.
export function swatch(group) {
  const made = drawn("svg", { viewBox: "0 0 20 20", class: "swatch", "aria-hidden": "true" });
  made.append(dot(10, 10, group));
  return made;
}

export class Plane {
  // onPoint: gets the picture whose dot was pressed; onOver: the one under the pointer, or null.
  constructor(place, { onPoint, onOver }) {
    this.place = place;
    this.dots = [];
    // The gallery's cards do the same for the keyboard.
    place.addEventListener("click", (event) => this.#at(event, onPoint));
    place.addEventListener("pointerover", (event) => this.#at(event, onOver));
    place.addEventListener("pointerleave", () => onOver(null));
  }

  // points: [[x, y], ...]; labels: each picture's group.
  show(pictures, points, labels) {
    const place = scale(points);
    const drawing = drawn("svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, role: "img" });
    drawing.setAttribute("aria-label", `Map of ${pictures.length} pictures; those close together are alike`);
    this.dots = pictures.map((picture, number) => {
      const made = dot(...place(points[number]), labels[number]);
      const title = drawn("title", {});
      title.textContent = picture.name;
      made.append(title);
      return { picture, group: labels[number], made };
    });
    drawing.append(...this.dots.map(({ made }) => made));
    this.place.replaceChildren(drawing);
  }

  pick(group) {
    for (const one of this.dots) one.made.classList.toggle("dimmed", group !== null && one.group !== group);
  }

  light(picture) {
    for (const one of this.dots) one.made.classList.toggle("lit", one.picture === picture);
  }

  #at(event, act) {
    const made = event.target.closest(".dot");
    const found = this.dots.find((one) => one.made === made);
    if (found) act(found.picture);
  }
}

// One scale for both axes, so that distances stay what they are.
function scale(points) {
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
  const [left, right, bottom, top] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const step = (SIZE - 2 * MARGIN) / (Math.max(right - left, top - bottom) || 1);
  const [x0, y0] = [(SIZE - (right - left) * step) / 2, (SIZE - (top - bottom) * step) / 2];
  return ([x, y]) => [(x0 + (x - left) * step).toFixed(1), (SIZE - y0 - (y - bottom) * step).toFixed(1)];
}
