// Runs what somebody asked for, and shows in words what goes wrong with it.

import { askForKey } from "./access.js";
import { ApiError } from "./server.js";

// box: the element for errors; it is a live region. What went wrong before is no longer shown.
export async function guarded(box, action) {
  box.hidden = true;
  await reported(box, action);
}

// The same for what nobody asked for just now. An action that was aborted is not an error.
export async function reported(box, action) {
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") show(box, error);
  }
}

function show(box, error) {
  box.textContent = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
  box.hidden = false;
  if (error.status === 401) askForKey();
}
