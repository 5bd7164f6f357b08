// What a person should read off answers that stand side by side, in a sentence or two.

import { milliseconds } from "./figures.js";

// answers: [{ name, text, promptTokens, firstToken }], at least two. The one that read most is what the others are
// compared with, the last of those where several read as much.
export function comparison(answers) {
  const most = Math.max(...answers.map(({ promptTokens }) => promptTokens));
  const whole = answers.findLast(({ promptTokens }) => promptTokens === most);
  const rest = answers.filter((one) => one !== whole);
  const single = rest.length === 1;
  const told = rest.map(({ name, promptTokens, firstToken }) => {
    const tokens = `${promptTokens} prompt tokens instead of ${whole.promptTokens}`;
    const known = firstToken !== null && whole.firstToken !== null;
    const times = known
      ? `, first token after ${milliseconds(firstToken)} instead of ${milliseconds(whole.firstToken)}`
      : "";
    return `${single ? "" : `${name}: `}${tokens}${times}.`;
  });
  const same = answers.every(({ text }) => text.trim() === whole.text.trim());
  return [...told, same ? "The answers agree." : "The answers differ."].join(" ");
}
