// Files that are dropped or pasted on the page, whole folders with what is in them.

// onFiles gets [{ file, name }]; name is the path within what was dropped. over: called with whether files hang over the page.
export function startDropping(onFiles, over) {
  for (const name of ["dragover", "dragenter", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      over(name === "dragover" || name === "dragenter");
      if (name === "drop") dropped(event.dataTransfer).then((files) => files.length && onFiles(files));
    });
  }
  document.addEventListener("paste", (event) => {
    const files = named(event.clipboardData.files);
    if (files.length) onFiles(files);
  });
}

// The files of an <input type="file">; those of a folder with their path.
export function named(files) {
  return [...files].map((file) => ({ file, name: file.webkitRelativePath || file.name || "pasted picture" }));
}

async function dropped(transfer) {
  // Entries must be taken before the first await: the transfer is empty after the event.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return named(transfer.files);
  const found = [];
  for (const entry of entries) await walk(entry, found);
  return found.sort((one, other) => one.name.localeCompare(other.name));
}

async function walk(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    if (file.type.startsWith("image/")) found.push({ file, name: entry.fullPath.replace(/^\//, "") });
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const one of some) await walk(one, found);
  }
}
