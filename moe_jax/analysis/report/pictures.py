"""Images with their patches in the colours of the experts that took them."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from moe_jax.analysis.report.heat_map import image
from moe_jax.analysis.report.png import COLOUR, encoded

SIDE = 116  # of a picture, in pixels of the page
WIDE_SIDE = 190  # of one with boxes
NO_CLASS = (128, 128, 128)
VEIL = 0.5  # how much of the colour lies over the image


@dataclass(frozen=True)
class Framed:
    """An object in its box. corner: left, top, right and bottom as shares of the image's sides.
    number, name: of its class. score: of a prediction."""

    corner: tuple[float, float, float, float]
    number: int
    name: str
    score: float | None = None


@dataclass(frozen=True)
class Picture:
    """One row's image. pixels (H, W, C), scaled as the model sees it. grid: patches along height
    and width; the row's tokens behind the first `ahead` are patches in reading order. name: of its
    class. maps: the class of each pixel, (H, W), by what says so ("truth"); -1 is none. boxes: its
    objects, by what says so."""

    pixels: np.ndarray
    grid: tuple[int, int]
    ahead: int = 0
    name: str = ""
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)
    boxes: Mapping[str, Sequence[Framed]] = field(default_factory=dict)

    def by_patch(self, values_S: np.ndarray) -> np.ndarray:
        """Values of the row's tokens, as (rows, columns) of patches."""
        rows, columns = self.grid
        return values_S[self.ahead : self.ahead + rows * columns].reshape(rows, columns)


def drawn(picture: Picture, expert_S: np.ndarray, colours: Sequence[str]) -> str:
    """SVG: the image, and over each patch the colour of its expert; none for -1."""
    height, width = picture.pixels.shape[:2]
    rows, columns = picture.grid
    scale = SIDE / max(height, width)
    h, w = height * scale / rows, width * scale / columns
    veils = []
    for (y, x), expert in np.ndenumerate(picture.by_patch(expert_S)):
        if expert >= 0:
            veils.append(
                f'<rect x="{x * w:.1f}" y="{y * h:.1f}" width="{w:.1f}" height="{h:.1f}" '
                f'fill="{colours[expert]}" fill-opacity="{VEIL}"><title>expert {expert}</title>'
                "</rect>"
            )
    size = f'width="{width * scale:.0f}" height="{height * scale:.0f}"'
    address = _address(shown(picture.pixels))
    return (
        f'<figure class="picture"><svg {size} role="img" aria-label="{escape(picture.name)}">'
        f'<image {size} style="image-rendering:pixelated" href="{address}"/>'
        f"{''.join(veils)}</svg><figcaption>{escape(picture.name)}</figcaption></figure>"
    )


def mapped(picture: Picture, name: str, colours: Sequence[tuple[int, int, int]]) -> str:
    """The map of classes of this name, in their colours; grey where there is none."""
    table = np.array([*colours, NO_CLASS], np.uint8)  # -1 is the last
    return alone(table[picture.maps[name]], name)


def framed(picture: Picture, name: str, colours: Sequence[tuple[int, int, int]]) -> str:
    """SVG: the image with the objects of this name, each in the colour of its class."""
    height, width = picture.pixels.shape[:2]
    scale = WIDE_SIDE / max(height, width)
    w, h = width * scale, height * scale
    frames = []
    for one in picture.boxes[name]:
        left, top, right, bottom = (min(max(share, 0.0), 1.0) for share in one.corner)
        said = one.name if one.score is None else f"{one.name}, {one.score:.2f}"
        frames.append(
            f'<rect x="{left * w:.1f}" y="{top * h:.1f}" width="{(right - left) * w:.1f}" '
            f'height="{(bottom - top) * h:.1f}" fill="none" stroke="rgb{colours[one.number]}" '
            f'stroke-width="2" pointer-events="all"><title>{escape(said)}</title></rect>'
        )
    size, address = f'width="{w:.0f}" height="{h:.0f}"', _address(shown(picture.pixels))
    return (
        f'<figure class="picture"><svg {size} role="img" aria-label="{escape(name)}">'
        f'<image {size} style="image-rendering:pixelated" href="{address}"/>'
        f"{''.join(frames)}</svg><figcaption>{escape(name)}</figcaption></figure>"
    )


def alone(pixels_HW3: np.ndarray, name: str) -> str:
    """Pixels, uint8, with a name below them."""
    height, width = pixels_HW3.shape[:2]
    scale = SIDE / max(height, width)
    size = f'width="{width * scale:.0f}" height="{height * scale:.0f}"'
    return (
        f'<figure class="picture"><img {size} style="image-rendering:pixelated" '
        f'alt="{escape(name)}" src="{_address(pixels_HW3)}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
    )


def _address(pixels_HW3: np.ndarray) -> str:
    content = base64.b64encode(encoded(pixels_HW3, COLOUR)).decode()
    return f"data:image/png;base64,{content}"


def shown(pixels_HWC: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) from any scale: its least is black, its largest white. Channels beyond three
    are no colours."""
    pixels = np.asarray(pixels_HWC, np.float64)[..., :3]
    least, most = pixels.min(), pixels.max()
    pixels = (pixels - least) / (most - least if most > least else 1.0)
    return np.broadcast_to(np.round(255 * pixels), (*pixels.shape[:2], 3)).astype(np.uint8)


def place_map(relative_RC: np.ndarray, title: str) -> str:
    """A small map of the places of an image: values relative to 1, in the colours of the loads."""
    rows, columns = relative_RC.shape
    scale = SIDE / max(rows, columns)
    size = f"width:{columns * scale:.0f}px;height:{rows * scale:.0f}px"
    return (
        f'<figure class="picture"><div style="{size}">{image(relative_RC, title)}</div>'
        f"<figcaption>{escape(title)}</figcaption></figure>"
    )


STYLE = """
.pictures { display: flex; flex-wrap: wrap; gap: 10px; }
.maps { display: grid; gap: 10px 24px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 430px), 1fr)); }
.palette.keys { gap: 4px 14px; }
.palette.keys i { min-width: 14px; height: 14px; vertical-align: -2px; }
.picture { margin: 0; padding: 8px; }
.picture img.heat { width: 100%; height: 100%; image-rendering: pixelated; }
.picture figcaption { font-size: 12px; color: var(--muted); text-align: center; }
"""
