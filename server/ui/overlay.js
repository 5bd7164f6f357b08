// Draws a picture, with its kept patches lit and the others dimmed.

const WIDTH = 672;
const DIM = "rgba(8, 10, 14, 0.75)";
const OUTLINE = "#ffd200";

// kept: { indices, grid: [rows, columns], box: [left, top, right, bottom] in the picture's pixels } or null.
export function draw(canvas, picture, kept) {
  canvas.width = WIDTH;
  canvas.height = Math.max(1, Math.round((WIDTH * picture.naturalHeight) / picture.naturalWidth));
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (!kept?.indices || !kept.grid) return;

  const lit = new Path2D();
  for (const [left, top, width, height] of patches(canvas.width / picture.naturalWidth, picture, kept)) lit.rect(left, top, width, height);
  context.fillStyle = DIM;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.save();
  context.clip(lit);
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  context.restore();
  context.strokeStyle = OUTLINE;
  context.lineWidth = 2;
  context.stroke(lit);
}

function* patches(scale, picture, { indices, grid, box }) {
  const [rows, columns] = grid;
  const [left, top, right, bottom] = box ?? [0, 0, picture.naturalWidth, picture.naturalHeight];
  const width = ((right - left) * scale) / columns;
  const height = ((bottom - top) * scale) / rows;
  for (const index of indices) {
    const row = Math.floor(index / columns);
    const column = index % columns;
    yield [left * scale + column * width, top * scale + row * height, width, height];
  }
}
