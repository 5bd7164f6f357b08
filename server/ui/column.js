// One method's answer beside those of others: its pictures with kept patches lit, its words, its figures.

import { element, terms } from "./element.js";
import { milliseconds, percent } from "./figures.js";
import { draw } from "./overlay.js";

export class Column {
  constructor() {
    this.title = element("span");
    this.badge = element("span", { className: "badge" });
    this.turnList = element("ol", { className: "turns", hidden: true });
    this.before = element("p", { className: "before", hidden: true });
    this.text = element("p", { className: "answer", "aria-live": "polite" });
    this.shown = element("div", { className: "shown" });
    this.list = element("dl");
    this.root = element(
      "article",
      { className: "column" },
      element("h3", {}, this.title, this.badge),
      this.turnList,
      this.before,
      this.text,
      this.shown,
      this.list,
    );
    this.turns = []; // [{ question, answer }] of this conversation
    this.asked = null; // what the answer in sight was asked with: { signature, told }
  }

  name(text) {
    this.title.textContent = text;
  }

  // Forgets the conversation, and shows the pictures whole.
  begin(pictures) {
    this.turns = [];
    this.clear();
    this.badge.textContent = "";
    this.shown.classList.toggle("many", pictures.length > 1);
    this.shown.replaceChildren(
      ...pictures.map((picture) => element("canvas", { role: "img", "aria-label": `${picture.name}, whole` })),
    );
    pictures.forEach((picture, number) => draw(this.shown.children[number], picture.image, null));
  }

  // Forgets the answer in sight, not the turns before it.
  clear() {
    this.asked = null;
    this.text.textContent = "";
    this.list.replaceChildren();
    this.turnList.hidden = this.turns.length === 0;
    this.turnList.replaceChildren(
      ...this.turns.map(({ question, answer }) =>
        element("li", {}, element("b", { textContent: question }), element("span", { textContent: answer })),
      ),
    );
    this.age(null);
  }

  // Marks the answer as one to something else than what is chosen now.
  age(signature) {
    const old = this.asked !== null && this.asked.signature !== signature;
    this.root.classList.toggle("old", old);
    this.before.hidden = !old;
    this.before.textContent = old ? `Answered before: ${this.asked.told}` : "";
    return old;
  }

  // kept: an entry per picture, { total, kept, indices, grid, box }.
  showKept(pictures, kept) {
    const sum = (field) => kept.reduce((total, one) => total + one[field], 0);
    this.badge.textContent = `${sum("kept")} of ${sum("total")} tokens`;
    kept.forEach((one, number) => {
      const canvas = this.shown.children[number];
      const pruned = one.kept < one.total;
      draw(canvas, pictures[number].image, pruned ? one : null);
      const which = pruned ? `the ${one.kept} of ${one.total} kept patches lit` : "whole";
      canvas.setAttribute("aria-label", `${pictures[number].name}, ${which}`);
    });
  }

  showFigures({ firstToken, total, promptTokens, images }) {
    const entries = [
      ["Time to first token", firstToken === null ? "no token" : milliseconds(firstToken)],
      ["Whole answer", milliseconds(total)],
      ["Prompt tokens", String(promptTokens)],
    ];
    const pruned = images.filter((one) => one.kept < one.total);
    if (pruned.length) {
      entries.push(["Selection", milliseconds(pruned.reduce((sum, one) => sum + one.milliseconds, 0))]);
      const covered = pruned.filter((one) => one.coverage !== null).map((one) => one.coverage);
      if (covered.length) entries.push(["Coverage", percent(Math.min(...covered), 1)]);
    }
    this.list.replaceChildren(...terms(entries));
  }

  // A bar under a figure, on a scale that other columns share.
  addBar(name, value, most) {
    const entry = [...this.list.querySelectorAll("dt")].find((dt) => dt.textContent === name);
    // The figure says it already.
    const bar = element("dd", { "aria-hidden": "true" }, element("progress", { max: most, value }));
    entry.nextElementSibling.after(bar);
  }
}
