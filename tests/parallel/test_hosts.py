"""How a process finds out whether, where and as whom it meets others."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from moe_jax.config.errors import UserError
from moe_jax.parallel import hosts
from moe_jax.parallel.hosts import Meeting, find_meeting, joined

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
}
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
VARIABLES = {
    "MOE_JAX_COORDINATOR": "head:1234",
    "MOE_JAX_PROCESSES": "4",
    "MOE_JAX_PROCESS": "2",
}


@pytest.fixture
def installed(monkeypatch):
    """installed("libtpu"): as if these packages were there, and no other one that is asked for."""

    def pretend(*names: str) -> None:
        find = lambda name: object() if name in names else None  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", find)

    return pretend


def test_flags():
    found = find_meeting("head:1234", 4, 3, environ=VARIABLES | SLURM)
    assert found == Meeting(coordinator="head:1234", processes=4, process=3)


def test_variables():
    found = find_meeting(environ=VARIABLES | SLURM)
    assert found == Meeting(coordinator="head:1234", processes=4, process=2)


@pytest.mark.parametrize("surroundings", [VARIABLES, SLURM, POD])
def test_one_process_is_alone_wherever_it_is(surroundings):
    assert find_meeting(None, 1, None, environ=surroundings) is None
    with joined(processes=1):
        pass


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((None, 2, None), "--processes given without --coordinator and --process"),
        (("h:1", None, 1), "--coordinator, --process given without --processes"),
        (("h:1", 2, None), "without --process:"),
        (("h:1", 2, 2), "--process=2 with --processes=2"),
        (("h:1", 2, -1), "--process=-1"),
        (("h:1", 0, 0), "--processes=0"),
        (("h:1", 1, 1), "--process=1 with --processes=1"),
        (("head", 2, 0), "HOST:PORT"),
        (("head:http", 2, 0), "HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(UserError) as error, joined(*flags):
        pass
    assert message in str(error.value) and error.value.exit_code == 2


def test_variables_that_do_not_fit():
    with pytest.raises(UserError, match="MOE_JAX_PROCESSES=many: must be an integer"):
        find_meeting(environ=VARIABLES | {"MOE_JAX_PROCESSES": "many"})
    with pytest.raises(UserError, match="without MOE_JAX_PROCESS:"):
        find_meeting(environ={k: v for k, v in VARIABLES.items() if k != "MOE_JAX_PROCESS"})


def test_a_plain_machine_is_alone(installed):
    installed()
    assert find_meeting(environ={}) is None
    installed("libtpu", "kubernetes")  # to compile for what is not there
    assert find_meeting(environ={"TPU_SKIP_MDS_QUERY": "1"}) is None
    assert find_meeting(environ={"TPU_WORKER_HOSTNAMES": "localhost"}) is None


def test_slurm(installed):
    installed()
    assert find_meeting(environ=SLURM) == Meeting(method="slurm", processes=4, process=3)
    assert find_meeting(environ=SLURM | {"SLURM_NTASKS": "1"}) is None
    assert find_meeting(environ=SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    # A script under sbatch or a shell of salloc, without srun.
    assert find_meeting(environ={k: v for k, v in SLURM.items() if "STEP" not in k}) is None


@pytest.mark.parametrize(
    ("gpus", "nodes", "own"),
    [("0,1,2,3", "2", None), ("2", "2", (0,)), ("0,1,2,3", "4", (0, 1, 2, 3)), ("", "4", None)],
)
def test_gpus_of_a_slurm_task(gpus, nodes, own):
    """None: JAX takes the one of the task's local number."""
    environ = SLURM | {"CUDA_VISIBLE_DEVICES": gpus, "SLURM_STEP_NUM_NODES": nodes}
    assert find_meeting(environ=environ).devices == own


def test_tpu_pods(installed):
    several = {"TPU_WORKER_HOSTNAMES": "a,b"}
    installed()
    assert find_meeting(environ=several) is None  # for JAX without libtpu they are nothing
    installed("libtpu")
    assert find_meeting(environ=several | POD) == Meeting(method="gketpu")
    assert find_meeting(environ=several | {"JAX_PLATFORMS": "cpu"}) is None
    slices = {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}
    assert find_meeting(environ=slices) == Meeting(method="gketpu")
    assert find_meeting(environ={}) == Meeting(method="gcetpu", certain=False)


def test_pods_of_an_indexed_job(installed):
    installed()
    assert find_meeting(environ={"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    with pytest.raises(UserError, match=r"MOE_JAX_COORDINATOR.*--processes=1"):
        find_meeting(environ=POD)
    assert find_meeting(environ=POD | VARIABLES).processes == 4
    installed("kubernetes")
    assert find_meeting(environ=POD) == Meeting(method=None)


def test_a_port_that_is_taken_is_told_at_once():
    """It was a line of another library's log, after 20 seconds."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--coordinator={address}.*in use"):
            hosts._meet(Meeting(coordinator=address, processes=2, process=0), timeout=60.0)
    with pytest.raises(UserError, match="port 99999999"):
        hosts._meet(Meeting(coordinator="127.0.0.1:99999999", processes=2, process=0), timeout=60.0)
