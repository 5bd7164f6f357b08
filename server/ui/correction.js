// A dialog with one picture, in which a press gives it another label.

import { byId, element } from "./element.js";
import { percent } from "./figures.js";

// one: { picture, label, confidence, top }. Resolves to the label that was chosen, or null.
export function correct(one, names) {
  const dialog = byId("correction");
  const likely = new Map(one.top.map(({ label, probability }) => [label, probability]));
  const ordered = [...names].sort((a, b) => (likely.get(b) ?? -1) - (likely.get(a) ?? -1) || a.localeCompare(b));
  byId("correction-picture").src = one.picture.url;
  byId("correction-picture").alt = one.picture.name;
  byId("correction-title").textContent = `${one.picture.name}: what is it?`;
  byId("correction-other").value = "";

  return new Promise((resolve) => {
    let chosen = null;
    const choose = (label) => {
      chosen = label;
      dialog.close();
    };
    byId("correction-labels").replaceChildren(
      ...ordered.map((name) => {
        const text = likely.has(name) ? percent(likely.get(name)) : "";
        const button = element(
          "button",
          { type: "button", className: "choice" },
          element("span", { textContent: name }),
          element("span", { className: "badge", textContent: text }),
        );
        button.setAttribute("aria-pressed", String(name === one.label));
        button.addEventListener("click", () => choose(name));
        return element("li", {}, button);
      }),
    );
    byId("correction-form").onsubmit = (event) => {
      event.preventDefault();
      const other = byId("correction-other").value.trim();
      if (other) choose(other);
    };
    byId("correction-close").onclick = () => dialog.close();
    dialog.onclose = () => resolve(chosen);
    dialog.showModal();
  });
}
