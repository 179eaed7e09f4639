"""The datasets that stand alone."""

from __future__ import annotations

from moe_jax.data.box_folder import CocoFolder, TfdsBoxes, VocFolder
from moe_jax.data.census_income import CensusIncome
from moe_jax.data.climate import Climate
from moe_jax.data.craters import Craters
from moe_jax.data.digits import Digits
from moe_jax.data.fashion_mnist import FashionMnist
from moe_jax.data.flights import Flights
from moe_jax.data.folder import Folder
from moe_jax.data.histories import HistoryFile
from moe_jax.data.image_folder import ImageFolder, TfdsImages
from moe_jax.data.interface_texts import InterfaceTexts
from moe_jax.data.labelled_folder import LabelledFolder, LabelledTfds
from moe_jax.data.line_pairs import LinePairs, TfdsPairs
from moe_jax.data.map_folder import MapFolder, TfdsMaps
from moe_jax.data.memmap import Memmap
from moe_jax.data.movielens import MovieLens100k
from moe_jax.data.movielens_ratings import MovieLensRatings
from moe_jax.data.package_descriptions import PackageDescriptions
from moe_jax.data.package_sections import PackageSections
from moe_jax.data.package_tags import PackageTags
from moe_jax.data.pages import Pages
from moe_jax.data.planted import Planted
from moe_jax.data.scenes import DigitScenes, Scenes
from moe_jax.data.sentiment import Sentiment
from moe_jax.data.stdlib_text import StdlibText
from moe_jax.data.swissmetro import Swissmetro
from moe_jax.data.table_file import TableFile
from moe_jax.data.tfds_text import Tfds
from moe_jax.data.vowels import Vowels

# Rows for the next token, which a mixture can draw from.
PARTS: dict[str, type] = {
    "stdlib_text": StdlibText,
    "tfds": Tfds,
    "folder": Folder,
    "memmap": Memmap,
    "planted": Planted,
}

# Images with objects in boxes, which a mixture of its own can draw from.
BOXES: dict[str, type] = {
    "scenes": Scenes,
    "digit_scenes": DigitScenes,
    "craters": Craters,
    "pages": Pages,
    "coco_folder": CocoFolder,
    "voc_folder": VocFolder,
    "tfds_boxes": TfdsBoxes,
}

SOURCES: dict[str, type] = {
    **PARTS,
    "sentiment": Sentiment,
    "package_sections": PackageSections,
    "package_tags": PackageTags,
    "package_descriptions": PackageDescriptions,
    "interface_texts": InterfaceTexts,
    "line_pairs": LinePairs,
    "tfds_pairs": TfdsPairs,
    "labelled": LabelledFolder,
    "labelled_tfds": LabelledTfds,
    "digits": Digits,
    "fashion_mnist": FashionMnist,
    "climate": Climate,
    "vowels": Vowels,
    "census_income": CensusIncome,
    "flights": Flights,
    "swissmetro": Swissmetro,
    "table": TableFile,
    "movielens_100k": MovieLens100k,
    "movielens_ratings": MovieLensRatings,
    "histories": HistoryFile,
    "map_folder": MapFolder,
    "tfds_maps": TfdsMaps,
    **BOXES,
    "images": ImageFolder,
    "tfds_images": TfdsImages,
}
