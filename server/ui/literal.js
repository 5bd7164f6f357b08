// Values written as source code, with pictures as expressions that read them.

const WIDTH = 96;

export const JAVASCRIPT = {
  true: "true",
  false: "false",
  null: "null",
  key: (name) => (/^[a-z_]\w*$/i.test(name) ? name : JSON.stringify(name)),
};
export const PYTHON = { true: "True", false: "False", null: "None", key: (name) => JSON.stringify(name) };
export const JSON_TEXT = { true: "true", false: "false", null: "null", key: (name) => JSON.stringify(name) };

// picture: what stands for a string that is one of `pictures`' addresses; text: how other strings are written.
export function literal(value, { syntax, pictures, picture, text = JSON.stringify }, indent = "") {
  const byUrl = new Map(pictures.map((one) => [one.url, one]));

  function write(one, space) {
    if (typeof one === "string") return byUrl.has(one) ? picture(byUrl.get(one)) : text(one);
    if (one === null || typeof one !== "object") return syntax[String(one)] ?? String(one);
    const list = Array.isArray(one);
    const [open, close] = list ? "[]" : "{}";
    const deeper = `${space}  `;
    const parts = list
      ? one.map((part) => write(part, deeper))
      : Object.entries(one).map(([name, part]) => `${syntax.key(name)}: ${write(part, deeper)}`);
    const line = `${open}${parts.join(", ")}${close}`;
    if (line.length + space.length <= WIDTH && !line.includes("\n")) return line;
    return `${open}\n${parts.map((part) => deeper + part).join(",\n")}\n${space}${close}`;
  }

  return write(value, indent);
}
