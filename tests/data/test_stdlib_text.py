from __future__ import annotations

import ast
import hashlib
import json
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from moe_jax.config.errors import UserError
from moe_jax.data.stdlib_documents import (
    Document,
    copied_shares,
    documents_of_stdlib,
    split_by_package,
)
from moe_jax.data.stdlib_text import StdlibText

ROOT = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def source(data_dir):
    folder = data_dir / "stdlib_text" / f"python_{platform.python_version()}" / "1.0.0"
    return tfds.builder_from_directory(folder)


def test_it_is_built_without_tensorflow_and_in_silence(tmp_path):
    program = f"""
import sys
from moe_jax.data.stdlib_text import StdlibText
rows = StdlibText(data_dir={str(tmp_path)!r}).open("train")
rows[0]
assert "tensorflow" not in sys.modules
print(rows.fingerprint["content"]["sha256"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    message = [line for line in done.stderr.splitlines() if not line.startswith("working (")]
    # Nothing of the libraries.
    assert message[0] == f"Preparing stdlib_text in {tmp_path} ..."
    assert [line.partition(":")[0] for line in message[1:]] == ["  read", "  splits"]
    again = StdlibText(data_dir=str(tmp_path), auto_prepare=False).open("train")
    assert done.stdout.split() == [again.fingerprint["content"]["sha256"]]


def test_the_content_depends_on_nothing_but_the_python(data_dir, tmp_path):
    for split in ("train", "validation"):
        first = StdlibText(data_dir=str(data_dir)).open(split).fingerprint
        assert StdlibText(data_dir=str(tmp_path)).open(split).fingerprint == first


def test_the_metadata_lists_the_files(source):
    listed = source.info.metadata["files"]
    for split, files in listed.items():
        examples = source.as_data_source(split)
        assert len(files) == len(examples)
        known = {path: (size, sha256) for path, size, sha256 in files}
        for example in (examples[i] for i in range(0, len(examples), 10)):
            text, path = example["text"], example["path"].decode()
            assert known[path] == (len(text), hashlib.sha256(text).hexdigest())
            assert text.decode("utf-8") == (ROOT / path).read_text("utf-8")


def test_no_package_is_in_both_splits(source):
    splits = [source.as_data_source(split) for split in ("train", "validation")]
    train, validation = ({e["package"].decode() for e in source} for source in splits)
    assert not train & validation
    assert len(validation) >= 10  # many packages, so that none is the whole of it
    assert (train | validation) <= set(sys.stdlib_module_names)
    folders = {part for source in splits for e in source for part in Path(e["path"].decode()).parts}
    assert not folders & {"test", "tests", "encodings", "site-packages"}


def test_the_sizes_are_those_of_a_small_corpus(data_dir):
    sizes = {
        split: StdlibText(data_dir=str(data_dir)).open(split).fingerprint["content"]["bytes"]
        for split in ("train", "validation")
    }
    assert sizes["train"] > 4e6
    assert 0.03 < sizes["validation"] / sum(sizes.values()) < 0.10


def test_hardly_a_function_of_validation_is_in_training():
    """By another measure than the split itself uses: whole functions of some length."""

    def lines(document: Document) -> list[str]:
        return [line.strip() for line in document.text.splitlines()]

    splits = split_by_package(documents_of_stdlib())
    train = "\n".join("\n".join(lines(document)) for document in splits["train"])
    functions = set()
    for document in splits["validation"]:
        for node in ast.walk(ast.parse(document.text)):
            if isinstance(node, ast.FunctionDef) and len(node.body) > 3:
                functions.add("\n".join(lines(document)[node.lineno - 1 : node.end_lineno]))
    copied = [function for function in functions if function in train]
    assert len(functions) > 50
    assert len(copied) <= 0.01 * len(functions), copied


def document(package: str, lines: list[str]) -> Document:
    return Document(f"{package}.py", package, "\n".join(lines))


def test_copies_are_found():
    own = [f"own line {i}" for i in range(20)]
    copy = ["", "  # indented otherwise", *(f"    {line}" for line in own[:15])]
    other = [f"other line {i}" for i in range(20)]
    shares = copied_shares(
        {"a": [document("a", own)], "b": [document("b", copy)], "c": [document("c", other)]}
    )
    assert shares["c"] == 0
    assert shares["a"] == 11 / 16
    assert shares["b"] == 11 / 12


def test_a_package_with_a_copy_never_validates():
    lines = [f"x = {i}" for i in range(40)]
    copies = [document(name, lines) for name in ("asyncio", "json")]
    # Each below the largest size that may validate.
    others = [document(f"m{i}", [f"{i} {j}" for j in range(60)]) for i in range(300)]
    splits = split_by_package([*copies, *others])
    assert {d.package for d in splits["train"]} >= {"asyncio", "json"}
    assert len(splits["train"]) + len(splits["validation"]) == 302
    share = sum(d.size for d in splits["validation"]) / sum(d.size for d in [*copies, *others])
    assert 0.06 <= share < 0.07


def test_only_the_library_itself_is_read(tmp_path):
    for path, text in {
        "json/__init__.py": "import decoder\n",
        "json/tests/test_a.py": "assert 1\n",
        "abc.py": "x = 1\n",
        "this.py": b"\xff\xfe",  # not UTF-8
        "ast.py": " \n",
        "encodings/ascii.py": "x = 1\n",
        "site-packages/numpy/a.py": "x = 1\n",
        "sitecustomize.py": "x = 1\n",
        "_sysconfigdata__linux.py": "prefix = 'somewhere'\n",
        "json/readme.txt": "no code\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert [d.path for d in documents_of_stdlib(tmp_path)] == ["abc.py", "json/__init__.py"]


@pytest.mark.parametrize("there", [True, False])
def test_a_python_without_source_is_told(there, tmp_path):
    with pytest.raises(UserError, match="no source files"):
        documents_of_stdlib(tmp_path if there else tmp_path / "nowhere")


def test_unprepared_is_told_with_the_command(tmp_path):
    dataset = StdlibText(data_dir=str(tmp_path / "a b"), auto_prepare=False)
    command = f"python -m moe_jax.data.prepare --dataset=stdlib_text '--dataset.data_dir={tmp_path}"
    with pytest.raises(UserError, match="not prepared in") as caught:
        dataset.open("train")
    assert f"{command}/a b'" in str(caught.value)


def test_the_metadata_on_disk_names_no_path_of_this_machine(source):
    for file in Path(source.data_path).glob("*.json"):
        text = json.dumps(json.loads(file.read_text("utf-8")))
        assert str(ROOT) not in text
        assert "/tmp" not in text
