"""How the processes of one run find each other, and how they part.

A run on several hosts is one program started once a host (or once a GPU). Each start must join
the others before JAX touches a device:

    with joined(coordinator=..., processes=..., process=...):
        ...  # jax.devices() are those of all processes

What the processes then say to each other is in agreement.py, who reads which data in placement.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jax

from moe_jax.config import activity
from moe_jax.config.environment import PROCESS_VARIABLES
from moe_jax.config.errors import UserError
from moe_jax.config.failures import report_error

ALONE = "to run this process by itself, give --processes=1"


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where and as whom a process meets the others; what is None JAX finds out by `method`.

    method: a `cluster_detection_method` of jax.distributed; "deactivate" for explicit numbers.
    devices: the local GPUs that are this process's; None leaves it to JAX. certain: False where
    the surroundings may turn out to be a single host.
    """

    method: str | None = "deactivate"
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    devices: tuple[int, ...] | None = None
    certain: bool = True


def find_meeting(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Meeting | None:
    """The meeting that flags, else MOE_JAX_* variables, else the surroundings name; None for a
    process that is alone.

    `processes` = 1 says so in any surroundings. UserError where the three do not fit together.
    """
    flags = {"coordinator": coordinator, "processes": processes, "process": process}
    names = {name: f"--{name}" for name in flags}
    if all(value is None for value in flags.values()):
        names = PROCESS_VARIABLES
        flags = {name: environ.get(names[name]) for name in flags}
    if any(value is not None for value in flags.values()):
        return _explicit(flags, names)
    return _slurm(environ) or _tpu(environ) or _kubernetes(environ)


def _explicit(given: Mapping[str, Any], names: Mapping[str, str]) -> Meeting | None:
    processes, process = (_integer(given[key], names[key]) for key in ("processes", "process"))
    if processes == 1 and not process:
        return None
    missing = [names[key] for key, value in given.items() if value is None]
    if missing:
        given_names = ", ".join(names[key] for key, value in given.items() if value is not None)
        raise UserError(f"{given_names} given without {' and '.join(missing)}: all three or none")
    if processes < 1 or not 0 <= process < processes:
        raise UserError(
            f"{names['process']}={process} with {names['processes']}={processes}: "
            f"processes are numbered 0 .. {names['processes']} - 1"
        )
    host, colon, port = given["coordinator"].rpartition(":")
    if not (host and colon and port.isdigit()):
        message = f"{names['coordinator']}={given['coordinator']}"
        raise UserError(f"{message}: must be HOST:PORT, of the machine of process 0")
    return Meeting(coordinator=given["coordinator"], processes=processes, process=process)


def _integer(value: Any, name: str) -> Any:
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name}={value}: must be an integer") from None


def _slurm(environ: Mapping[str, str]) -> Meeting | None:
    """Several tasks of one `srun` (a script under sbatch alone is a single process)."""
    step = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if not all(name in environ for name in step):
        return None
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1)
    if tasks == 1:
        return None
    # JAX gives a task the GPU of its local number. That is wrong where a task sees just its own
    # GPUs (--gpus-per-task), and where there is one task a node, which is to use them all.
    gpus = len([name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name])
    one_a_node = environ.get("SLURM_STEP_NUM_NODES") == str(tasks)
    own = tuple(range(gpus)) if gpus == 1 or (gpus and one_a_node) else None
    return Meeting(
        method="slurm", processes=tasks, process=int(environ["SLURM_PROCID"]), devices=own
    )


def _tpu(environ: Mapping[str, str]) -> Meeting | None:
    """A TPU pod slice: on GKE the environment names its hosts, on a TPU VM the machine's metadata
    do."""
    platforms = environ.get("JAX_PLATFORMS") or "tpu"
    if "tpu" not in platforms or importlib.util.find_spec("libtpu") is None:
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is not None:
        several = "," in hosts or int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1
        return Meeting(method="gketpu") if several else None
    # JAX sets this one, when it is imported, on machines without a TPU.
    if "TPU_SKIP_MDS_QUERY" in environ:
        return None
    return Meeting(method="gcetpu", certain=False)


def _kubernetes(environ: Mapping[str, str]) -> Meeting | None:
    """A pod of an indexed Job; JAX asks the cluster's API how many there are."""
    if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environ.keys():
        return None
    if importlib.util.find_spec("kubernetes") is None:
        raise UserError(
            "this is a pod of an indexed Job: set MOE_JAX_COORDINATOR, MOE_JAX_PROCESSES and "
            f'MOE_JAX_PROCESS (docs/running.md), or install "jax[k8s]"; {ALONE}'
        )
    return Meeting(method=None)


# --- joining and leaving ---


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = 300.0,
    debug: bool = False,
) -> Iterator[None]:
    """Within the context this process is one of all those of the run; to be entered before the
    first use of a device. Alone it does nothing.

    An error inside is reported as by `run_command`, and ends the process at once: the usual end of
    a Python process waits for the others, and they may be waiting for this one.
    UserError where the flags are wrong or the others do not come within `timeout` seconds.
    """
    meeting = find_meeting(coordinator, processes, process)
    if meeting is None:
        yield
        return
    activity.speak(not meeting.process)
    try:
        with activity.doing("waiting for the other processes of the run"):
            _meet(meeting, timeout)
        yield
    except BaseException as error:
        _leave(error, debug)


def _leave(error: BaseException, debug: bool) -> NoReturn:
    """Tells the error and ends the process, without waiting for the others."""
    code = report_error(error, debug)
    if code is None:
        if debug or not isinstance(error, jax.errors.JaxRuntimeError) or not _is_loss(error):
            traceback.print_exception(error)
        else:
            first_line = str(error).partition("\n")[0]
            sys.stderr.write(f"error: another process of the run is gone ({first_line})\n")
    sys.stdout.flush()
    sys.stderr.flush()
    if _global_state().process_id == 0:
        time.sleep(1)  # without it the others end: what they may have to tell comes first
    os._exit(1 if code is None else code)


def _is_loss(error: Exception) -> bool:
    """Whether a collective or the coordinator reports that somebody is missing."""
    message = str(error)
    return any(sign in message for sign in ("Gloo", "coordination service", "heartbeat", "NCCL"))


def _meet(meeting: Meeting, timeout: float) -> None:
    """Initialises jax.distributed. In a thread, because the library, where it gives up, ends the
    process with a stack of C++ calls."""
    _require_free_port(meeting)
    # Its handler of SIGTERM, in C++, would keep the signal from ending a run that starts.
    jax.config.update("jax_enable_preemption_service", False)
    failed: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                meeting.coordinator,
                meeting.processes,
                meeting.process,
                local_device_ids=meeting.devices,
                cluster_detection_method=meeting.method,
                initialization_timeout=int(timeout) + 3600,  # never before this function
            )
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=initialize, name="joining", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise UserError(_nobody(meeting, timeout), exit_code=1)  # another try may find them
    activity.speak(is_first())
    if failed:
        if isinstance(failed[0], ValueError) and not meeting.certain:
            return  # a single host after all
        raise UserError(f"the processes cannot join: {failed[0]}\n{ALONE}") from failed[0]


def _require_free_port(meeting: Meeting) -> None:
    """UserError where process 0's port is taken: the library says so in a line of its log, after
    it has tried for twenty seconds."""
    _, colon, port = (meeting.coordinator or "").rpartition(":")
    if meeting.process != 0 or not (colon and port.isdigit()):
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--coordinator={meeting.coordinator}: process 0 cannot listen on port {port} of "
                f"this machine ({getattr(error, 'strerror', None) or error}); take another"
            ) from error


def _nobody(meeting: Meeting, timeout: float) -> str:
    """Why the meeting did not take place."""
    known = meeting.coordinator or _global_state().coordinator_address
    where = known or "an unknown address"
    if _global_state().process_id and not _answers(known):
        return (
            f"the coordinator at {where} did not answer within {timeout:.0f} s: "
            "is process 0 running there, and is the port open to this machine?"
        )
    count = f"the {meeting.processes}" if meeting.processes else "all"
    return f"not {count} processes came to the coordinator at {where} within {timeout:.0f} s"


def _answers(address: str | None) -> bool:
    if address is None:
        return False
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def _global_state() -> Any:
    """JAX's record of the meeting. Private, but all libraries on top of JAX use it: the public
    part has neither a barrier that waits as long as it takes nor messages of any size."""
    from jax._src import distributed

    return distributed.global_state


def client() -> Any:
    """The connection to the coordinator: barriers and a store of small texts."""
    return _global_state().client


def is_multiprocess() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """The same as `is_primary`, without a look at the devices: where JAX may not be needed."""
    return not _global_state().process_id


def is_primary() -> bool:
    """Whether this is process 0, which alone writes what is not an array, and alone speaks."""
    return jax.process_index() == 0
