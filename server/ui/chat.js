// Questions about pictures: what would be kept of them, and answers as they stream in.

import { ApiError, events, post } from "./server.js";

// turns: [{ question, answer }] that came before. pictures: [{ url }], which belong to the first question.
// pruning: the request's vision_pruning. schema: what the answer follows, if anything.
export function chatBody({ model, pictures, turns, question, pruning, schema }) {
  const seen = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  const messages = [...turns, { question }].flatMap((turn, number) => {
    const asked = { role: "user", content: [...(number ? [] : seen), { type: "text", text: turn.question }] };
    return turn.answer === undefined ? [asked] : [asked, { role: "assistant", content: turn.answer }];
  });
  const body = { model, temperature: 0, max_tokens: 256, messages, vision_pruning: pruning };
  if (schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema, strict: true } };
  return body;
}

function located(body) {
  return { ...body, vision_pruning: { ...body.vision_pruning, return_indices: true } };
}

// What would be kept of each picture: [{ total, kept, coverage, milliseconds, indices, grid, box }].
export async function prune({ model, messages, vision_pruning }, signal) {
  const response = await post("v1/prune", located({ model, messages, vision_pruning }), signal);
  return (await response.json()).images;
}

// Streams an answer. Calls onText(piece) as text comes in.
// Resolves to { firstToken, total, promptTokens, images }, times in milliseconds.
export async function chat(body, signal, onText) {
  const start = performance.now();
  const response = await post(
    "v1/chat/completions",
    { ...located(body), stream: true, stream_options: { include_usage: true } },
    signal,
  );
  const result = { firstToken: null, total: null, promptTokens: null, images: [] };
  for await (const event of events(response)) {
    if (event.error) throw new ApiError(event.error.message);
    if (event.vision_pruning) result.images = event.vision_pruning.images;
    if (event.usage) result.promptTokens = event.usage.prompt_tokens;
    const text = event.choices[0]?.delta.content;
    if (text) {
      result.firstToken ??= performance.now() - start;
      onText(text);
    }
  }
  result.total = performance.now() - start;
  return result;
}
