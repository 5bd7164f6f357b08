// Pictures as cards under headings, one heading for each label or group.

import { element } from "./element.js";
import { counted } from "./figures.js";

// sections: [{ name, color, cards: [{ picture, told, mark, onPress }] }]; `told` is read out with the picture's name,
// `mark` is a class of the card. Returns the buttons by picture.
export function showGallery(place, sections) {
  const buttons = new Map();
  place.replaceChildren(
    ...sections.map(({ name, swatch, cards }) => {
      const list = element("ul", { className: "cards" });
      for (const { picture, told, mark = "", onPress } of cards) {
        const image = Object.assign(new Image(), { src: picture.thumb, alt: "", loading: "lazy" });
        const button = element(
          "button",
          { type: "button", className: `card ${mark}` },
          image,
          element("span", { textContent: told }),
        );
        button.setAttribute("aria-label", `${picture.name}: ${name}, ${told}`);
        button.title = picture.name;
        button.addEventListener("click", () => onPress(picture, button));
        buttons.set(picture, button);
        list.append(element("li", {}, button));
      }
      const title = element("h3", {}, ...(swatch ? [swatch] : []), element("span", { textContent: name }));
      title.append(element("span", { className: "badge", textContent: counted(cards.length, "picture") }));
      return element("section", { className: "group", "aria-label": name }, title, list);
    }),
  );
  return buttons;
}
