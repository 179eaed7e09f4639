"""Families of languages, by the codes that data sets name them with."""

from __future__ import annotations

FAMILIES = {
    "Germanic": "af da de en fo is lb nb nl nn no sv",
    "Romance": "ca es fr gl it oc pt ro",
    "Slavic": "be bg bs cs hr mk pl ru sk sl sr uk",
    "Baltic": "lt lv",
    "Celtic": "br cy ga gd",
    "Greek": "el",
    "Indo-Iranian": "bn fa gu hi ku mr ne pa ps sd si tg ur",
    "Uralic": "et fi hu",
    "Basque": "eu",
    "Turkic": "az kk ky tr tt uz",
    "Semitic": "am ar he mt",
    "Dravidian": "kn ml ta te",
    "Sinitic": "yue zh",
    "Japonic": "ja",
    "Koreanic": "ko",
    "Tai": "lo th",
    "Austroasiatic": "km vi",
    "Austronesian": "id jv ms tl",
    "Bantu": "sw xh zu",
}
_FAMILY = {code: family for family, codes in FAMILIES.items() for code in codes.split()}


def family(language: str) -> str:
    """Of a code such as "de", "pt_BR" or "zh-Hans"; "" for one that is not known here."""
    return _FAMILY.get(language.replace("-", "_").partition("_")[0].lower(), "")


def by_family(languages: list[str]) -> list[str]:
    """The languages, those of a family side by side, families in the order above."""
    order = [*FAMILIES, ""]
    return sorted(languages, key=lambda code: (order.index(family(code)), code))
