// The pictures to label and to group: one set, in sight in both tabs.

import { byId, element } from "./element.js";
import { counted } from "./figures.js";
import { guarded } from "./guard.js";
import { fetchSample, fileName, smallPicture } from "./pictures.js";
import { named } from "./dropping.js";

const AT_ONCE = 8; // pictures that are read side by side

export class PictureSet extends EventTarget {
  constructor(samples) {
    super();
    this.samples = samples; // addresses on the server
    this.pictures = [];
    this.busy = "";
    this.skipped = 0;
  }

  addFiles(files) {
    return this.#take(
      files,
      ({ file, name }) => smallPicture(file, name),
      this.pictures.filter((one) => one.sample === null),
    );
  }

  useSamples() {
    return this.#take(this.samples, async (url) => smallPicture(await fetchSample(url), fileName(url), url), []);
  }

  clear() {
    this.pictures = [];
    this.skipped = 0;
    this.#changed("pictures");
  }

  async #take(sources, read, before) {
    const found = [];
    this.skipped = 0;
    for (let start = 0; start < sources.length; start += AT_ONCE) {
      this.busy = `Reading ${start} of ${counted(sources.length, "picture")} …`;
      this.#changed("progress");
      for (const one of await Promise.allSettled(sources.slice(start, start + AT_ONCE).map(read))) {
        if (one.status === "fulfilled") found.push(one.value);
        else if (sources.length === 1) {
          this.busy = "";
          this.#changed("progress");
          throw one.reason;
        } else this.skipped += 1;
      }
    }
    this.busy = "";
    this.pictures = [...before, ...found];
    this.#changed("pictures");
  }

  told() {
    if (this.busy) return this.busy;
    if (!this.pictures.length) return "No pictures yet.";
    const skipped = this.skipped ? `; ${counted(this.skipped, "file")} passed over, which no browser can show` : "";
    return `${counted(this.pictures.length, "picture")} chosen${skipped}.`;
  }

  #changed(what) {
    this.dispatchEvent(new Event("progress"));
    if (what === "pictures") this.dispatchEvent(new Event("pictures"));
  }
}

// The controls by which pictures get into the set, in the <fieldset> `place`. Its id begins the ids of what is in it.
export function pictureBox(place, set, error) {
  const { id } = place;
  const input = (suffix, properties) =>
    element("input", { id: `${id}-${suffix}`, type: "file", multiple: true, className: "covered", ...properties });
  const files = input("files", { accept: "image/*" });
  const folder = input("folder", { webkitdirectory: true });
  for (const chooser of [files, folder]) {
    chooser.addEventListener("change", () => {
      const images = named(chooser.files).filter(({ file }) => file.type.startsWith("image/"));
      if (images.length) guarded(error, () => set.addFiles(images));
      chooser.value = "";
    });
  }
  const button = (text, act) => {
    const made = element("button", { type: "button", className: "quiet", textContent: text });
    made.addEventListener("click", act);
    return made;
  };
  const samples = button(`Use ${set.samples.length} samples`, () => guarded(error, () => set.useSamples()));
  const clear = button("Clear", () => set.clear());
  const told = element("p", { className: "note", role: "status" });
  place.append(
    element(
      "div",
      { className: "choosers" },
      element(
        "label",
        { className: "drop", htmlFor: files.id },
        files,
        element("span", { textContent: "Drop a folder or pictures here, or choose files" }),
      ),
      element(
        "label",
        { className: "quiet as-button", htmlFor: folder.id },
        folder,
        element("span", { textContent: "Choose a folder" }),
      ),
      samples,
      clear,
    ),
    told,
  );
  const show = () => {
    told.textContent = set.told();
    clear.hidden = !set.pictures.length;
    samples.hidden = !set.samples.length;
  };
  set.addEventListener("progress", show);
  show();
}

// What stands where a gallery will be: what to do first.
export function firstSteps(place, steps) {
  byId(place).replaceChildren(
    element(
      "div",
      { className: "empty" },
      element("h2", { textContent: "How it goes" }),
      element("ol", {}, ...steps.map((step) => element("li", { textContent: step }))),
    ),
  );
}
