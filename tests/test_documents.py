"""Every command in the documents is one that its program takes; in the lab they are run."""

from __future__ import annotations

import functools
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import experiments.run
from moe_jax.cli import run_command
from moe_jax.config.errors import ConfigError
from moe_jax.config.overrides import load_config
from moe_jax.data import prepare
from moe_jax.sweeps.definition import read_sweep
from moe_jax.sweeps.matching import Matching
from moe_jax.sweeps.points import build_point, resolve
from moe_jax.sweeps.search_space import parse_space
from moe_jax.training.experiment import Experiment
from moe_jax.training.rules import cross_check

split = importlib.import_module("launch.command").split  # no part of the package
slice_of = importlib.import_module("launch.hardware").slice_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "launch/README.md"),
    *sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("docs/*.md")),
    *sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("experiments/**/README.md")),
    *sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("configs/*.py")),
]
COMMANDS = (
    *(f"moe_jax.{name}" for name in "train evaluate generate report plan check sweep".split()),
    *("moe_jax.search", "moe_jax.conventions", "moe_jax.data.prepare"),
    *(f"launch.{name}" for name in ("local", "slurm", "kubernetes", "tpu_vm")),
)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python3? -m|make|pytest|pip)(?: |$)")

ANY_SWEEP = "python -m moe_jax.sweep --config=... --sweep=... --out=/shared/sweep"

# Commands that are no commands before a reader has filled them in.
PLACEHOLDERS = {
    "python -m moe_jax.train --config=FILE[:arg] --workdir=DIR [--config.x.y=v ...]": (
        "says what the command is made of"
    ),
    "python -m launch.local --processes=2 --devices_per_process=4 -- --config=FILE --workdir=DIR": (
        "FILE and DIR are the reader's; launch/README.md has it with a config"
    ),
    ANY_SWEEP: "any sweep",
    f"{ANY_SWEEP} --commands=commands.txt": "any sweep",
    "python -m experiments.local_experts.run --out=DIR [--seeds=5]": "DIR is the reader's",
    "python -m experiments.vowels.run --out=DIR [--seeds=25]": "DIR is the reader's",
}

APT = "fetches with apt, which other systems do not have; tests/extras/test_data_sets.py does"
# In the lab: what is not run, by how it starts, and what makes a run of the others small.
NOT_RUN = {
    "make": "its targets are run by .ci/run",
    "pip": "make installs the same",
    "python3 -m venv": "make installs the same",
    "pytest": "runs this",
    "python -m experiments.benchmarks": "measures for minutes, or shows what was measured",
    "python -m moe_jax.train --config=configs/topics.py": APT,
    "python -m moe_jax.train --config=configs/translation.py": APT,
    "python -m moe_jax.report --workdir=runs/translation": APT,
    "python -m moe_jax.generate --workdir=runs/translation": APT,
    "python -m moe_jax.train --config=configs/detection.py --workdir=runs/detection": APT,
    "python -m moe_jax.train --config=configs/detection.py --workdir=runs/voc": "reads VOC's files",
    "python -m moe_jax.train --config=configs/detection.py:together": APT,
    "python -m moe_jax.data.prepare --dataset=fashion_mnist": APT,
}
FEW = (
    *("--config.steps=2", "--config.batch_size=8", "--config.model.num_layers=2"),
    *("--config.evaluation.batches=1", "--config.logging.probe_rows=4"),
)
HALVES = ("configs/detection.py", "configs/translation.py")  # of two layers each, one sparse
SMALL = {
    "moe_jax.train": FEW,
    "moe_jax.sweep": FEW,
    "moe_jax.search": ("--trials=2", *FEW),
    "moe_jax.check": ("--steps=1", "--devices=2", "--only=data=2"),
    "moe_jax.plan": ("--analytic",),
    "moe_jax.evaluate": ("--batches=1",),
    "moe_jax.generate": ("--max_tokens=8",),
    "moe_jax.report": (),
    "moe_jax.data.prepare": (),
    "experiments.run": ("--plan",),  # a card's runs are what was registered, and no fewer
    "experiments.index": ("--check",),
    "launch.local": (),
    "launch.slurm": ("--dry_run",),
    "launch.kubernetes": (),
    "launch.tpu_vm": (),
}


@dataclass(frozen=True)
class Command:
    """place: file and line. text: joined, without its comment."""

    place: str
    text: str
    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, place: str, text: str) -> Command:
        words = shlex.split(text, comments=True)
        variables = [word for word in words if re.match(r"[A-Z_]+=", word)]
        own = words[len(variables) :] if words[: len(variables)] == variables else words
        plain = re.sub(r"\s+#.*", "", text).strip()
        environment = dict(word.split("=", 1) for word in words[: len(words) - len(own)])
        return cls(place, plain, tuple(own), environment)

    @property
    def module(self) -> str | None:
        return self.words[2] if self.words[:2] == ("python", "-m") else None


def commands_of(place: str, lines: Sequence[str], indent: str) -> Iterator[Command]:
    """Commands on lines with the indent (a pattern) or between fences; a \\ at the end goes on."""
    fenced, waiting = False, ""
    for number, line in enumerate(lines, 1):
        fenced ^= line.startswith("```")
        text = waiting + line.strip()
        waiting = ""
        if (fenced or re.match(indent, line)) and COMMAND.match(text):
            if text.endswith("\\"):
                waiting = text[:-1].rstrip() + " "
            else:
                yield Command.of(f"{place}:{number}", text)


def documented() -> list[Command]:
    found = []
    for name in DOCUMENTS:
        lines = (ROOT / name).read_text("utf-8").splitlines()
        found += commands_of(name, lines, " {4}" if name.endswith(".md") else "")
    return found


def helped() -> list[Command]:
    """What the commands' --help gives as examples."""
    found = []
    for name in COMMANDS:
        lines = importlib.import_module(name).USAGE.splitlines()
        found += commands_of(f"{name} --help", lines, r"  (?=\S)| {4}(?=-)")
    return found


def inline() -> list[Command]:
    """Commands within a sentence: `make lint`. Their FILE and DIR are the reader's."""
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text("utf-8")
        text = re.sub(r"^(```.*?^```| {4}.*?$)", "", text, flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`]+)`", text):
            code = " ".join(code.split())
            if COMMAND.match(code) and len(code.split()) > 1:
                found.append(Command.of(name, code))
    return found


def readable(commands: Sequence[Command]) -> dict[str, Command]:
    """One of each that is no placeholder."""
    return {c.text: c for c in reversed(commands) if c.text not in PLACEHOLDERS}


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """In the clone, beside the reader's own modules."""
    monkeypatch.chdir(ROOT)
    write_my_modules(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


# The reader's own modules, by the page that has them.
MODULES = {
    "my_module": "own_router",
    "my_task": "own_task",
    "my_model": "own_task",
    "my_expert": "own_layers",
    "my_mixer": "own_layers",
    "my_around": "own_layers",
}


def write_my_modules(folder: Path) -> None:
    for name, page in MODULES.items():
        text = (ROOT / f"docs/{page}.md").read_text("utf-8")
        (folder / f"{name}.py").write_text(
            re.search(rf"```python\n(# {name}.*?)```", text, re.S)[1]
        )


def test_commands_are_found():
    """In blocks of all kinds, over several lines, with and without variables and comments."""
    message = {c.text: c for c in documented()}
    assert len(message) > 40
    local = message[
        "JAX_NUM_CPU_DEVICES=4 python -m moe_jax.train --config=configs/quickstart.py "
        "--workdir=runs/expert_parallel --config.mesh.expert=4"
    ]
    assert local.environment == {"JAX_NUM_CPU_DEVICES": "4"}
    assert local.module == "moe_jax.train"
    assert {"make quickstart", 'pip install -e ".[test]"', "pytest"} <= message.keys()
    assert len(helped()) > 12


def test_the_tables_are_of_commands_that_there_are():
    message = [command.text for command in documented()]
    assert not PLACEHOLDERS.keys() - set(message)
    for start in NOT_RUN:
        assert any(text.startswith(start) for text in message), start


@functools.cache
def targets() -> set[str]:
    """What make knows, as it lists it itself."""
    listed = subprocess.run(
        ["make", "-npq", "-C", str(ROOT), "clean"], capture_output=True, text=True, check=False
    )
    return set(re.findall(r"^([\w-]+):(?!=)", listed.stdout, re.MULTILINE))


@pytest.mark.parametrize("text", readable([*documented(), *helped()]))
def test_each_command_is_understood(text, capsys):
    """Flags are known, the config file is there, overrides are valid, and they fit together."""
    command = readable([*documented(), *helped()])[text]
    if command.words[0] == "make":
        assert set(command.words[1:]) <= targets()
    elif command.words[0] == "pip":
        extras = re.findall(r'^    "([\w-]+)": ', (ROOT / "setup.py").read_text("utf-8"), re.M)
        assert set(re.findall(r"\[(\w+)\]", text)) <= set(extras)
    elif command.module is not None:
        devices = int(command.environment.get("JAX_NUM_CPU_DEVICES", "1"))
        understand(command.module, list(command.words[3:]), devices, capsys)


@pytest.mark.parametrize("text", readable(inline()))
def test_commands_within_sentences_are_understood(text):
    """Their programs, targets and flags are there."""
    command = readable(inline())[text]
    if command.words[0] == "make":
        assert {word for word in command.words[1:] if word.islower()} <= {*targets(), "..."}
        return
    if command.module is None:  # pytest, pip
        paths = [word for word in command.words if word.startswith("tests/")]
        extras = re.findall(r'^    "([\w-]+)": ', (ROOT / "setup.py").read_text("utf-8"), re.M)
        assert all((ROOT / path).exists() for path in paths)
        assert set(re.findall(r"moe_jax\[([\w-]+)\]", text)) <= set(extras)
        return
    module = importlib.import_module(command.module)
    flags = [word.strip("[]").partition("=")[0] for word in command.words if word[:1] in "-["]
    own = [flag for flag in flags if flag.startswith("--") and not flag.startswith("--config.")]
    if hasattr(module, "FLAGS"):
        assert {flag.removeprefix("--") for flag in own} <= set(module.FLAGS), text
    elif own:
        message = subprocess.run(
            [sys.executable, "-m", command.module, "--help"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert all(flag in message for flag in own), text


def understand(name: str, argv: list[str], devices: int, capsys) -> None:
    module = importlib.import_module(name)
    if not hasattr(module, "FLAGS"):
        return  # a program of positions, without flags
    own, behind = split(argv)
    options = {}
    if module is prepare:
        own, options = prepare.as_overrides(own), {"overrides": True}
    if module is experiments.run:
        card, own = experiments.run.parts(own)
        own += ["--plan"] if "--plan" not in own else []
        options["main"] = lambda arguments: card_of(card, arguments.flags)
    cli = {"main": lambda arguments: resolve_config(name, arguments, devices), **options}
    if name == "moe_jax.conventions" or (name == "moe_jax.plan" and "--search" not in own):
        cli["main"] = module.main
        own += ["--analytic"] if name == "moe_jax.plan" else []
    code = run_command(usage="", flags=module.FLAGS, argv=own, **cli)
    assert code == 0, "".join(capsys.readouterr())
    if behind:
        understand(module.FLAGS.module, behind, devices_of(name, module.FLAGS), capsys)


def card_of(name, flags):
    card = importlib.import_module("experiments.card").load_card(name)
    card.points(card.scale(flags.scale))


def devices_of(launcher, flags) -> int:
    """How many devices a run has that is started so."""
    if launcher == "launch.local":
        return flags.processes * flags.devices_per_process
    if launcher == "launch.slurm":
        return flags.nodes * flags.gpus_per_node
    return slice_of(flags.topology).chips


def resolve_config(name, arguments, devices):
    """The config as the command reads it, and what it holds it to before it does anything."""
    flags, overrides = arguments.flags, arguments.overrides
    if name == "moe_jax.data.prepare":
        prepare.chosen(flags.dataset, flags.config, overrides)
    elif "config" in flags:
        experiment = load_config(flags.config, overrides, Experiment)
        if name == "moe_jax.train" and (problems := cross_check(experiment, devices)):
            raise ConfigError(problems)
        if name == "moe_jax.sweep":
            matching = Matching(flags.match, flags.match_width)
            resolve(flags.config, overrides, read_sweep(flags.sweep, flags.config), matching)
        if name == "moe_jax.search":
            first = {path: domain.first for path, domain in parse_space(flags.space).items()}
            build_point(flags.config, first, arm="", name="trial", common=dict(overrides))


def runnable() -> dict[str, list[Command]]:
    """By document, in their order."""
    found: dict[str, list[Command]] = {}
    for command in documented():
        if command.text in PLACEHOLDERS or command.text.startswith(tuple(NOT_RUN)):
            continue
        found.setdefault(command.place.partition(":")[0], []).append(command)
    return found


def test_each_command_is_run_or_has_a_reason():
    for commands in runnable().values():
        for command in commands:
            assert command.module in SMALL, command


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.mark.lab
@pytest.mark.parametrize("document", runnable())
def test_the_commands_of_a_document_run(document, tmp_path, prepared, one_device_flags):
    """One after the other, as they stand there, with fewer steps; each ends with exit code 0."""
    for part in ("configs", "docs", "experiments", "launch", "moe_jax", "README.md"):
        (tmp_path / part).symlink_to(ROOT / part)
    write_my_modules(tmp_path)
    (tmp_path / "texts/poems").mkdir(parents=True)
    for n in range(40):
        words = " ".join(f"line {n} of poem {n * i}" for i in range(100))
        (tmp_path / f"texts/poems/{n}.txt").write_text(words)
    (tmp_path / "ids").mkdir()
    for name in ("train-0", "train-1", "val"):
        ids = np.random.default_rng(0).integers(200, size=20_000, dtype=np.uint32)
        ids.tofile(tmp_path / f"ids/{name}.bin")
    rows = "".join(f"u{n % 50},c{n % 3},{n % 60},{n % 2},{n % 7}\n" for n in range(400))
    seen = "".join(f"u{n % 50},i{n * n % 47},{n}\n" for n in range(900))
    (tmp_path / "seen.csv").write_text(f"user,item,time\n{seen}")
    (tmp_path / "shop.csv").write_text(f"user,colour,age,buys,price\n{rows}")
    trips = "".join(f"p{n % 30},{n % 3},{n % 7},{n % 5},{n % 2},{1 - n % 2}\n" for n in range(300))
    (tmp_path / "trips.csv").write_text(f"person,purpose,minutes,cost,bus,car\n{trips}")
    (tmp_path / "commands.txt").write_text(
        "python -m moe_jax.train --config=configs/quickstart.py --workdir=runs/one\n"
    )
    environment = os.environ | {
        "PYTHONPATH": ".",
        "XLA_FLAGS": one_device_flags,
        "MOE_JAX_DATA_DIR": str(prepared),
    }
    failed = []
    for command in runnable()[document]:
        done = subprocess.run(
            made_small(command, tmp_path),
            cwd=tmp_path,
            env=environment | command.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            failed.append(
                f"{command}: {done.returncode}\n{done.stdout[-800:]}{done.stderr[-2000:]}"
            )
    assert not failed, "\n".join(failed)


def made_small(command: Command, folder: Path) -> list[str]:
    own, behind = split(command.words[3:])
    small = SMALL[command.module]
    if any(word.endswith(HALVES) for word in own):
        small = tuple(word.replace("num_layers=2", "num_layers=4") for word in small)
    own = [*own, *small]
    if behind:
        few = FEW if command.module == "launch.local" else ()
        own += ["--", *behind, *few]
    elsewhere = re.compile(r"(?<==)/(tmp|shared)/")  # a folder of the reader's
    return [sys.executable, "-m", command.module, *(elsewhere.sub(f"{folder}/", w) for w in own)]
