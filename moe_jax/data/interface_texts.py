"""What an interface says, in eleven languages and English: menus, buttons and messages of
JupyterLab, from its language packs. Small, and without apt."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from moe_jax.config.errors import UserError
from moe_jax.config.json_files import JsonObject
from moe_jax.data.faults import Tally
from moe_jax.data.fetch.archives import Card
from moe_jax.data.fetch.dataset import Fetched
from moe_jax.data.fetch.pip import PipArchive
from moe_jax.data.store import in_share
from moe_jax.data.with_english import WithEnglish

VERSION = "4.5.post3"
# The pack of each language, most texts first, and its sha256.
PACKS = {
    "zh_CN": ("zh-CN", "47cdb0c41c6b066e795c867786c9c29fde527e2bf15aa6b3e9b2bab9929304b5"),
    "fr": ("fr-FR", "9f6ce9d4e64b367ff084a2313af29d6ad8a02d1d08000f3e6c53e2856fa9a11f"),
    "ko": ("ko-KR", "a7ca15848e6fc47ecf35e83a791e2ae9dd26bbfdbc8503567593f908f86c51f4"),
    "ru": ("ru-RU", "d294daf163b0df9bdd14012b574ff311f1f4a166524b38469e90e26eb2c380f6"),
    "pl": ("pl-PL", "907b0e8acb6bc62c4e320e4edf35b2227e7a2980d3d024943b60f64b7f7eef6d"),
    "ja": ("ja-JP", "f3fe9d9228f79fa5b289bb271564e106b75c21be79e7874a658ad2aa50901299"),
    "de": ("de-DE", "b716b56f7e0c884f42152d5e36c253ea0f32ca41f99097d842d3934f4a4bc7fb"),
    "pt_BR": ("pt-BR", "15bad442fd7180d05f99f89b452cf493a3f6ec51454f81d3a5531954e39439b6"),
    "es": ("es-ES", "8b315de006bc48d5798988cff6141f00694e411265011ea21570b4f459070381"),
    "it": ("it-IT", "7c1454449f44d635e96245af3905626f205761d304bc9537e0c77aa46634ea6a"),
    "nl": ("nl-NL", "fe87d859574e85c5d5a4e3eff9a9a86bb90358a217f9886c75c9c76f9350643f"),
}
TEXTS = "texts.json"
CONTEXT = "\x04"  # in a key, behind what tells equal texts apart (gettext)
CARD = Card(
    title="JupyterLab's menus, buttons and messages, in eleven languages and English",
    source="Project Jupyter's translators, as its language packs have them",
    license="BSD (3-Clause)",
    archives=tuple(
        PipArchive(
            name=f"jupyterlab-language-pack-{name}",
            version=VERSION,
            file=f"jupyterlab_language_pack_{name.replace('-', '_').lower()}-{VERSION}"
            "-py2.py3-none-any.whl",
            sha256=sha256,
        )
        for name, sha256 in PACKS.values()
    ),
)


@dataclass(frozen=True, kw_only=True)
class InterfaceTexts(Fetched, WithEnglish):
    """Short texts (3 words in the middle), from 3,000 (Chinese, French) down to 400 (Dutch); of a
    plural the singular. Left out are texts that are the same in both languages. An English text
    is in one split only, with all its translations.
    """

    kind_name: ClassVar[str] = "interface_texts"
    card: ClassVar[Card] = CARD
    known: ClassVar[tuple[str, ...]] = tuple(PACKS)

    languages: tuple[str, ...] = tuple(PACKS)
    validation_fraction: float = 0.1

    def identity(self) -> JsonObject:
        return {**self.origin(), **self.chosen()}

    def extract(self, archives: Mapping[str, Path], folder: Path) -> None:
        wheels = [archives[archive.file] for archive in self.card.archives]
        found = {language: read_pack(path) for language, path in zip(PACKS, wheels, strict=True)}
        text = json.dumps(found, ensure_ascii=False, indent=0)
        (folder / TEXTS).write_text(text + "\n", "utf-8")

    def translations(self, split: str, tally: Tally) -> Iterator[tuple[str, str, str]]:
        texts = json.loads((self.source_folder() / TEXTS).read_text("utf-8"))
        for language in self.languages:
            tally.files += split == "train"  # both splits are read from the same files
            for english, other in texts[language].items():
                if in_share(english, self.validation_fraction) == (split != "train"):
                    yield language, english, other


def read_pack(wheel: Path) -> dict[str, str]:
    """Each English text with its translation, by the English one."""
    found: dict[str, str] = {}
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".json")]
        if not names:
            raise UserError(f"{wheel}: it has no .json of texts")
        for name in names:
            texts: dict[str, Any] = json.loads(archive.read(name))
            for key, forms in texts.items():
                english = key.rpartition(CONTEXT)[2].strip()
                other = str(forms[0] if isinstance(forms, list) else "").strip()
                if english and other and english != other:
                    found.setdefault(english, other)
    return dict(sorted(found.items()))
