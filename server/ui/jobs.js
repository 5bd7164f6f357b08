// Long work on the server: started, followed, cancelled.

import { ApiError, events, get, post } from "./server.js";

// Starts a job and follows it to its end. onProgress gets its progress: { share, phase, eta_seconds, ... }.
// Resolves to its result. Throws ApiError where it failed or was cancelled.
export async function runJob(path, body, signal, onProgress) {
  const { id } = await (await post(path, body, signal)).json();
  let job = null;
  for await (job of events(await get(`v1/jobs/${id}/events`, signal))) onProgress(job.progress);
  if (job?.state === "succeeded") return job.result;
  throw new ApiError(job?.error?.message ?? "The job was cancelled.");
}
