// Talks to the server this page came from: pruning without an answer, and answers as they stream in.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function post(path, body, { key, signal }) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new ApiError(answer.error?.message ?? `The server answered with status ${response.status}.`, response.status);
  }
  return response;
}

function request({ model, question, image, pruning }) {
  const content = [
    { type: "image_url", image_url: { url: image } },
    { type: "text", text: question },
  ];
  return { model, messages: [{ role: "user", content }], vision_pruning: pruning };
}

// What would be kept of the image: { total, kept, coverage, milliseconds, indices, grid, box }.
export async function prune(asked, access) {
  const response = await post("v1/prune", request(asked), access);
  return (await response.json()).images[0];
}

// Streams an answer, by a schema if there is one. Calls onText(piece) as text comes in.
// Resolves to { firstToken, total, promptTokens, image }, times in milliseconds.
export async function chat(asked, access, onText) {
  const body = {
    ...request(asked),
    temperature: 0,
    max_tokens: 256,
    stream: true,
    stream_options: { include_usage: true },
  };
  if (asked.schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: asked.schema, strict: true } };
  const start = performance.now();
  const response = await post("v1/chat/completions", body, access);
  const result = { firstToken: null, total: null, promptTokens: null, image: null };
  let done = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      done = true;
      break;
    }
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message, 0);
    if (event.vision_pruning) result.image = event.vision_pruning.images[0];
    if (event.usage) result.promptTokens = event.usage.prompt_tokens;
    const text = event.choices[0]?.delta.content;
    if (text) {
      result.firstToken ??= performance.now() - start;
      onText(text);
    }
  }
  if (!done) throw new ApiError("The connection broke off before the answer was complete.", 0);
  result.total = performance.now() - start;
  return result;
}

// The data of server-sent events, one by one.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) if (block.startsWith("data: ")) yield block.slice(6);
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection broke off before the answer was complete.", 0);
  } finally {
    reader.cancel().catch(() => {});
  }
}
