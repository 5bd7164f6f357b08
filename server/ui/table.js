// Figures in rows, the first cell of each its name.

import { element } from "./element.js";

export function table(name, columns, rows) {
  const head = columns.map((textContent) => element("th", { scope: "col", textContent }));
  const body = rows.map(([title, ...cells]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", textContent: title }),
      ...cells.map((textContent) => element("td", { textContent })),
    ),
  );
  return element(
    "table",
    { "aria-label": name },
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...body),
  );
}
