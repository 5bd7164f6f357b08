// "Copy as curl, Python, JavaScript": the request in sight as a program, in sight and on the clipboard.

import { element } from "./element.js";
import { guarded } from "./guard.js";
import { WRITERS } from "./snippets.js";

let places = 0;

// describe: returns what snippets.js writes, or throws ApiError where there is nothing to ask yet.
export function startCopying(place, describe) {
  const id = `copied-${places++}`;
  const code = element("code");
  const shown = element(
    "pre",
    { id, tabIndex: 0, hidden: true, role: "region", "aria-label": "The request as a program" },
    code,
  );
  const said = element("span", { role: "status", className: "said" });
  const error = element("p", { className: "error", role: "alert", hidden: true });
  const buttons = Object.entries(WRITERS).map(([name, write]) => {
    const button = element("button", { type: "button", className: "quiet", textContent: name, "aria-controls": id });
    button.setAttribute("aria-label", `Copy as ${name}`);
    button.addEventListener("click", () =>
      guarded(error, async () => {
        code.textContent = write(describe());
        shown.hidden = false;
        said.textContent = (await copied(code)) ? `Copied as ${name}.` : "Selected; copy it with Ctrl+C.";
      }),
    );
    return button;
  });
  place.append(
    element("div", { className: "copy" }, element("span", { textContent: "Copy as" }), ...buttons, said),
    error,
    shown,
  );
}

async function copied(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    // Over plain HTTP from another machine, browsers keep the clipboard closed.
    getSelection().selectAllChildren(code);
    return false;
  }
}
