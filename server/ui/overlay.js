// Draws a picture, with its kept patches lit and the others dimmed.

const WIDTH = 672;
const DIM = "rgba(8, 10, 14, 0.75)";
const OUTLINE = "#ffd200";

// kept: { indices, grid: [rows, columns], area: [left, top, right, bottom] in shares of the picture } or null.
export function draw(canvas, picture, kept) {
  canvas.width = WIDTH;
  canvas.height = Math.max(1, Math.round((WIDTH * picture.naturalHeight) / picture.naturalWidth));
  const context = canvas.getContext("2d");
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  if (!kept?.indices || !kept.grid) return;

  const lit = new Path2D();
  for (const [left, top, width, height] of patches(canvas, kept)) lit.rect(left, top, width, height);
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

function* patches(canvas, { indices, grid, area }) {
  const [rows, columns] = grid;
  const [left, top, right, bottom] = area ?? [0, 0, 1, 1];
  const width = ((right - left) * canvas.width) / columns;
  const height = ((bottom - top) * canvas.height) / rows;
  for (const index of indices) {
    const row = Math.floor(index / columns);
    const column = index % columns;
    yield [left * canvas.width + column * width, top * canvas.height + row * height, width, height];
  }
}
