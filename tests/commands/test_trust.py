"""Files of a run name classes; their code runs only where the user says so."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

MODULE = """
import pathlib
pathlib.Path({mark!r}).touch()
from dataclasses import dataclass
from moe_jax.routing.token_choice.top_k import TopK

@dataclass(frozen=True, kw_only=True)
class Router(TopK):
    pass
"""


class Stranger:
    """A run whose files name a class of a module that leaves a mark when it is imported."""

    def __init__(self, folder: Path, trained: Path, name: str):
        self.mark, self.name = folder / "imported", name
        (folder / f"{name}.py").write_text(MODULE.format(mark=str(self.mark)))
        self.workdir = folder / "run"
        shutil.copytree(trained, self.workdir)
        for file in (self.workdir / "config.json", *self.workdir.glob("checkpoints/*/meta.json")):
            tree = json.loads(file.read_text())
            config = tree.get("config", tree)
            config["moe"]["router"] = {"kind": f"{name}:Router", "k": 2}
            file.write_text(json.dumps(tree))
        for file in self.workdir.glob("checkpoints/manifests/*.json"):
            manifest = json.loads(file.read_text())
            meta = self.workdir / "checkpoints" / file.stem / "meta.json"
            manifest["meta.json"] = [meta.stat().st_size, sha256(meta)]
            file.write_text(json.dumps(manifest))


def sha256(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def stranger(trained, tmp_path, monkeypatch, request):
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"stranger_{abs(hash(request.node.name))}"
    yield Stranger(tmp_path, trained, name)
    sys.modules.pop(name, None)


COMMANDS = {
    "evaluate": ["evaluate"],
    "generate": ["generate", "--prompt=alpha"],
    "report": ["report", "--routing"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_import_nothing_that_a_run_names(name, stranger, cli):
    code, _, err = cli(*COMMANDS[name], f"--workdir={stranger.workdir}")
    assert code == 2 and f"{stranger.name}:Router" in err and "--trust" in err
    assert not stranger.mark.exists()


def test_the_report_of_figures_needs_no_class(stranger, cli):
    assert cli("report", f"--workdir={stranger.workdir}")[0] == 0
    assert not stranger.mark.exists()


def test_a_run_that_goes_on_or_starts_from_it_compares_it_as_text(stranger, cli, tiny, tmp_path):
    argv = [f"--config={tiny}", "--config.steps=20"]
    code, _, err = cli("train", *argv, f"--workdir={stranger.workdir}")
    assert code == 2 and f"{stranger.name}:Router" in err
    argv += [f"--workdir={tmp_path / 'new'}", f"--warm_start={stranger.workdir}"]
    code, _, err = cli("train", *argv)
    assert code == 2 and "--trust" in err
    assert not stranger.mark.exists() and not (tmp_path / "new").exists()


def test_who_trusts_a_run_evaluates_it(stranger, cli, trained):
    argv = ["evaluate", f"--workdir={stranger.workdir}"]
    code, out, err = cli(*argv, "--trust")
    assert code == 0 and stranger.mark.exists(), err
    again, message, _ = cli(*argv)  # what is imported already is no danger
    assert again == 0 and message == out


@pytest.mark.lab
def test_a_config_file_of_the_user_s_own_names_what_it_likes(stranger, cli, tmp_path):
    config = stranger.workdir / "config.json"
    argv = [f"--config={config}", f"--workdir={tmp_path / 'mine'}", "--config.steps=1"]
    code, _, err = cli("train", *argv)
    assert code == 0 and stranger.mark.exists(), err
