// The API key: typed into the page, kept in this tab only, sent with every request of the page.

import { byId } from "./element.js";

const STORED = "covervlm-key"; // the API's own page reads it too

export function startAccess(onChange) {
  const field = byId("key");
  field.value = key();
  field.addEventListener("input", () => {
    sessionStorage.setItem(STORED, field.value);
    onChange();
  });
}

export function key() {
  return sessionStorage.getItem(STORED) ?? "";
}

export function askForKey() {
  byId("access").open = true;
  byId("key").focus();
}
