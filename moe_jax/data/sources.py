"""The datasets that stand alone, and may be parts of a mixture."""

from __future__ import annotations

from moe_jax.data.folder import Folder
from moe_jax.data.memmap import Memmap
from moe_jax.data.planted import Planted
from moe_jax.data.stdlib_text import StdlibText
from moe_jax.data.tfds_text import Tfds

SOURCES: dict[str, type] = {
    "stdlib_text": StdlibText,
    "tfds": Tfds,
    "folder": Folder,
    "memmap": Memmap,
    "planted": Planted,
}
