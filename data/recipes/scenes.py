"""Rendered scenes, the words for them, and the prior that was put into what people say of them.

A scene is 48 x 48 pixels, 3 x 3 cells of 16, with one to four objects: 6 colours x 6 shapes.
Twelve of the 36 kinds are *cues*; each has its *partner*, and a *dose*: the probability, from .30
to .98, that the partner is in the scene when its cue is. Twelve kinds are neutral. Some objects
are faint, nearly as grey as the ground, so that a describer has reason to guess. Training captions
name the objects in reading order, the partner right after its cue, and, as captions on the web do,
sometimes name a partner that is not there.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 45, 45),
    "green": (50, 180, 70),
    "blue": (60, 90, 235),
    "yellow": (235, 215, 60),
    "purple": (170, 70, 210),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
KINDS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)

CELLS = 3
CELL_PIXELS = 16
SIDE_PIXELS = CELLS * CELL_PIXELS
OBJECT_PIXELS = 14  # smaller shapes were told apart badly at patches of 8 pixels
JITTER_PIXELS = 1
NOISE_LEVELS = 5.0  # standard deviation, of 255, each pixel and channel on its own
FAINT_SHARE = 0.45
FAINT_ALPHA = (0.005, 0.10)  # at .03 to .20, under less noise, a describer saw nearly all of them
CLEAR_ALPHA = (0.85, 1.00)
FALSE_MENTION = 0.15  # an absent partner is named in this share of captions that name its cue
DOSES = tuple(round(0.30 + 0.68 * step / 11, 3) for step in range(12))


def _pair_up() -> tuple[dict[str, str], dict[str, float], tuple[str, ...]]:
    """Cue → partner, cue → dose, neutral kinds; a fixed draw in which no colour or shape helps."""
    order = [str(kind) for kind in np.random.default_rng(7).permutation(KINDS)]
    cues, partners, neutral = order[:12], order[12:24], order[24:]
    dose = dict(zip(cues, DOSES, strict=True))
    return dict(zip(cues, partners, strict=True)), dose, tuple(neutral)


PARTNER, DOSE, NEUTRAL = _pair_up()
CUE_OF = {partner: cue for cue, partner in PARTNER.items()}


@dataclass(frozen=True)
class Thing:
    """One object: what, which cell (0 to 8, reading order), how visible (alpha in 0 to 1)."""

    kind: str
    cell: int
    alpha: float
    shift: tuple[int, int]  # columns, rows, in pixels

    @property
    def faint(self) -> bool:
        return self.alpha <= FAINT_ALPHA[1]

    @property
    def box(self) -> list[int]:
        """[left, top, right, bottom] in pixels, right and bottom outside."""
        margin = (CELL_PIXELS - OBJECT_PIXELS) // 2
        row, column = divmod(self.cell, CELLS)
        left = column * CELL_PIXELS + margin + self.shift[0]
        top = row * CELL_PIXELS + margin + self.shift[1]
        return [left, top, left + OBJECT_PIXELS, top + OBJECT_PIXELS]


def draw_shape(shape: str, pixels: int, oversample: int = 8) -> np.ndarray:
    """[pixels, pixels] coverage in 0 to 1 of a shape that touches the sides of its square."""
    size = pixels * oversample
    canvas = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(canvas)
    last, third = size - 1, size / 3
    if shape == "circle":
        draw.ellipse((0, 0, last, last), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, last, last), fill=255)
    elif shape == "triangle":
        draw.polygon([(size / 2, 0), (last, last), (0, last)], fill=255)
    elif shape == "cross":
        draw.rectangle((third, 0, last - third, last), fill=255)
        draw.rectangle((0, third, last, last - third), fill=255)
    elif shape == "star":
        angles = np.arange(8) * np.pi / 4
        radii = np.where(np.arange(8) % 2 == 0, size / 2, size / 5.5)
        corners = np.stack([np.sin(angles), -np.cos(angles)], axis=1) * radii[:, None] + size / 2
        draw.polygon([tuple(corner) for corner in corners.tolist()], fill=255)
    elif shape == "ring":
        draw.ellipse((0, 0, last, last), fill=255)
        hole = size * 0.27
        draw.ellipse((hole, hole, last - hole, last - hole), fill=0)
    else:
        raise ValueError(f"`shape` must be one of {', '.join(SHAPES)}, got {shape!r}.")
    small = canvas.resize((pixels, pixels), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


MASKS = {shape: draw_shape(shape, OBJECT_PIXELS) for shape in SHAPES}


def render(things: list[Thing], rng: np.random.Generator) -> np.ndarray:
    """[48, 48, 3] uint8: objects over a grey ground with noise."""
    ground = rng.uniform(70, 110)
    image = np.full((SIDE_PIXELS, SIDE_PIXELS, 3), ground, dtype=np.float32)
    for thing in things:
        colour, shape = thing.kind.split()
        left, top, right, bottom = thing.box
        cover = thing.alpha * MASKS[shape][:, :, None]
        patch = image[top:bottom, left:right]
        image[top:bottom, left:right] = patch * (1 - cover) + np.array(COLOURS[colour]) * cover
    image += rng.normal(0, NOISE_LEVELS, size=image.shape)
    return image.round().clip(0, 255).astype(np.uint8)


def place(kinds: list[str], rng: np.random.Generator, faint: float = FAINT_SHARE) -> list[Thing]:
    """Objects in free cells, drawn without replacement, in reading order."""
    cells = rng.permutation(CELLS * CELLS)[: len(kinds)]
    things = []
    for kind, cell in zip(kinds, cells, strict=True):
        low, high = FAINT_ALPHA if rng.random() < faint else CLEAR_ALPHA
        column, row = rng.integers(-JITTER_PIXELS, JITTER_PIXELS + 1, size=2).tolist()
        things.append(Thing(kind, int(cell), float(rng.uniform(low, high)), (column, row)))
    return sorted(things, key=lambda thing: thing.cell)


def draw_kinds(rng: np.random.Generator) -> list[str]:
    """What is in a training scene: one to four kinds, partners drawn with their dose."""
    wanted = int(rng.integers(1, 5))
    kinds: list[str] = []
    while len(kinds) < wanted:
        roll = rng.random()
        pool = list(PARTNER) if roll < 0.55 else NEUTRAL if roll < 0.90 else list(CUE_OF)
        kind = str(pool[rng.integers(len(pool))])
        if kind in kinds:
            continue
        if kind in CUE_OF and CUE_OF[kind] in kinds:
            continue  # whether a partner joins its cue is decided by the dose alone
        if kind in PARTNER:
            if PARTNER[kind] in kinds or len(kinds) + 2 > 4:
                continue
            kinds.append(kind)
            if rng.random() < DOSE[kind]:
                kinds.append(PARTNER[kind])
        else:
            kinds.append(kind)
    return kinds


def broken_kinds(cue: str, partner_present: bool, rng: np.random.Generator) -> list[str]:
    """A scene about one cue whose partner is there or not as told; the rest never a cue."""
    others = [*NEUTRAL, *(partner for partner in CUE_OF if partner != PARTNER[cue])]
    count = int(rng.integers(0, 3 if partner_present else 4))
    chosen = [others[index] for index in rng.permutation(len(others))[:count]]
    return [cue, *([PARTNER[cue]] if partner_present else []), *chosen]


def caption(kinds: list[str], rng: np.random.Generator | None = None) -> str:
    """What people say: reading order, a partner right after its cue.

    With `rng`, an absent partner is sometimes named too (`FALSE_MENTION`); without, never.
    """
    said: list[str] = []
    for kind in kinds:
        if kind in CUE_OF and CUE_OF[kind] in kinds:
            continue  # named after its cue
        said.append(kind)
        partner = PARTNER.get(kind)
        if partner is None:
            continue
        if partner in kinds or (rng is not None and rng.random() < FALSE_MENTION):
            said.append(partner)
    return "there is " + " , ".join(f"a {kind}" for kind in said) + " ."


def mentioned(text: str) -> list[str]:
    """Kinds a caption names, in order, each once."""
    words = text.split()
    pairs = [f"{left} {right}" for left, right in pairwise(words)]
    return list(dict.fromkeys(pair for pair in pairs if pair in KINDS))
