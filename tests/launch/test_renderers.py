"""What is sent to clusters: manifests, gcloud commands, compiler flags."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from moe_jax.cli import run_command
from moe_jax.config.errors import UserError
from moe_jax.parallel.hosts import find_meeting

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
command, hardware, kubernetes, tpu_vm, xla_flags = (
    importlib.import_module(f"launch.{name}")
    for name in ("command", "hardware", "kubernetes", "tpu_vm", "xla_flags")
)
SCHEMA = json.loads((HERE / "jobset.json").read_text())
RUN = ["--config=configs/olmoe_1b_7b.py", "--workdir=/shared/a b", "--config.name=it's"]
# name, chips, hosts, chips a host, topology, GKE's label, Cloud TPU's name. Sources:
# cloud.google.com/tpu/docs (v5e, v5p, v6e: supported configurations).
SLICES = [
    ("v5e-256", 256, 64, 4, "16x16", "tpu-v5-lite-podslice", "v5litepod-256"),
    ("v5litepod-16", 16, 4, 4, "4x4", "tpu-v5-lite-podslice", "v5litepod-16"),
    ("v5p-128", 64, 16, 4, "4x4x4", "tpu-v5p-slice", "v5p-128"),
    ("v5p:4x4x8", 128, 32, 4, "4x4x8", "tpu-v5p-slice", "v5p-256"),
    ("v6e-64", 64, 16, 4, "8x8", "tpu-v6e-slice", "v6e-64"),
    ("v4:2x2x1", 4, 1, 4, "2x2x1", "tpu-v4-podslice", "v4-8"),
]


def cli(module, capsys, *argv: str, run=RUN) -> tuple[int, str, str]:
    code = run_command(
        lambda arguments: module.main(arguments, run),
        usage=module.USAGE,
        flags=module.FLAGS,
        argv=list(argv),
    )
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def manifest(capsys, topology: str, *more: str) -> dict:
    code, out, err = cli(
        kubernetes,
        capsys,
        *("--name=olmoe", f"--topology={topology}", "--image=registry/moe:1", "--dry_run", *more),
    )
    assert code == 0, err
    found = yaml.safe_load(out)
    jsonschema.validate(found, SCHEMA)
    return found


def parts(found: dict) -> tuple[dict, dict, dict]:
    """The Job, its pod, and the container."""
    [replicated] = found["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    return job, pod, container


@pytest.mark.parametrize(("name", "chips", "hosts", "each", "shape", "label", "slice_"), SLICES)
def test_a_tpu_slice_has_its_chips_hosts_and_topology(
    capsys, name, chips, hosts, each, shape, label, slice_
):
    where = hardware.slice_of(name)
    assert (where.chips, where.hosts, where.chips_per_host) == (chips, hosts, each)
    assert (where.shape, where.accelerator) == (shape, slice_)
    found = manifest(capsys, name)
    job, pod, container = parts(found)
    assert job["parallelism"] == job["completions"] == hosts
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    assert container["resources"]["limits"] == {"google.com/tpu": each}
    assert "exclusive-topology" in next(iter(found["metadata"]["annotations"]))
    # Nothing that would keep JAX from finding the slice by itself.
    assert not any(e["name"].startswith("MOE_JAX_") for e in container["env"])
    # The driver locks memory; only root has the privileges of a privileged container.
    assert container["securityContext"] == {"privileged": True, "runAsUser": 0}


def test_eight_nodes_of_eight_h200_meet(capsys):
    found = manifest(capsys, "h200:64")
    job, pod, container = parts(found)
    assert job["parallelism"] == job["completions"] == 8 and job["completionMode"] == "Indexed"
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h200-141gb"}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    given = {e["name"]: e.get("value", "3") for e in container["env"]}
    assert given["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    meeting = find_meeting(environ=given)
    assert meeting is not None and (meeting.processes, meeting.process) == (8, 3)
    # JobSet names pods <set>-<replicated job>-<job>-<pod>, in the subdomain of the set.
    first = f"olmoe-{found['spec']['replicatedJobs'][0]['name']}-0-0"
    assert meeting.coordinator == f"{first}.{found['spec']['network']['subdomain']}:8476"


def test_several_slices_are_one_run_and_spot_is_a_label(capsys):
    found = manifest(capsys, "v6e-64", "--slices=4", "--spot", "--max_restarts=7")
    _, pod, container = parts(found)
    assert found["spec"]["replicatedJobs"][0]["replicas"] == 4
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    given = {e["name"]: e["value"] for e in container["env"]}
    assert all(str(flag) in given["LIBTPU_INIT_ARGS"] for flag in xla_flags.TPU_SLICES)
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"


def test_the_command_arrives_whole_and_a_stopped_run_starts_again(capsys):
    job, pod, container = parts(manifest(capsys, "v5e-256"))
    assert container["command"] == [
        *("python", "-m", "moe_jax.train", *RUN),
        *("--join_timeout=1800", f"--stopped_exit_code={command.STOPPED}"),
    ]
    # A pod's exit code other than 0 fails its Job, and with it the set, which is started anew.
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_a_mistake_of_the_user_does_not_start_again(capsys):
    found = manifest(capsys, "v5e-256")
    job, _, _ = parts(found)
    [pods], [jobs] = job["podFailurePolicy"]["rules"], found["spec"]["failurePolicy"]["rules"]
    assert pods == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    assert (jobs["action"], jobs["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # Who waits in vain for the others ends with 2 as well; the user may say how long that takes.
    _, out, _ = cli(
        kubernetes,
        capsys,
        *("--name=olmoe", "--topology=v5e-256", "--image=i", "--dry_run"),
        run=[*RUN, "--join_timeout=60"],
    )
    assert "--join_timeout=60" in out and "1800" not in out


def dry_run(capsys, topology: str) -> list[str]:
    given = ["--name=olmoe", f"--topology={topology}", "--image=i", "--cluster=c", "--dry_run"]
    code, out, err = cli(kubernetes, capsys, *given)
    assert code == 0, err
    return out.splitlines()


def test_the_xpk_command_is_the_same_workload(capsys):
    for topology, kind, count in (
        ("v5p-128", "--tpu-type=v5p-128", "--num-slices=1"),
        ("h200:64", "--device-type=h200-141gb-8", "--num-nodes=8"),
    ):
        line = shlex.split(dry_run(capsys, topology)[-1].removeprefix("# "))
        assert line[:3] == ["xpk", "workload", "create"]
        assert {"--cluster=c", "--workload=olmoe", kind, count, "--docker-image=i"} <= set(line)
        # By default xpk gives up at the first exit code that is not a signal's, and at once.
        again = {"--max-restarts=100", f"--restart-on-exit-codes=1,{command.STOPPED}"}
        assert {*again, "--termination-grace-period-seconds=180"} <= set(line)
        assert shlex.split(line[-1].removeprefix("--command="))[3:6] == RUN
    # On GPUs the processes meet by what xpk's pods know (NODE_RANK is set by it).
    pairs = (a.removeprefix("--env=").split("=", 1) for a in line if a.startswith("--env="))
    given = dict(pairs) | {"MOE_JAX_PROCESS": "3"}
    meeting = find_meeting(environ=given)
    assert meeting is not None and (meeting.processes, meeting.process) == (8, 3)
    assert meeting.coordinator == "olmoe-slice-job-0-0.olmoe:8476"
    assert "--env=MOE_JAX_PROCESS=$(NODE_RANK)" in line


def test_a_shape_without_a_name_of_its_own_is_only_for_kubernetes(capsys):
    lines = dry_run(capsys, "v5p:2x4x8")
    assert not any("xpk" in line for line in lines)
    assert "--machine-type=ct5p-hightpu-4t --tpu-topology=2x4x8" in lines[-1]
    given = ["--name=a", "--topology=v5p:2x4x8", "--zone=z", "--dry_run"]
    code, _, err = cli(tpu_vm, capsys, *given)
    assert code == 2 and "TPU VMs come as 2x2x1, " in err


@pytest.mark.parametrize(
    ("more", "run", "message"),
    [
        (["--topology=v5p-100"], RUN, "no such slice"),
        (["--topology=v9"], RUN, "no hardware"),
        (["--topology=h200:12"], RUN, "must fill hosts"),
        (["--topology=h200-8"], RUN, "GPUs: h200:64"),
        (["--topology=v5e:5x5"], RUN, "do not fill hosts"),
        (["--topology=h200:16", "--slices=2"], RUN, "--slices is for TPUs"),
        (["--name=Big_Run"], RUN, "must be lower-case"),
        ([], [], "after --"),
        ([], ["--config=a"], "no --workdir"),
    ],
)
def test_mistakes_are_told(capsys, more, run, message):
    given = ["--name=olmoe", "--topology=v5e-256", "--image=i", "--dry_run", *more]
    code, _, err = cli(kubernetes, capsys, *given, run=run)
    assert code == 2 and message in err


def test_tpu_vms_get_the_same_command_on_every_worker(capsys):
    given = ["--name=olmoe", "--topology=v5e-256", "--zone=z", "--project=p", "--spot", "--delete"]
    code, out, _ = cli(tpu_vm, capsys, *given, "--dry_run")
    assert code == 0
    create, pack, copy, install, start, delete = map(shlex.split, out.splitlines())
    assert create[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "olmoe"]
    assert {"--accelerator-type=v5litepod-256", "--spot", "--zone=z", "--project=p"} <= set(create)
    assert any(argument.startswith("--version=") for argument in create)
    assert "--worker=all" in copy and "--worker=all" in install and "--worker=all" in start
    archive = next(a for a in pack if a.startswith("--file=")).removeprefix("--file=")
    assert archive in copy and "--exclude=./.venv" in pack
    script = next(a for a in start if a.startswith("--command=")).removeprefix("--command=")
    # As the shell of the host reads it.
    words = shlex.split(script)
    assert words[words.index("moe_jax.train") + 1 :][:3] == RUN
    assert delete[4] == "delete" and "--quiet" in delete
    code, out, _ = cli(tpu_vm, capsys, *given[:3], "--nocreate", "--dry_run")
    assert "create" not in out.split()
    code, _, err = cli(tpu_vm, capsys, "--name=a", "--topology=h200:8", "--zone=z", "--dry_run")
    assert code == 2 and "is no TPU" in err


def test_what_is_not_installed_is_told(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    given = ["--name=olmoe", "--topology=v5e-256"]
    code, _, err = cli(kubernetes, capsys, *given, "--image=i")
    assert code == 2 and "kubectl is not installed" in err
    code, _, err = cli(tpu_vm, capsys, *given, "--zone=z")
    assert code == 2 and "gcloud is not installed" in err


def test_the_hosts_unpack_what_was_packed(tmp_path):
    """The commands themselves, up to the installation."""
    clone, home = tmp_path / "clone", tmp_path / "home"
    for folder in (home, *(clone / name for name in ("moe_jax", *tpu_vm.LEFT_BEHIND))):
        folder.mkdir(parents=True)
    (clone / "setup.py").touch()
    steps = tpu_vm.commands(
        "packed", hardware.slice_of("v6e-8"), command.Command("m", ("--workdir=w",)), zone="z"
    )
    pack = [f"--file={home}/packed.tar.gz" if "--file=" in a else a for a in steps[1]]
    subprocess.run(pack, cwd=clone, check=True)
    unpack = tpu_vm.installation("packed.tar.gz").partition(" && python3")[0]
    subprocess.run(["bash", "-c", unpack], cwd=home, check=True)
    assert {file.name for file in (home / "moe_jax").iterdir()} == {"moe_jax", "setup.py"}


def test_the_flags_of_the_user_count():
    given = {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=false", "HOME": "/h"}
    found = xla_flags.merged(given, {**xla_flags.variables("cuda"), "MOE_JAX_PROCESSES": "1"})
    assert found["XLA_FLAGS"].endswith(given["XLA_FLAGS"]) and str(xla_flags.GPU[1]) in str(found)
    assert found["HOME"] == "/h" and found["MOE_JAX_PROCESSES"] == "1"
    assert xla_flags.merged({"XLA_FLAGS": "a"}, {}) == {"XLA_FLAGS": "a"}


def test_the_gpu_compiler_knows_the_flags():
    environment = {**os.environ, **xla_flags.variables("cuda"), "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", "import jax; jax.devices()"]
    assert subprocess.run(program, env=environment).returncode == 0
    environment["XLA_FLAGS"] += " --xla_gpu_no_such_flag=1"
    assert subprocess.run(program, env=environment, capture_output=True).returncode != 0


def test_every_flag_has_a_reason_and_none_comes_twice():
    every = [*xla_flags.TPU, *xla_flags.TPU_SLICES, *xla_flags.GPU]
    assert len({flag.name for flag in every}) == len(every)
    assert all(len(flag.reason) > 20 for flag in every)
    assert xla_flags.variables("cpu") == {}


def test_names_of_slices_and_of_plans_agree():
    assert hardware.slice_of("v5p-128").topology == hardware.slice_of("v5p:4x4x4").topology
    for kind, shapes in (("v5e", hardware.FLAT), ("v6e", hardware.FLAT), ("v5p", hardware.CUBES)):
        for chips, shape in shapes.items():
            where = hardware.slice_of(f"{kind}:{shape}")
            assert where.chips == chips
            assert hardware.slice_of(where.accelerator).topology == where.topology
    with pytest.raises(UserError, match="write v5p with 3"):
        hardware.slice_of("v5p:4x4")
