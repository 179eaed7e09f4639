"""What processes say to each other, in two real ones with four devices each."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT, Launched

# Each line that is printed is checked below; the first column of the output is the process.
PROGRAM = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from moe_jax.config.errors import UserError
from moe_jax.parallel import agreement
from pathlib import Path
from moe_jax.parallel.hosts import joined
from moe_jax.parallel.placement import local_rows, put, put_rows

def told(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__} {error} {getattr(error, 'exit_code', '')}"

def refuse(message, who=None):
    def action():
        if who in (None, jax.process_index()):
            raise UserError(message, exit_code=1)
        return "fine"
    return action

def fill_the_disk():
    with open("/dev/full", "w") as file:
        file.write("x")

def run():
    me = jax.process_index()
    # Not on stdout, where lines of Gloo's threads come between.
    file = open(Path(__file__).with_name(f"said_{me}"), "w")
    tell = lambda *what: print(*what, file=file, flush=True)
    agreement.say("said once")
    tell("devices", jax.device_count(), jax.local_device_count())
    tell("value", agreement.from_primary(lambda: {"from": me}))
    tell("refused", told(lambda: agreement.from_primary(refuse("not here"))))
    tell("full", told(lambda: agreement.from_primary(fill_the_disk)))
    tell("together", told(lambda: agreement.together(lambda: me)))
    tell("one", told(lambda: agreement.together(refuse("no disk", who=1))))
    tell("both", told(lambda: agreement.together(refuse(f"mine {me}"))))
    with agreement.primary_first():
        agreement.client().key_value_set(f"order/{me}", "x")
        order = len(agreement.client().key_value_dir_get("order"))
    tell("place", order)

    # Rows over `data`, which lies across the processes or within each; copies along `tensor`.
    value = np.arange(8 * 3).reshape(8, 3)
    grid = np.array(jax.devices()).reshape(2, 4)
    for name, devices in (("across", grid), ("within", grid.T), ("mixed", grid.T.reshape(2, 4))):
        mesh = Mesh(devices, ("data", "tensor"))
        sharding = NamedSharding(mesh, P("data"))
        held = local_rows(sharding, 8)
        x = put_rows({"x": value[held]}, held, 8, sharding)["x"]
        whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(x)
        tell(name, held.tolist(), np.array_equal(whole, value))
    placed = put({"a": value, "b": x}, {"a": sharding, "b": sharding})
    tell("put", placed["b"] is x, placed["a"].shape)

    mine = [0]
    shared = agreement.SharedMaximum(lambda: mine[0], mesh)
    seen = [shared.value()]
    loss = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, P()))(x)
    for number in (0, 15 * me, 0):
        mine[0] = number
        shared.ask(after=loss)
        seen.append(shared.value())
    tell("maximum", seen)

with joined():
    run()
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> list[dict[str, str]]:
    """What each process told: first word -> the rest."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "program.py").write_text(PROGRAM)
    flags = ["--processes=2", "--devices_per_process=4", "--module=program", "--", "x"]
    code, out, err = Launched(*flags, path=folder).end()
    assert code == 0, err
    assert out.count("said once") == 1
    files = [(folder / f"said_{process}").read_text() for process in range(2)]
    return [dict(line.split(" ", 1) for line in file.splitlines()) for file in files]


def both(said, name: str) -> list[str]:
    return [process[name].strip() for process in said]


def test_all_devices_are_one_run(said):
    assert both(said, "devices") == ["8 4"] * 2


def test_process_0_decides_for_all(said):
    assert both(said, "value") == ["{'from': 0}"] * 2
    assert both(said, "refused") == ["UserError not here 1"] * 2
    first, second = both(said, "full")
    assert first.startswith("OSError") and second.startswith("UserError no space left")


def test_an_error_of_one_is_an_error_of_all(said):
    assert both(said, "together") == ["0", "1"]
    assert both(said, "one") == ["UserError process 1: no disk 1", "UserError no disk 1"]
    assert both(said, "both") == ["UserError mine 0 1", "UserError mine 1 1"]


def test_process_0_goes_first(said):
    assert both(said, "place") == ["1", "2"]


def test_each_process_gives_the_rows_that_its_devices_hold(said):
    low, high, whole = [0, 1, 2, 3], [4, 5, 6, 7], list(range(8))
    assert both(said, "across") == [f"{low} True", f"{high} True"]
    assert both(said, "within") == [f"{whole} True"] * 2
    assert both(said, "mixed") == [f"{whole} True"] * 2
    assert both(said, "put") == ["True (8, 3)"] * 2


def test_the_maximum_is_that_of_all_as_of_the_last_question(said):
    assert both(said, "maximum") == ["[0, 0, 15, 0]"] * 2


def test_a_coordinator_that_is_not_there(tmp_path):
    flags = ["--coordinator=127.0.0.1:9", "--processes=2", "--process=1", "--join_timeout=1"]
    command = [sys.executable, "-m", "moe_jax.train", "--config=x.py", f"--workdir={tmp_path}"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "127.0.0.1:9 did not answer within 1 s" in done.stderr
