// The page: its parts are started with what the server says of itself.

import { startAccess } from "./access.js";
import { addFiles, changed, startAsk } from "./ask.js";
import { startDropping } from "./dropping.js";
import { byId } from "./element.js";
import { startGroup } from "./group.js";
import { guarded, reported } from "./guard.js";
import { labelOpened, startLabel } from "./label.js";
import { PictureSet } from "./picture_set.js";
import { ApiError } from "./server.js";
import { startTabs } from "./tabs.js";
import { startTraffic, trafficClosed, trafficOpened } from "./traffic.js";
import { startWelcome } from "./welcome.js";

reported(byId("error"), start);

async function start() {
  startWelcome();
  const response = await fetch("ui/config.json");
  if (!response.ok) throw new ApiError("The server's settings cannot be read.", response.status);
  const config = await response.json();
  byId("model").textContent = config.model;
  const set = new PictureSet(config.gallery);
  const opened = { label: labelOpened, traffic: trafficOpened };
  startAsk(config);
  startLabel(set);
  startGroup(set);
  startTraffic(config);
  startTabs({ opened, closed: { traffic: trafficClosed } });
  startAccess(() => {
    changed();
    if (openTab() === "label") labelOpened();
  });
  startDropping(
    (files) => {
      const tab = openTab();
      if (tab === "label" || tab === "group") guarded(byId(`${tab}-error`), () => set.addFiles(files));
      else if (tab === "ask") addFiles(files);
    },
    (over) => document.body.classList.toggle("over", over),
  );
  document.body.dataset.ready = "true";
}

function openTab() {
  return document.querySelector('[role="tab"][aria-selected="true"]').id.replace("tab-", "");
}
