"""What budgets lose, drawn as SVG, which browsers and Markdown viewers show, without a plotting library."""

from collections.abc import Iterator, Sequence
from html import escape

from covervlm.server.tuning.search import Standing

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 52
COLORS = ("#0b6bcb", "#b3470b", "#2e7d32", "#8e24aa", "#455a64")
"""Of methods, in their order, each of them legible on white."""
DASHES = ("", ' stroke-dasharray="7 3"', ' stroke-dasharray="2 3"')
"""Of the lines of the first methods, one for each color, then of the next ones, which have the same colors."""
ROW, NAMES = 20, 4
"""What each row of names after the first takes of the height, and how many names are in a row."""
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
"""Points between two marks of the axis; the first that makes seven of them at most."""


def plot(standings: Sequence[Standing], best: Standing | None, tolerance: float) -> str:
    """Loss in points by vision tokens kept, a line for each method, with both bounds and the tolerance as an SVG file.

    A budget passes where its upper bound lies below the tolerance. best: the recommended one, which is ringed.
    """
    return "\n".join(_Drawing(standings, tolerance).parts(best)) + "\n"


class _Drawing:
    """Budgets at equal distances, the smallest on the left; losses in points, a gain below 0."""

    def __init__(self, standings: Sequence[Standing], tolerance: float) -> None:
        self._standings, self._tolerance = standings, 100 * tolerance
        self._budgets = sorted({one.cell.keep for one in standings})
        self._methods = list(dict.fromkeys(one.cell.method for one in standings))
        ends = [100 * end for one in standings for end in (one.loss.low, one.loss.high)]
        low, high = min(0.0, *ends), max(self._tolerance, *ends)
        self._step = next((step for step in STEPS if (high - low) / step <= 6), 50)
        self._low = self._step * (low // self._step)
        self._high = -self._step * (-high // self._step)
        self._more = ROW * ((len(self._methods) - 1) // NAMES)

    def parts(self, best: Standing | None) -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + self._more}" width="{WIDTH}" '
            f'height="{HEIGHT + self._more}" font-family="sans-serif" font-size="13" fill="#222">'
        )
        yield f'<rect width="{WIDTH}" height="{HEIGHT + self._more}" fill="white"/>'
        yield from self._axes()
        for number, method in enumerate(self._methods):
            yield from self._line(number, method)
        if best is not None:
            x, y = self._x(best, self._methods.index(best.cell.method)), self._y(100 * best.loss.value)
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="#222" stroke-width="1.5"/>'
        yield "</svg>"

    def _axes(self) -> Iterator[str]:
        mark = self._low
        while mark < self._high + self._step / 2:
            y = self._y(mark)
            shade = "#888" if abs(mark) < self._step / 2 else "#e4e4e4"
            yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{shade}"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{round(mark, 1) + 0:g}</text>'
            mark += self._step
        y = HEIGHT + self._more - 30
        for place, budget in enumerate(self._budgets):
            yield f'<text x="{self._place(place):.1f}" y="{y}" text-anchor="middle">{budget}</text>'
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield f'<text x="{middle}" y="{y + 20}" text-anchor="middle">vision tokens kept</text>'
        yield f'<text x="{LEFT - 44}" y="18">points lost, with 95 % bounds</text>'
        y = self._y(self._tolerance)
        dashes = 'stroke="#c62828" stroke-width="1.5" stroke-dasharray="6 4"'
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {dashes}/>'
        yield f'<text x="{WIDTH - RIGHT}" y="{y - 5:.1f}" text-anchor="end" fill="#c62828">tolerance</text>'

    def _line(self, number: int, method: str) -> Iterator[str]:
        color = COLORS[number % len(COLORS)]
        dash = DASHES[number // len(COLORS) % len(DASHES)]
        ones = sorted((o for o in self._standings if o.cell.method == method), key=lambda one: one.cell.keep)
        spots = [(self._x(one, number), self._y(100 * one.loss.value)) for one in ones]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        yield f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'
        for one, (x, y) in zip(ones, spots, strict=True):
            low, high = self._y(100 * one.loss.low), self._y(100 * one.loss.high)
            yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{color}"/>'
            # Hollow where the cell was stopped before it had been asked everything.
            fill = color if one.finished else "white"
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{color}" stroke-width="2"/>'
        x, y = LEFT + 140 * (number % NAMES), 36 + ROW * (number // NAMES)
        yield f'<line x1="{x - 8}" x2="{x + 10}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"{dash}/>'
        yield f'<circle cx="{x + 1}" cy="{y}" r="4" fill="{color}"/>'
        yield f'<text x="{x + 15}" y="{y + 4}">{escape(method)}</text>'

    def _x(self, one: Standing, number: int) -> float:
        """A little apart for each method, so that bounds do not cover each other."""
        return self._place(self._budgets.index(one.cell.keep)) + 5 * (number - (len(self._methods) - 1) / 2)

    def _place(self, place: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (place + 0.5) / len(self._budgets)

    def _y(self, points: float) -> float:
        return TOP + self._more + (HEIGHT - TOP - BOTTOM) * (self._high - points) / (self._high - self._low)
