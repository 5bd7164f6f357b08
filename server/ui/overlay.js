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

  const [lit, outline] = paths(canvas.width / picture.naturalWidth, picture, kept);
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
  context.lineCap = "square";
  context.stroke(outline);
}

// The kept patches, and the line around them: no edge between two that touch.
function paths(scale, picture, { indices, grid, box }) {
  const [rows, columns] = grid;
  const [left, top, right, bottom] = box ?? [0, 0, picture.naturalWidth, picture.naturalHeight];
  const x = (column) => (left + ((right - left) * column) / columns) * scale;
  const y = (row) => (top + ((bottom - top) * row) / rows) * scale;
  const kept = new Set(indices);
  const lit = new Path2D();
  const outline = new Path2D();
  const edge = (fromColumn, fromRow, toColumn, toRow) => {
    outline.moveTo(x(fromColumn), y(fromRow));
    outline.lineTo(x(toColumn), y(toRow));
  };
  for (const index of indices) {
    const row = Math.floor(index / columns);
    const column = index % columns;
    lit.rect(x(column), y(row), x(column + 1) - x(column), y(row + 1) - y(row));
    if (!kept.has(index - columns)) edge(column, row, column + 1, row);
    if (!kept.has(index + columns)) edge(column, row + 1, column + 1, row + 1);
    if (column === 0 || !kept.has(index - 1)) edge(column, row, column, row + 1);
    if (column === columns - 1 || !kept.has(index + 1)) edge(column + 1, row, column + 1, row + 1);
  }
  return [lit, outline];
}
