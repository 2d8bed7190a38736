"""Why this class and not that one, in one picture: the image, its maps, the probabilities and what the colours mean."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isqrt, prod
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from cxlib.overlay import AGAINST, FOR, LABELS, blended, channels_last

#: Of the target and of the class that it is told apart from, in every picture.
COLOURS = (FOR, AGAINST)
INK, FAINT, TRACK = "#1c1c1c", "#666666", "#e4e4e4"
DPI = 144
#: Of a map where it is strongest: what lies below stays visible.
OPACITY = 0.78

# Inches: around everything, between panels, the title, the two lines above a panel, the part below the panels, and a
# line of the probabilities in it.
MARGIN, GAP, TITLE, CAPTION, BELOW, LINE = 0.3, 0.16, 0.5, 0.44, 1.6, 0.29


def why_not(
    image: ArrayLike,
    maps: ArrayLike,
    names: tuple[str, str],
    likely: Mapping[str, float] | None = None,
    explainers: Sequence[str] = ("",),
    contrasts: Sequence[str] = ("",),
    note: str = "",
) -> Image.Image:
    """Why this class and not that one: a picture of an image and its maps, which notebooks show and `save` writes.

    Orange speaks for the first class and blue for the second, in the maps of both. Where every map of the second is the
    negative of the first's, as under a contrast of these two alone, one of each pair is shown.

    Args:
        image: (H, W, 3) or (3, H, W) in [0, 1].
        maps: what `cxlib.explain` gives for one image, at the image's resolution or a layer's: (h, w), or with axes in
            front, which are the explainers, the contrasts, and the class or both classes.
        names: of the class and of the one that it is told apart from.
        likely: the probabilities to show, by the classes' names, in their order.
        explainers: what is written over the maps, a name an explainer.
        contrasts: likewise.
        note: small print, such as the network's name.

    Raises:
        ValueError: shapes that do not fit one another, or an image outside [0, 1].
    """
    return rendered(figure(image, maps, names, likely, explainers, contrasts, note))


def figure(
    image: ArrayLike,
    maps: ArrayLike,
    names: tuple[str, str],
    likely: Mapping[str, float] | None = None,
    explainers: Sequence[str] = ("",),
    contrasts: Sequence[str] = ("",),
    note: str = "",
) -> Figure:
    """The same as a matplotlib figure, whose axes are the photograph, the maps, the probabilities and the colours."""
    photograph, heats = channels_last(image), np.asarray(maps, dtype=np.float64)
    heats = heats.reshape((1,) * (5 - heats.ndim) + heats.shape)
    n_explainers, n_contrasts, n_classes = heats.shape[:3]
    if heats.ndim != 5 or (n_explainers, n_contrasts) != (len(explainers), len(contrasts)) or n_classes not in (1, 2):
        raise ValueError(
            f"for {len(explainers)} explainers and {len(contrasts)} contrasts the maps are"
            f" ({len(explainers)}, {len(contrasts)}, 1 or 2, h, w): got shape {np.shape(maps)}"
        )
    if opposite(heats):
        heats, n_classes = heats[:, :, :1], 1
    places = arranged(heats.shape[:3])
    rows, columns = places.shape

    aspect = photograph.shape[1] / photograph.shape[0]
    tall = min(max(10.5 / (rows + columns), 1.6), 3.6) / max(aspect, 1)
    broad = tall * aspect
    high, wide = rows * tall + (rows - 1) * CAPTION, columns * broad + (columns - 1) * GAP
    top, right = MARGIN + TITLE + CAPTION, MARGIN + high * aspect + 2 * GAP
    sheet = Figure(figsize=(right + wide + MARGIN, top + high + BELOW + MARGIN / 2), facecolor="white")
    title(sheet, names)
    caption(sheet, MARGIN, top, high * aspect, "What the network sees")
    axes(sheet, MARGIN, top, high * aspect, high).imshow(photograph)
    for (row, column), index in np.ndenumerate(places):
        e, c, of = (int(place) for place in np.unravel_index(index, heats.shape[:3]))
        x, y = right + column * (broad + GAP), top + row * (tall + CAPTION)
        words = [LABELS.get(contrasts[c], contrasts[c]), f"why {names[of]}?" if n_classes == 2 else ""]
        second, colour = ": ".join(filter(None, words)), COLOURS[of] if n_classes == 2 else FAINT
        caption(sheet, x, y, broad, LABELS.get(explainers[e], explainers[e]), second, colour)
        # The second class's map from the other side, so that what speaks for this class is blue here, too.
        heat = heats[e, c, of] * (1, -1)[of]
        axes(sheet, x, y, broad, tall).imshow(blended(photograph, heat, opacity=OPACITY))
    probabilities(sheet, MARGIN, top + high, high * aspect, likely or {}, names)
    legend(sheet, right, top + high, wide, names, n_classes, note)
    return sheet


def opposite(heats: NDArray[np.float64]) -> bool:
    """Whether of all maps (explainers, contrasts, 2, h, w) the second class's is the negative of the first's."""
    if heats.shape[2] != 2:
        return False
    tolerance = 1e-3 * np.abs(heats).max(axis=(2, 3, 4), keepdims=True)[:, :, 0]
    return bool((np.abs(heats[:, :, 0] + heats[:, :, 1]) <= tolerance).all())


def arranged(shape: tuple[int, ...]) -> NDArray[np.int_]:
    """Indices of the panels of explainers, contrasts and classes, as a full rectangle with no more rows than columns.

    Whole axes go down and the others across, so that the panels of a row, or of a column, have something in common. A
    single axis is broken into rows of equal length.
    """
    n, every = prod(shape), range(len(shape))
    lying = [down for count in every for down in combinations(every, count) if prod(shape[a] for a in down) ** 2 <= n]
    down = max(lying, key=lambda chosen: prod(shape[a] for a in chosen))
    rows = prod(shape[a] for a in down)
    if rows == 1:
        rows = max(divisor for divisor in range(1, isqrt(n) + 1) if n % divisor == 0)
    return np.arange(n).reshape(shape).transpose(*down, *(a for a in every if a not in down)).reshape(rows, -1)


def rendered(drawn: Figure, dpi: int = DPI) -> Image.Image:
    """A figure as an RGB image; the same figure gives the same pixels."""
    drawn.set_dpi(dpi)
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


# --- parts of the sheet; places are in inches from its upper left corner -------------------------------------------


def axes(sheet: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes without ticks or frame."""
    w, h = sheet.get_size_inches()
    made = sheet.add_axes((x / w, 1 - (y + height) / h, width / w, height / h))
    made.set_xticks([])
    made.set_yticks([])
    made.spines[:].set_visible(False)
    return made


def write(sheet: Figure, x: float, y: float, words: str, size: float, **style: Any) -> None:
    """Words as they are, with their baseline at y."""
    w, h = sheet.get_size_inches()
    sheet.text(x / w, 1 - y / h, words, fontsize=size, parse_math=False, **{"va": "baseline", "color": INK} | style)


def title(sheet: Figure, names: tuple[str, str]) -> None:
    """The question, in the colours of the classes: on one line, or on two where the names are long."""
    room = float(sheet.get_size_inches()[0]) - 2 * MARGIN
    first, second = [("Why ", INK), (names[0], FOR)], [("and not ", INK), (names[1], AGAINST), ("?", INK)]
    joined = [*first, (" ", INK), *second]
    if length(joined, 18) <= room:
        return pieces(sheet, MARGIN + 0.24, joined, 18)
    # As large as fits; under 11 points names are rather cut short.
    size = max(11.0, min(15.0, *(15 * 0.99 * room / length(line, 15) for line in (first, second))))
    for number, line in enumerate((first, second)):
        left = room - length([piece for piece in line if piece[1] == INK], size)
        fitting = [(words if colour == INK else shortened(words, left, size, "bold"), colour) for words, colour in line]
        pieces(sheet, MARGIN + 0.1 + 0.29 * number, fitting, size)
    return None


def pieces(sheet: Figure, y: float, line: Sequence[tuple[str, str]], size: float) -> None:
    """Words of several colours, one behind the other."""
    x = MARGIN
    for words, colour in line:
        write(sheet, x, y, words, size, color=colour, weight="normal" if colour == INK else "bold")
        x += length([(words, colour)], size)


def length(line: Sequence[tuple[str, str]], size: float) -> float:
    """The width of such words in inches."""
    return sum(width_of(words, size, "normal" if colour == INK else "bold") for words, colour in line)


def caption(sheet: Figure, x: float, y: float, width: float, first: str, second: str = "", colour: str = FAINT) -> None:
    """One or two lines above a panel."""
    write(sheet, x, y - (0.23 if second else 0.08), shortened(first, width, 9.5, "bold"), 9.5, weight="bold")
    write(sheet, x, y - 0.08, shortened(second, width, 8.5), 8.5, color=colour)


def probabilities(
    sheet: Figure, x: float, y: float, width: float, likely: Mapping[str, float], names: tuple[str, str]
) -> None:
    """Names with their probabilities and a bar each, the two classes' in their colours."""
    for number, (name, p) in enumerate(likely.items()):
        colour = COLOURS[names.index(name)] if name in names else FAINT
        base = y + 0.26 + LINE * number
        share = f"{100 * p:.1f} %" if p >= 0.0005 else "< 0.1 %"
        weight = "bold" if name in names else "normal"
        write(sheet, x, base, shortened(name, width - 0.65, 8.5, weight), 8.5, color=colour, weight=weight)
        write(sheet, x + width, base, share, 8.5, color=colour, weight=weight, ha="right")
        bar = axes(sheet, x, base + 0.05, width, 0.045)
        bar.set(xlim=(0, 1), ylim=(0, 1))
        bar.add_patch(Rectangle((0, 0), 1, 1, color=TRACK, linewidth=0))
        bar.add_patch(Rectangle((0, 0), p, 1, color=colour, linewidth=0))


def legend(sheet: Figure, x: float, y: float, width: float, names: tuple[str, str], n_classes: int, note: str) -> None:
    """What the colours mean, from the second class's to the first's, and the small print."""
    ramp = np.broadcast_to(np.linspace(-1, 1, 257), (2, 257))
    strip = blended(np.full((*ramp.shape, 3), 0.62), ramp, 1, OPACITY)
    axes(sheet, x, y + 0.2, width, 0.2).imshow(strip, aspect="auto")
    room, size = width / 2 - 0.1, 10.5
    while size > 8 and max(width_of(f"for {name}", size, "bold") for name in names) > room:
        size -= 0.5
    for name, colour, place, end in ((names[1], AGAINST, x, "left"), (names[0], FOR, x + width, "right")):
        words = shortened(f"for {name}", room, size, "bold")
        write(sheet, place, y + 0.64, words, size, color=colour, weight="bold", ha=end)
    reading = "Grey says nothing; every map has a scale of its own."
    if n_classes == 2:
        reading = f"Asked about one class, the other's colour stands for all of its rivals. {reading}"
    if width > 5:  # side by side
        lines(sheet, x, y + 1.0, width * 0.6, reading)
        lines(sheet, x + width, y + 1.0, width * 0.38, note, ha="right")
    else:
        below = lines(sheet, x, y + 0.97, width, reading)
        lines(sheet, x, below, width, note)


def lines(sheet: Figure, x: float, y: float, width: float, words: str, **style: Any) -> float:
    """Small print, broken into lines; where the next one begins."""
    for line in textwrap.wrap(words, int(1.15 * width / width_of("n", 8.5))):
        write(sheet, x, y, line, 8.5, color=FAINT, **style)
        y += 0.19
    return y


def shortened(words: str, width: float, size: float, weight: str = "normal") -> str:
    """The words, or as much of their beginning as fits into a width in inches, with three dots behind."""
    kept, width = words, width / 1.02  # drawn, with hinting, some are wider
    while kept and width_of(kept if kept == words else f"{kept}…", size, weight) > width:
        kept = kept[:-1].rstrip()
    return kept if kept == words else f"{kept}…"


def width_of(words: str, size: float, weight: str = "normal") -> float:
    """The width of words in inches, for a font size in points, with the spaces behind them."""
    font = FontProperties(size=size, weight=weight)
    with_end, end = (text_to_path.get_text_width_height_descent(w, font, False)[0] for w in (f"{words}|", "|"))
    return float(with_end - end) / 72
