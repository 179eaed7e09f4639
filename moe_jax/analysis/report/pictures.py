"""Images with their patches in the colours of the experts that took them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from moe_jax.analysis.report.heat_map import image
from moe_jax.analysis.report.png import COLOUR, encoded

SIDE = 116  # of a picture, in pixels of the page
VEIL = 0.5  # how much of the colour lies over the image


@dataclass(frozen=True)
class Picture:
    """One row's image. pixels (H, W, C), scaled as the model sees it. grid: patches along height
    and width; the row's tokens behind the first `ahead` are patches in reading order. name: of its
    class."""

    pixels: np.ndarray
    grid: tuple[int, int]
    ahead: int = 0
    name: str = ""

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
    return (
        f'<figure class="picture"><svg {size} role="img" aria-label="{escape(picture.name)}">'
        f'<image {size} style="image-rendering:pixelated" href="{_address(picture.pixels)}"/>'
        f"{''.join(veils)}</svg><figcaption>{escape(picture.name)}</figcaption></figure>"
    )


def _address(pixels: np.ndarray) -> str:
    content = base64.b64encode(encoded(shown(pixels), COLOUR)).decode()
    return f"data:image/png;base64,{content}"


def shown(pixels_HWC: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) from any scale: its least is black, its largest white."""
    pixels = np.asarray(pixels_HWC, np.float64)
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
.picture { margin: 0; padding: 8px; }
.picture img.heat { width: 100%; height: 100%; image-rendering: pixelated; }
.picture figcaption { font-size: 12px; color: var(--muted); text-align: center; }
"""
