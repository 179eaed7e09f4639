"""Renders a run as a JobSet for Kubernetes: TPU slices on GKE, or nodes of GPUs."""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from launch.command import STOPPED, Command, require_label, split
from launch.hardware import GPUS, Slice, slice_of
from launch.xla_flags import variables
from moe_jax.cli import Arguments, command_flags, run_command
from moe_jax.config.environment import PROCESS_VARIABLES
from moe_jax.config.errors import UserError

USAGE = """
usage: python -m launch.kubernetes --name=NAME --topology=v5e-256 --image=IMAGE -- ARGUMENTS

Sends a run to a Kubernetes cluster that has JobSet (kubectl apply); --dry_run only prints the
manifest and the equivalent xpk command. A pod that is asked to leave saves, and the restarted set
goes on; a mistake of the user (exit code 2) ends it. What stands behind -- goes to moe_jax.train;
its workdir must outlive the pods.
  python -m launch.kubernetes --name=olmoe --topology=v5p-128 --image=IMAGE --dry_run -- \\
    --config=configs/olmoe_1b_7b.py --workdir=gs://BUCKET/olmoe
"""
FLAGS = command_flags()
flags.DEFINE_string("name", None, "of the JobSet", flag_values=FLAGS, required=True)
text = "of one slice: v5e-256, v5p-128, v6e-64, as v5p:4x4x8, or GPUs, as h200:64"
flags.DEFINE_string("topology", None, text, flag_values=FLAGS, required=True)
flags.DEFINE_string(
    "image", None, "of launch/Dockerfile, in a registry", flag_values=FLAGS, required=True
)
flags.DEFINE_integer("slices", 1, "TPU slices that are one run", 1, flag_values=FLAGS)
flags.DEFINE_string("namespace", "default", "of Kubernetes", flag_values=FLAGS)
flags.DEFINE_string("module", "moe_jax.train", "the module that is run", flag_values=FLAGS)
flags.DEFINE_string("cluster", "CLUSTER", "name of the cluster, for xpk", flag_values=FLAGS)
flags.DEFINE_boolean("spot", False, "machines that may be taken away", flag_values=FLAGS)
flags.DEFINE_integer("max_restarts", 100, "of the whole set", 0, flag_values=FLAGS)
flags.DEFINE_integer("grace", 180, "seconds that a pod has to save", 1, flag_values=FLAGS)
flags.DEFINE_boolean("dry_run", False, "print what would be sent", flag_values=FLAGS)

JOB, PORT = "run", 8476
USER_ERROR = 2  # exit code of a mistake of the user: starting again mends nothing
COMPLETION = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def main(arguments: Arguments, command: Sequence[str]) -> int:
    name, where = require_label(FLAGS.name), slice_of(FLAGS.topology)
    what = patient(Command.of(FLAGS.module, command))
    if where.tpu is None and FLAGS.slices > 1:
        raise UserError("--slices is for TPUs: give all GPUs as one topology, such as h200:64")
    manifest = jobset(
        name,
        where,
        what,
        image=FLAGS.image,
        slices=FLAGS.slices,
        namespace=FLAGS.namespace,
        spot=FLAGS.spot,
        max_restarts=FLAGS.max_restarts,
        grace=FLAGS.grace,
    )
    rendered = to_yaml(manifest)
    if FLAGS.dry_run:
        print(rendered, end="")
        print(f"# It needs, of the cluster: {needs(where, FLAGS.slices)}.")
        if where.usual:
            print("# The same by xpk (in an environment of its own: it pins other versions):")
            print(f"# {xpk(name, where, what)}")
        return 0
    try:
        return subprocess.run(["kubectl", "apply", "-f", "-"], input=rendered, text=True).returncode
    except FileNotFoundError as error:
        raise UserError("kubectl is not installed; --dry_run prints the manifest") from error


def patient(command: Command) -> Command:
    """Nodes may come minutes apart; who has waited in vain costs a restart of all."""
    if command.module != "moe_jax.train" or "--join_timeout" in " ".join(command.arguments):
        return command
    return Command(command.module, (*command.arguments, "--join_timeout=1800"))


def jobset(
    name: str,
    where: Slice,
    command: Command,
    *,
    image: str,
    slices: int = 1,
    namespace: str = "default",
    spot: bool = False,
    max_restarts: int = 100,
    grace: int = 180,
) -> dict[str, Any]:
    """The manifest: one Job a slice, one pod a host.

    Any pod's failure fails its Job, and the set is started anew, all pods together: a run cannot
    go on without one of its processes. A run that was asked to leave saves and ends with exit code
    75, a failure too, and resumes from what it saved. A mistake of the user fails the set at once.
    Names of fields: jobset.x-k8s.io/v1alpha2.
    """
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace,
        "nodeSelector": node_selector(where, spot),
        "containers": [container(name, where, command, image, slices)],
    }
    if where.tpu is None:
        # NCCL's shared memory; the default of 64 MB is too little for 8 cards.
        pod["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if slices > 1:
        # What slices say to each other takes the node's own network, not the pods' overlay.
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    hopeless = {"operator": "In", "values": [USER_ERROR]}
    job = {
        "parallelism": where.hosts,
        "completions": where.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": hopeless}]},
        "template": {"spec": pod},
    }
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if where.tpu is not None:
        # Each Job has a node pool, which is a slice, to itself.
        topology = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {topology: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": max_restarts,
                "rules": [
                    {
                        "name": "userError",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "replicatedJobs": [{"name": JOB, "replicas": slices, "template": {"spec": job}}],
        },
    }


def node_selector(where: Slice, spot: bool) -> dict[str, str]:
    label = "cloud.google.com/gke-"
    if where.tpu is not None:
        selector = {f"{label}tpu-accelerator": where.tpu.gke, f"{label}tpu-topology": where.shape}
    else:
        selector = {f"{label}accelerator": GPUS[where.kind]}
    return selector | ({f"{label}spot": "true"} if spot else {})


def container(name: str, where: Slice, command: Command, image: str, slices: int) -> dict[str, Any]:
    """One process a host, which drives all of its chips."""
    resource = "google.com/tpu" if where.tpu is not None else "nvidia.com/gpu"
    found: dict[str, Any] = {
        "name": JOB,
        "image": image,
        "command": command.argv(),
        "env": [
            {"name": key, "value": value}
            for key, value in variables(where.topology.chip.platform, slices).items()
        ],
        "resources": {"limits": {resource: where.chips_per_host}},
    }
    if where.tpu is None:
        # Where GKE puts the driver, which images that are not NVIDIA's do not know.
        found["env"].append({"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"})
        found["env"] += meeting(name, where.hosts)
        found["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
    else:
        # The driver locks memory for the chips, more than a container without privileges may; only
        # root has privileges.
        found["securityContext"] = {"privileged": True, "runAsUser": 0}
    return found


def meeting(name: str, hosts: int) -> list[dict[str, Any]]:
    """How processes on GPU nodes find each other. On TPU slices GKE sets what JAX needs, also the
    MEGASCALE_* variables of several slices."""
    field = {"fieldRef": {"fieldPath": COMPLETION}}
    first = f"{name}-{JOB}-0-0.{name}"  # JobSet's host name of pod 0 of the first Job
    return [
        {"name": PROCESS_VARIABLES["coordinator"], "value": f"{first}:{PORT}"},
        {"name": PROCESS_VARIABLES["processes"], "value": str(hosts)},
        {"name": PROCESS_VARIABLES["process"], "valueFrom": field},
    ]


def needs(where: Slice, slices: int) -> str:
    """The nodes that the manifest asks for."""
    if where.tpu is None:
        return f"{where.hosts} nodes of {where.chips_per_host} {GPUS[where.kind]}"
    pool = f"--machine-type={where.tpu.machine} --tpu-topology={where.shape}"
    return f"{slices} node pools of {where.hosts} nodes, {pool}"


def xpk(name: str, where: Slice, command: Command) -> str:
    """The xpk command of the same workload. Without the exit codes it would take a run that was
    stopped, or that has lost another process (1), for one that failed for good."""
    tpu = where.tpu is not None
    environment = variables(where.topology.chip.platform, FLAGS.slices)
    if not tpu:  # xpk names the replicated job slice-job, and counts the nodes in NODE_RANK
        environment |= {
            PROCESS_VARIABLES["coordinator"]: f"{name}-slice-job-0-0.{name}:{PORT}",
            PROCESS_VARIABLES["processes"]: str(where.hosts),
            PROCESS_VARIABLES["process"]: "$(NODE_RANK)",
        }
    return shlex.join(
        [
            *("xpk", "workload", "create", f"--cluster={FLAGS.cluster}", f"--workload={name}"),
            f"--{'tpu' if tpu else 'device'}-type={where.accelerator}",
            f"--num-slices={FLAGS.slices}" if tpu else f"--num-nodes={where.hosts}",
            f"--docker-image={FLAGS.image}",
            f"--max-restarts={FLAGS.max_restarts}",
            f"--restart-on-exit-codes=1,{STOPPED}",
            f"--termination-grace-period-seconds={FLAGS.grace}",
            *(["--spot"] if FLAGS.spot else []),
            *(f"--env={key}={value}" for key, value in environment.items()),
            f"--command={command}",
        ]
    )


def to_yaml(manifest: dict[str, Any]) -> str:
    try:
        import yaml
    except ImportError as error:
        raise UserError("launch.kubernetes needs pip install 'moe_jax[kubernetes]'") from error
    # Through JSON: no anchors for what stands in it twice.
    return yaml.safe_dump(json.loads(json.dumps(manifest)), sort_keys=False, width=1000)


if __name__ == "__main__":
    own, command = split(sys.argv[1:])
    body = functools.partial(main, command=command)
    sys.exit(run_command(body, usage=USAGE, flags=FLAGS, argv=own))
