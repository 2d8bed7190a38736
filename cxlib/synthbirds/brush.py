"""Paint one bird in its scene with numpy and PIL: a picture, its silhouette and the mask of every part.

A bird is a handful of ribbons (body, head, wing, tail): smooth surfaces between two splines, so that a part is a
rectangle in a ribbon's own coordinates and follows every pose. Regions are drawn as numbers, twice as large as the
picture; colours, part masks and soft edges all come from that one drawing, so they cannot disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PARTS = (
    "back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape", "right eye",
    "right leg", "right wing", "tail", "throat",
)  # fmt: skip
PART_ID = {name: number for number, name in enumerate(PARTS, start=1)}
SUPERSAMPLING = 2
RGB = tuple[float, float, float] | np.ndarray


@dataclass(frozen=True)
class BodyPlan:
    """Proportions of a family, facing right, y down; lengths in units of a body of about 1."""

    spine: tuple[tuple[float, float, float, float, float], ...]
    """Tail root to head: x, y, extent towards the back, extent towards the belly, share of the head's movement."""
    zones: tuple[float, float]
    """Where, along the spine in [0, 1], the belly ends and the breast ends."""
    head: tuple[float, float, float, float]
    """Radius, then length, height of the crown and depth of the chin in radii."""
    culmen: tuple[tuple[float, float], ...]
    """Upper edge of the beak in the head's frame, in radii, base to tip."""
    gape: tuple[tuple[float, float], ...]
    """Line between the mandibles."""
    chin: tuple[tuple[float, float], ...]
    """Lower edge of the beak, base to its own tip."""
    eye: tuple[float, float, float]
    """x, y, radius in the head's frame."""
    crest: float
    """Length of the plumes behind the crown, in head radii."""
    wing_upper: tuple[tuple[float, float], ...]
    wing_lower: tuple[tuple[float, float], ...]
    wing_bar: tuple[float, float]
    """Stretch of the wing, shoulder to tip, that carries the bar."""
    tail: tuple[float, float, float, float, float]
    """Angle below the horizontal, length, half width at root and at end, and how far the middle feathers stand out."""
    tail_bars: int
    hip: tuple[float, float]
    leg: tuple[float, float, float]
    """Length below the hip, thickness, share of it that is feathered."""
    webbed: bool = False


class Painting(NamedTuple):
    """A picture and its truth, all of one square size."""

    image: Image.Image
    """RGB."""
    bird: np.ndarray
    """Boolean (H, W): visible pixels of the bird."""
    parts: np.ndarray
    """uint8 (H, W): number of the part in `PARTS`, from 1, where one is visible; else 0."""


LONG, SHORT = np.linspace(0, 1, 25), np.linspace(0, 1, 9)
LONG_TIPS, SHORT_TIPS = np.arange(25) % 3 - 1.0, np.arange(9) % 3 - 1.0
"""Where a patch's outline is sampled, and the feather tips along it."""


class Ribbon:
    """A surface between two curves of as many points: s in [0, 1] along them, t from the lower (0) to the upper (1)."""

    def __init__(self, upper: np.ndarray, lower: np.ndarray):
        self.sheet = np.concatenate([lower, upper - lower], axis=1)

    def at(self, s: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Points (n, 2) at coordinates s and t, both (n,)."""
        x = np.minimum(np.maximum(s, 0), 0.9999) * (len(self.sheet) - 1)
        i = x.astype(int)
        start = self.sheet.take(i, axis=0)
        between = start + (x - i)[:, None] * (self.sheet.take(i + 1, axis=0) - start)
        return between[:, :2] + t[:, None] * between[:, 2:]

    def patch(self, s: tuple[float, float], t: tuple[float, float], ragged: float = 0.0) -> np.ndarray:
        """Outline of the rectangle s x t; `ragged` gives its inner edges feather tips of that height."""
        along, across = s[0] + (s[1] - s[0]) * LONG, t[0] + (t[1] - t[0]) * SHORT
        low, high, start, end = (
            edge + (ragged * tips if 0 < edge < 1 else 0 * tips)
            for edge, tips in ((t[0], LONG_TIPS), (t[1], LONG_TIPS), (s[0], SHORT_TIPS), (s[1], SHORT_TIPS))
        )
        return self.at(
            np.concatenate([along, end, along[::-1], start]), np.concatenate([low, across, high, across[::-1]])
        )


@dataclass
class Layer:
    """Numbered regions on a supersampled canvas; a point p is drawn at p * zoom + origin.

    A region has one colour, or one for each of N colourings: (3,) or (N, 3).
    """

    size: int
    zoom: np.ndarray = field(default_factory=lambda: np.ones(2))
    origin: np.ndarray = field(default_factory=lambda: np.zeros(2))
    colourings: int = 1

    def __post_init__(self) -> None:
        """Start with an empty canvas, whose region 0 is nothing at all."""
        side = self.size * SUPERSAMPLING
        self.canvas = Image.new("L", (side, side))
        self.draw = ImageDraw.Draw(self.canvas)
        self.colours: list[RGB] = [(0, 0, 0)]
        self.parts: list[int] = [0]

    def pixels(self, points: np.ndarray) -> list[Any]:
        """Points (…, n, 2) on the canvas, as PIL wants them: a list of 2 n numbers, or lists thereof."""
        moved = (np.asarray(points) * self.zoom + self.origin) * SUPERSAMPLING
        return moved.reshape(*moved.shape[:-2], -1).tolist()

    def _region(self, colour: RGB, part: str | None) -> int:
        self.colours.append(colour)
        self.parts.append(PART_ID[part] if part else 0)
        return len(self.colours) - 1

    def fill(self, outline: np.ndarray, colour: RGB, part: str | None = None) -> None:
        """A filled outline (n, 2)."""
        self.draw.polygon(self.pixels(outline), fill=self._region(colour, part))

    def stroke(self, points: np.ndarray, width: float, colour: RGB, part: str | None = None) -> None:
        """A line of the given width, in the units of the points."""
        pixels = max(1, round(width * abs(self.zoom[1]) * SUPERSAMPLING))
        self.draw.line(self.pixels(points), fill=self._region(colour, part), width=pixels, joint="curve")

    def resolve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Premultiplied colour (N, H, W, 3), coverage (H, W) in [0, 1], and part numbers (H, W)."""
        covered = self.canvas.point([0] + [255] * 255).reduce(SUPERSAMPLING)
        regions = np.asarray(self.canvas.resize((self.size, self.size), Image.Resampling.NEAREST))
        palettes = np.stack([np.broadcast_to(colour, (self.colourings, 3)) for colour in self.colours], 1)
        colour = np.empty((self.colourings, self.size, self.size, 3), dtype=np.float32)
        painted = self.canvas.copy()
        for k, palette in enumerate(np.clip(palettes, 0, 255).astype(np.uint8)):
            painted.putpalette(palette.tobytes())
            colour[k] = np.asarray(painted.convert("RGB").reduce(SUPERSAMPLING))
        return colour, np.asarray(covered).astype(np.float32) / 255, np.array(self.parts, dtype=np.uint8)[regions]


def spline(points: np.ndarray, samples: int) -> np.ndarray:
    """Catmull-Rom curve (samples, d) through the points (n, d)."""
    points = np.asarray(points, dtype=float)
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    x = np.linspace(0, len(points) - 1, samples)
    i = np.minimum(x.astype(int), len(points) - 2)
    f = (x - i)[:, None]
    a, b, c, d = (padded[i + k] for k in range(4))
    return b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a)))


def rotated(points: np.ndarray, angle: float, centre: np.ndarray) -> np.ndarray:
    """Points turned by an angle in radians, clockwise as y points down."""
    c, s = np.cos(angle), np.sin(angle)
    return (np.asarray(points) - centre) @ np.array([[c, s], [-s, c]]) + centre


def blurred(values: np.ndarray, radius: float) -> np.ndarray:
    """Values (H, W) in [0, 1] under a Gaussian blur, in steps of 1/255."""
    image = Image.fromarray((values * 255).astype(np.uint8))
    coarse = max(1, int(radius / 2))
    small = image.reduce(coarse).filter(ImageFilter.GaussianBlur(radius / coarse))
    return np.asarray(small.resize(image.size, Image.Resampling.BILINEAR)).astype(np.float32) / 255


def noise(rng: np.random.Generator, size: int, columns: int, rows: int) -> np.ndarray:
    """Smooth noise (size, size) of about unit variance, with that many cells across and down."""
    cells = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(cells.resize((size, size), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Pose:
    """Where and how one bird stands."""

    faces_left: bool
    tilt: float
    head_shift: np.ndarray
    head_angle: float
    tail_angle: float
    wing_angle: float
    stance: np.ndarray
    extent: float
    place: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Pose":
        """A random pose."""
        return cls(
            faces_left=bool(rng.random() < 0.5),
            tilt=rng.normal(0, 0.11),
            head_shift=rng.normal(0, (0.045, 0.045)),
            head_angle=np.clip(rng.normal(0, 0.16), -0.35, 0.35),
            tail_angle=rng.normal(0, 0.1),
            wing_angle=rng.normal(0.0, 0.04),
            stance=rng.normal((0.06, -0.08), 0.035),
            extent=rng.uniform(0.72, 0.95),
            place=rng.uniform(-1, 1, 2),
        )


class Bird(NamedTuple):
    """A body plan in a pose, in the plan's units."""

    plan: BodyPlan
    pose: Pose
    body: Ribbon
    head: Ribbon
    head_centre: np.ndarray
    wing: Ribbon
    tail: Ribbon
    hip: np.ndarray
    ground: float

    def in_head(self, points: np.ndarray) -> np.ndarray:
        """Points of the head's frame (in radii) in the bird's own."""
        moved = np.asarray(points) * self.plan.head[0] + self.head_centre
        return rotated(moved, self.pose.head_angle, self.head_centre)

    @classmethod
    def stand(cls, plan: BodyPlan, pose: Pose) -> "Bird":
        """Put the plan into the pose."""
        hip = np.array(plan.hip)
        spine = np.array(plan.spine)
        centres = rotated(spine[:, :2], pose.tilt, hip) + spine[:, 4:] * pose.head_shift
        curve = spline(np.column_stack([centres, spine[:, 2:4]]), 64)
        direction = np.gradient(curve[:, :2], axis=0)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        back = np.column_stack([direction[:, 1], -direction[:, 0]])
        body = Ribbon(curve[:, :2] + back * curve[:, 2:3], curve[:, :2] - back * curve[:, 3:4])

        radius, length, crown, chin = plan.head
        angle = np.linspace(0, np.pi, 32)
        arc = np.column_stack([-length * np.cos(angle), np.sin(angle) ** 0.85])
        head_centre = centres[-1]
        upper, lower = (
            rotated(radius * arc * (1, height) + head_centre, pose.head_angle, head_centre)
            for height in (-crown, chin)
        )  # fmt: skip

        shoulder = rotated(np.array(plan.wing_upper[0]), pose.tilt, hip)
        wing = Ribbon(*(
            rotated(rotated(spline(np.array(edge), 40), pose.tilt, hip), pose.wing_angle, shoulder)
            for edge in (plan.wing_upper, plan.wing_lower)
        ))  # fmt: skip

        droop, tail_length, root, end, _ = plan.tail
        droop += pose.tail_angle - pose.tilt
        along = np.linspace(-0.12, 1, 16)[:, None]
        half = root + (end - root) * np.clip(along, 0, 1) ** 0.8
        away = np.array([-np.cos(droop), np.sin(droop)])
        across = np.array([-np.sin(droop), -np.cos(droop)])
        middle = centres[0] + along * tail_length * away
        tail = Ribbon(middle + half * across, middle - half * across)
        return cls(plan, pose, body, Ribbon(upper, lower), head_centre, wing, tail, hip, hip[1] + plan.leg[0])

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Upper left and lower right corner."""
        beak = self.in_head(np.array(self.plan.culmen))
        crest = self.in_head(np.array([(-self.plan.crest - 0.7, 0.0)]))
        feet = np.array([[self.hip[0], self.ground + 0.04]])
        outlines = (ribbon.patch((0, 1), (0, 1)) for ribbon in (self.body, self.head, self.wing, self.tail))
        points = np.concatenate([*outlines, beak, crest, feet])
        return points.min(axis=0), points.max(axis=0)


def _shade(colour: RGB, factor: float) -> np.ndarray:
    return np.asarray(colour, dtype=float) * factor


def _draw_plumage(layer: Layer, bird: Bird, colours: Mapping[str, RGB]) -> None:
    """Tail, thighs, body and head: everything whose colours run softly into one another."""
    plan, body, head = bird.plan, bird.body, bird.head
    for k, (low, high) in enumerate(pairwise(np.linspace(0, 1, 8))):
        reach = 0.95 - max(plan.tail[4], 0) + plan.tail[4] * (1 - abs(low + high - 1))
        sides = bird.tail.at(np.array([0, reach, reach, 0]), np.array([low, low, high, high]))
        tip = sides[1:3].mean(axis=0) + 0.05 * (sides[1:3] - sides[0::3]).mean(axis=0)
        feather = np.concatenate([sides[:2], tip[None], sides[2:]])
        layer.fill(feather, _shade(colours["tail"], 0.92 + 0.04 * (k % 3)), "tail")
    length, thickness, feathered = plan.leg
    for shift, factor in zip(bird.pose.stance[::-1], (0.8, 0.97)):
        knee = bird.hip + np.array([shift * 0.7, length * feathered])
        wide = np.array([thickness * (2.2 + 3 * feathered), -0.06])
        half = np.array([thickness, 0])
        thigh = np.stack([bird.hip - wide * (1.3, -1), knee - half, knee + half, bird.hip + wide])
        layer.fill(spline(thigh, 16), _shade(colours["belly"], factor), "belly")
    belly_end, breast_end = plan.zones
    layer.fill(body.patch((0, 1), (0, 1)), colours["back"])
    layer.fill(body.patch((0.02, belly_end), (0, 0.62), 0.02), colours["belly"], "belly")
    layer.fill(body.patch((belly_end, breast_end), (0, 0.66), 0.02), colours["breast"], "breast")
    layer.fill(body.patch((breast_end, 1), (0, 0.55), 0.02), colours["throat"], "throat")
    layer.fill(body.patch((0.02, breast_end), (0.6, 1), 0.02), colours["back"], "back")
    layer.fill(body.patch((breast_end - 0.03, 1), (0.52, 1), 0.02), colours["nape"], "nape")
    if plan.crest:
        for k, (lift, share) in enumerate(((0.12, 0.75), (-0.1, 1.0), (-0.34, 0.7))):
            plume = [
                (-0.3, -0.9),
                (-0.9, -0.75 - lift),
                (-0.7 - plan.crest * share, -0.3 - lift),
                (-0.8, -0.3),
                (-0.4, -0.2),
            ]
            layer.fill(bird.in_head(spline(np.array(plume), 24)), _shade(colours["crown"], 0.9 + 0.05 * k), "crown")
    layer.fill(head.patch((0, 1), (0, 1)), colours["nape"], "nape")
    layer.fill(head.patch((0.3, 1), (0, 0.66), 0.03), _shade(colours["forehead"], 0.94))
    layer.fill(head.patch((0.34, 1), (0, 0.34), 0.03), colours["throat"], "throat")
    layer.fill(head.patch((0.7, 1), (0.5, 1), 0.03), colours["forehead"], "forehead")
    layer.fill(head.patch((0.06, 0.76), (0.62, 1), 0.03), colours["crown"], "crown")


def _draw_details(layer: Layer, bird: Bird, colours: Mapping[str, RGB]) -> None:
    """Legs, wing, beak and eye: everything with an edge."""
    plan, wing = bird.plan, bird.wing
    near, far = ("left", "right") if bird.pose.faces_left else ("right", "left")
    length, thickness, feathered = plan.leg
    for shift, side, factor in zip(bird.pose.stance[::-1], (far, near), (0.68, 1.0)):
        colour, part = _shade(colours["leg"], factor), f"{side} leg"
        foot = np.array([bird.hip[0] + shift * 1.3, bird.ground])
        top = bird.hip + np.array([shift * 0.7, length * feathered])
        knee = top + (foot - top) * 0.45 - np.array([0.05 * length, 0])
        layer.stroke(np.stack([top, knee, foot]), thickness, colour, part)
        toe = 0.05 + 0.75 * thickness
        toes = [(-1.1, 0.02), (1.0, 0.028), (1.55, 0.008), (1.2, -0.012)]
        if plan.webbed:
            layer.fill(foot + np.array([(-0.4, 0), *toes[1:]]) * (toe, 1), colour, part)
        for tip in np.array(toes) * (toe, 1):
            layer.stroke(np.stack([foot, foot + tip]), thickness * 0.75, colour, part)

    part = f"{near} wing"
    layer.fill(wing.patch((0, 1), (0, 1)), colours["wing"], part)
    for k, low in enumerate(np.linspace(0, 0.8, 6)):
        primary = wing.patch((0.55 + 0.03 * k, 1), (low, low + 0.2))
        layer.fill(primary, _shade(colours["wing"], 0.62 + 0.06 * (k % 2)), part)
    layer.fill(wing.patch((0.02, plan.wing_bar[0]), (0.0, 1.0), 0.02), _shade(colours["wing"], 1.08), part)
    layer.fill(wing.patch(plan.wing_bar, (0.03, 0.9), 0.025), colours["wing bar"], part)

    culmen, gape, chin = (spline(np.array(edge), 20) for edge in (plan.culmen, plan.gape, plan.chin))
    beak = colours["beak"]
    layer.fill(bird.in_head(np.concatenate([gape, chin[::-1]])), _shade(beak, 0.78), "beak")
    layer.fill(bird.in_head(np.concatenate([culmen, gape[::-1]])), beak, "beak")
    layer.fill(bird.in_head(np.concatenate([culmen[13:], gape[:12:-1]])), _shade(beak, 0.72), "beak")
    layer.stroke(bird.in_head(gape), 0.015, _shade(beak, 0.4), "beak")

    x, y, radius = plan.eye
    part = f"{near} eye"
    circle = np.linspace(0, 2 * np.pi, 20)
    circle = np.column_stack([np.cos(circle), np.sin(circle)])
    rings: tuple[tuple[float, RGB], ...] = (
        (1.35, _shade(colours["forehead"], 0.55)), (1.0, colours["eye"]), (0.62, (12, 10, 10)),
    )  # fmt: skip
    for share, ring in rings:
        layer.fill(bird.in_head(circle * radius * share + (x, y)), ring, part)
    layer.fill(bird.in_head(circle * radius * 0.26 + (x + 0.32 * radius, y - 0.32 * radius)), (250, 250, 250), part)


NEUTRAL = 128


def _draw_feathers(layer: Layer, bird: Bird, rng: np.random.Generator) -> np.ndarray:
    """Factor (H, W) around 1 by which feather edges, shafts and bars darken and lighten the plumage."""
    texture = Layer(layer.size, layer.zoom, layer.origin)
    texture.canvas.paste(NEUTRAL, (0, 0, *texture.canvas.size))

    def lines(curves: np.ndarray, width: float, tone: int) -> None:
        thickness = max(1, round(width * SUPERSAMPLING * layer.size / 160))
        for points in texture.pixels(curves):
            texture.draw.line(points, fill=tone, width=thickness)

    def scallops(
        ribbon: Ribbon, s: tuple[float, float], t: tuple[float, float], rows: int, columns: int, tone: int
    ) -> None:
        bow = np.linspace(-1, 1, 5)
        row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        middle = column + 0.5 * (row % 2) + rng.uniform(-0.15, 0.15, (rows, columns))
        across = t[0] + (t[1] - t[0]) / columns * (middle[..., None] + 0.5 * bow)
        along = s[0] + (s[1] - s[0]) / rows * (row[..., None] + 0.8 * bow**2)
        lines(ribbon.at(along.ravel(), across.ravel()).reshape(-1, 5, 2), 0.8, tone)

    def shafts(ribbon: Ribbon, start: float, offsets: np.ndarray, slant: float, width: float, tone: int) -> None:
        along = np.linspace(0, 1, 8)
        across = offsets[:, None] + slant * (1 - along)
        curves = ribbon.at(np.tile(start + (1 - start) * along, len(offsets)), across.ravel())
        lines(curves.reshape(len(offsets), -1, 2), width, tone)

    scallops(bird.body, (0.12, bird.plan.zones[1]), (0.04, 0.62), 9, 6, 112)
    scallops(bird.body, (0.08, 0.95), (0.66, 0.98), 12, 3, 100)
    shafts(bird.tail, 0, np.linspace(0.08, 0.92, 7), 0, 1, 90)
    for k in range(bird.plan.tail_bars):
        s = 0.3 + 0.6 * k / bird.plan.tail_bars
        texture.draw.polygon(texture.pixels(bird.tail.patch((s, s + 0.07), (0, 1))), fill=78)

    outline = bird.wing.patch((0, 1), (0, 1))
    texture.draw.polygon(texture.pixels(outline), fill=NEUTRAL)
    shafts(bird.wing, 0.52, np.linspace(0.1, 0.92, 7), 0.06, 1.6, 78)
    shafts(bird.wing, 0.54, np.linspace(0.07, 0.89, 7), 0.06, 0.8, 168)
    scallops(bird.wing, (0.12, 0.6), (0.03, 0.97), 7, 5, 88)
    lines(outline[None, : len(LONG)], 1.2, 84)
    tone = np.asarray(texture.canvas.reduce(SUPERSAMPLING), dtype=np.float32) / NEUTRAL
    return tone * (1 + 0.05 * noise(rng, layer.size, layer.size // 2, layer.size // 5))


def _lit(plumage: np.ndarray, details: np.ndarray, azimuth: float, unit: float) -> np.ndarray:
    """Shading (H, W): coverage taken as relief, a round body with the wing lying on it, under a light from above."""
    light = np.array([0.7 * np.sin(azimuth), -0.62, 0.62], dtype=np.float32)
    edge, wing = blurred(plumage, 0.05 * unit), blurred(details, 0.03 * unit)
    dy, dx = np.gradient((0.42 * blurred(plumage, 0.16 * unit) + 0.19 * edge + 0.08 * wing) * unit)
    facing = np.maximum((light[2] - dx * light[0] - dy * light[1]) / np.sqrt(1 + dx**2 + dy**2), 0)
    across, down = np.round(light[:2] * 0.045 * unit).astype(int)
    shadow = np.roll(wing, (-down, -across), axis=(0, 1)) * (1 - details)
    rim = np.maximum(facing - 0.8, 0) * (1 - edge)
    return 0.56 + 0.64 * facing - 0.26 * shadow + 1.2 * rim


BACKDROPS = {
    "sky": (((126, 164, 206), (206, 220, 232)), (3, 4), "branch"),
    "overcast": (((170, 176, 184), (212, 212, 208)), (3, 3), "branch"),
    "foliage": (((34, 62, 30), (122, 150, 66)), (9, 9), "branch"),
    "autumn": (((72, 52, 34), (186, 142, 76)), (8, 8), "branch"),
    "water": (((48, 84, 104), (128, 162, 172)), (4, 40), "rock"),
    "reeds": (((92, 96, 54), (190, 178, 118)), (34, 3), "ground"),
    "sand": (((170, 148, 112), (222, 204, 168)), (14, 24), "ground"),
    "meadow": (((58, 88, 42), (150, 168, 88)), (24, 8), "ground"),
}
"""Name to (two colours, cells across and down, what the bird stands on)."""


def _backdrop(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Out-of-focus scene (H, W, 3)."""
    tints, (columns, rows), _ = BACKDROPS[name]
    mix = 0.5 + 0.22 * noise(rng, size, columns, rows) + 0.2 * noise(rng, size, 3, 3)
    mix = mix + np.linspace(-0.25, 0.25, size, dtype=np.float32)[:, None] * float(rng.choice((-1, 1)))
    dark, bright = (
        (np.array(colour) * rng.uniform(0.85, 1.15) + rng.normal(0, 6, 3)).astype(np.float32) for colour in tints
    )
    scene = dark + np.clip(mix, 0, 1)[..., None] * (bright - dark)
    discs = rng.uniform((0, 0, 0.02, 30), (1, 1, 0.09, 110), (14, 4)) * (size, size, size, 1)
    if name not in ("foliage", "autumn", "meadow"):
        return scene
    bokeh = Image.new("L", (size, size))
    pen = ImageDraw.Draw(bokeh)
    for x, y, radius, glow in discs:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(glow))
    glow = blurred(np.asarray(bokeh).astype(np.float32) / 255, 0.012 * size)
    return scene + glow[..., None] * (bright * 1.15 - scene)


def _draw_perch(scene: np.ndarray, kind: str, ground: float, foot: float, rng: np.random.Generator) -> np.ndarray:
    """The scene with something to stand on, its top at height `ground` below the feet at `foot`, in pixels."""
    size = len(scene)
    layer = Layer(size)
    x = np.linspace(-0.05, 1.05, 12) * size
    wobble = rng.normal(0, 0.008 * size, (2, 12))
    slope = rng.normal(0, 0.06) * (x - foot)
    if kind == "branch":
        thick = rng.uniform(0.05, 0.085) * size * np.linspace(1.15, 0.8, 12)[:: rng.choice((-1, 1))]
        colour = np.array((104, 84, 64)) * rng.uniform(0.7, 1.2)
        upper, lower = ground + slope + wobble[0] * 0.4, ground + slope + thick + wobble[1]
    elif kind == "rock":
        colour = np.array((112, 108, 102)) * rng.uniform(0.7, 1.15)
        bulge = np.clip(1 - ((x - foot) / (0.42 * size)) ** 2, -0.6, 1)
        upper, lower = ground + 0.12 * size * (1 - bulge) + wobble[0] * 0.5, np.full(12, 1.2 * size)
    else:
        colour = scene.mean(axis=(0, 1)) * rng.uniform(0.6, 0.85)
        upper, lower = ground - 0.03 * size + wobble[0] * 0.5, np.full(12, 1.2 * size)
    ribbon = Ribbon(spline(np.column_stack([x, upper]), 40), spline(np.column_stack([x, lower]), 40))
    shades = (
        ((0, 0.35, 0.62), (0.35, 0.7, 0.85), (0.7, 0.9, 1.05), (0.9, 1, 1.3)) if kind == "branch" else ((0, 1, 1.0),)
    )
    for low, high, factor in shades:
        layer.fill(ribbon.patch((0, 1), (low, high)), colour * factor)
    (perch,), cover, _ = layer.resolve()
    if kind == "branch":
        grain = 0.11 * noise(rng, size, size // 6, size // 2)
    else:
        grain = 0.09 * noise(rng, size, size // 4, size // 2) + 0.1 * noise(rng, size, 5, 7)
        across, down = (np.arange(size, dtype=np.float32) - float(at) for at in (foot, ground))
        grain -= 0.4 * np.exp(-((across / (0.2 * size)) ** 2) - (down[:, None] / (0.05 * size)) ** 2)
        # A far edge is out of focus, a rock's is not.
        cover = blurred(cover, (0.005 if kind == "rock" else 0.03) * size)
        grain -= 0.3 * np.clip(down / size, 0, 1)[:, None]
        perch = colour.astype(np.float32) * cover[..., None]
    return scene * (1 - cover[..., None]) + perch * (1 + grain)[..., None]


def _draw_occluders(size: int, clutter: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Leaves, blades or twigs before the bird, a little out of focus: premultiplied colour and coverage."""
    layer = Layer(size)
    kind = rng.integers(3)
    tint = np.array([(74, 104, 44), (150, 140, 84), (86, 68, 50)][kind]) * rng.uniform(0.7, 1.25)
    for _ in range(rng.poisson(1 + 2.5 * clutter)):
        base, colour = rng.uniform(0.05, 0.95, 2) * size, tint * rng.uniform(0.8, 1.2)
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.3) * size
        if kind == 0:
            leaf = np.array([(0, 0), (0.3, 0.17), (0.7, 0.15), (1, 0), (0.7, -0.15), (0.3, -0.17), (0, 0)])
            layer.fill(base + rotated(spline(leaf * length, 24), angle, np.zeros(2)), colour)
            layer.stroke(base + rotated(np.array([(0, 0), (0.95 * length, 0)]), angle, np.zeros(2)), 1, colour * 0.75)
        else:
            lean = rng.normal(0, 0.2 if kind == 1 else 0.9) * size
            blade = spline(
                np.array([(base[0], 1.1 * size), (base[0] + lean * 0.3, 0.5 * size), (base[0] + lean, -0.1 * size)]), 16
            )
            layer.stroke(blade, rng.uniform(0.012, 0.03) * size, colour)
    (colour,), cover, _ = layer.resolve()
    radius = rng.uniform(0.3, 1.0) * size / 160
    soft = Image.fromarray(colour.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(soft, dtype=np.float32), blurred(cover, radius)


def paint(plan: BodyPlan, colours: Mapping[str, RGB], rng: np.random.Generator, size: int, clutter: float) -> Painting:
    """Paint one bird in a random pose, light and scene.

    The draws from `rng` do not depend on the colours: the same generator state paints two species in the same pose.

    Args:
        plan: the bird's proportions.
        colours: RGB in [0, 255] for back, beak, belly, breast, crown, eye, forehead, leg, nape, tail, throat, wing and
            wing bar.
        rng: where every random choice comes from.
        size: side of the square picture in pixels.
        clutter: in [0, 1], how often and how densely leaves, reeds and twigs stand before the bird.
    """
    return paint_alike(plan, [colours], rng, size, clutter)[0]


def paint_alike(
    plan: BodyPlan, colourings: Sequence[Mapping[str, RGB]], rng: np.random.Generator, size: int, clutter: float
) -> list[Painting]:
    """Paint one bird in several colourings, all in one pose, light and scene, as `paint` paints each of them.

    What does not depend on the colours is drawn once: a further colouring takes a seventh of the first one's time.
    """
    pose = Pose.draw(rng)
    bird = Bird.stand(plan, pose)
    low, high = bird.bounds()
    unit = float(size * pose.extent / np.max(high - low))
    mirror = np.array([-1.0 if pose.faces_left else 1.0, 1.0])
    free = np.maximum(size * 0.96 - unit * (high - low), 0) / 2
    origin = size / 2 + pose.place * free - unit * (low + high) / 2 * mirror
    plumage_layer, detail_layer = (Layer(size, unit * mirror, origin, len(colourings)) for _ in range(2))
    colours = {part: np.array([colouring[part] for colouring in colourings], float) for part in colourings[0]}
    _draw_plumage(plumage_layer, bird, colours)
    _draw_details(detail_layer, bird, colours)

    plumages, plumage_cover, plumage_parts = plumage_layer.resolve()
    details, detail_cover, detail_parts = detail_layer.resolve()
    cover = plumage_cover * (1 - detail_cover) + detail_cover
    tone = _draw_feathers(plumage_layer, bird, rng) * _lit(plumage_cover, detail_cover, rng.uniform(-1, 1), unit)

    name = list(BACKDROPS)[rng.integers(len(BACKDROPS))]
    feet = bird.hip * unit * mirror + origin
    ground = bird.ground * unit + origin[1]
    scene = _draw_perch(_backdrop(name, size, rng), BACKDROPS[name][2], ground, feet[0], rng)
    scene = scene * (1 - cover[..., None])
    visible = cover > 0.5
    occluded = rng.random() < 0.15 + 0.55 * clutter
    if occluded:
        hiding, hidden = _draw_occluders(size, clutter, rng)
        visible &= hidden < 0.5

    cast = (rng.normal(1, 0.035, 3) * rng.uniform(0.8, 1.18)).astype(np.float32)
    axis = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    vignette = 1 - rng.uniform(0, 0.2) * (axis[:, None] + axis) / 2
    grain = rng.uniform(1, 6) * rng.standard_normal((size, size, 1), dtype=np.float32)
    focus = ImageFilter.BoxBlur(rng.uniform(0, 1.0) * size / 160)
    parts = (np.where(detail_cover > 0.5, detail_parts, plumage_parts) * visible).astype(np.uint8)

    # Blurring colour and coverage alike lets neighbouring plumage run together without drawing in the background.
    soften = ImageFilter.BoxBlur(0.016 * unit)
    soft_cover = np.asarray(Image.fromarray((plumage_cover * 255).astype(np.uint8)).filter(soften), dtype=np.float32)
    paintings = []
    for plumage, detail in zip(plumages, details):
        soft = np.asarray(Image.fromarray(plumage.astype(np.uint8)).filter(soften), dtype=np.float32)
        plumage = soft * (255 / np.maximum(soft_cover, 5))[..., None]
        colour = plumage * (plumage_cover * (1 - detail_cover))[..., None] + detail
        picture = scene + np.clip(colour * tone[..., None], 0, 255)
        if occluded:
            picture = picture * (1 - hidden[..., None]) + hiding
        picture = picture * (cast * vignette[..., None]) + grain
        image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(focus)
        paintings.append(Painting(image, visible, parts))
    return paintings
