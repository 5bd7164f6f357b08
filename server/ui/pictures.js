// Pictures that somebody chose, dropped or pasted, or that the server ships as samples.

import { ApiError } from "./server.js";

const SENT_AS_IS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const LARGE = 300_000; // bytes; a larger picture is scaled down before it is labelled or grouped
const SIDE = 640; // pixels, more than a CLIP model looks at
const THUMB = 176;

// { name, sample, url, image }: the file itself as a data URL, and decoded. sample: its address on the server, or null.
export async function wholePicture(blob, name, sample = null) {
  const url = await dataUrl(blob);
  const image = Object.assign(new Image(), { src: url });
  try {
    await image.decode();
  } catch {
    throw new ApiError("This file is not a picture that the browser can show.");
  }
  return { name, sample, url, image };
}

// { name, sample, url, thumb }, for galleries: `url` is what is sent, scaled down where the file is large.
export async function smallPicture(blob, name, sample = null) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new ApiError(`${name} is not a picture that the browser can show.`);
  }
  const asIs = blob.size <= LARGE && SENT_AS_IS.includes(blob.type);
  const picture = {
    name,
    sample,
    url: asIs ? await dataUrl(blob) : scaled(bitmap, SIDE, 0.92),
    thumb: scaled(bitmap, THUMB, 0.85),
  };
  bitmap.close();
  return picture;
}

export async function fetchSample(address) {
  const response = await fetch(address);
  if (!response.ok) throw new ApiError("A sample picture cannot be read.", response.status);
  return response.blob();
}

export const fileName = (path) => path.split("/").pop();

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ApiError("The file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

function scaled(bitmap, side, quality) {
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", quality);
}
