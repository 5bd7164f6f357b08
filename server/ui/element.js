// Makes and finds elements of the page.

export const byId = (id) => document.getElementById(id);

// element("p", { className: "note", "aria-hidden": "true" }, "text", child): properties where there are such, else attributes.
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Entries of a <dl>: [[name, value], ...].
export function terms(entries) {
  return entries.flatMap(([name, value]) => [
    element("dt", { textContent: name }),
    element("dd", { textContent: value }),
  ]);
}
