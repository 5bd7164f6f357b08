// The first-run hint; once closed it stays away in this browser.

import { byId } from "./element.js";

const SEEN = "covervlm-welcome-closed";

export function startWelcome() {
  byId("welcome").hidden = localStorage.getItem(SEEN) !== null;
  byId("welcome-close").addEventListener("click", () => {
    localStorage.setItem(SEEN, "true");
    byId("welcome").hidden = true;
    byId("question").focus();
  });
}
