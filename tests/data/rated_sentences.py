"""An archive like that of the rated sentences."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace

from moe_jax.data import sentiment
from moe_jax.data.sentiment import SOURCES


def card_of(sha256):
    """The card of an archive with this checksum."""
    (archive,) = sentiment.CARD.archives
    return replace(sentiment.CARD, archives=(replace(archive, sha256=sha256),))


def archive_of(path, count=40):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        for name in SOURCES.values():
            lines = [
                f"{n // 3}_{n % 3}\t{(n % 9) - 4 + 0.25}\t{name} sentence {n}\r"
                for n in range(count)
            ]
            content = "\n".join([*lines, "broken line\r", "99_1\t0.5\t \r"]).encode()
            info = tarfile.TarInfo(sentiment.FILE.format(name))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr(sentiment.INNER, inner.getvalue())
    return hashlib.sha256(path.read_bytes()).hexdigest()
