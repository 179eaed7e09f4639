"""The GPU script without a GPU: traces, stages that fail, carried wheels, references, tables."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from experiments.benchmarks import exact, tables
from experiments.benchmarks.gpu import __main__ as script
from experiments.benchmarks.gpu import kernels, unpack

ROOT = Path(__file__).parents[2]


# --- traces ---


def written(folder: Path, events: list[dict]) -> Path:
    file = folder / "host.trace.json.gz"
    with gzip.open(file, "wt") as stream:
        json.dump({"traceEvents": events}, stream)
    return file


def named(pid: int, tid: int, process: str, thread: str) -> list[dict]:
    return [
        {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": process}},
        {"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": thread}},
    ]


def event(name: str, start: float, length: float, lane: tuple[int, int], **args: str) -> dict:
    pid, tid = lane
    return dict(ph="X", name=name, ts=start, dur=length, pid=pid, tid=tid, args=args)


@pytest.fixture
def gpu_trace(tmp_path):
    """Two steps: products on one stream, a copy beside them on another, 50 us of waiting."""
    compute, copies, modules, host = (1, 7), (1, 8), (1, 9), (2, 1)
    return written(
        tmp_path,
        [
            *named(*compute, "/device:GPU:0", "Stream #7(Compute)"),
            *named(*copies, "/device:GPU:0", "Stream #8(MemcpyD2D)"),
            *named(*modules, "/device:GPU:0", "XLA Modules"),
            *named(*host, "/host:CPU", "python"),
            event("jit_step", 100, 400, modules),
            event("train", 0, 1000, host),
            event("grouped_rows", 100, 100, compute, hlo_op="custom-call.1"),
            event("nvjet_tst_128x64", 200, 60, compute, hlo_op="custom-call.2"),
            event("MemcpyD2D", 210, 90, copies),
            event("loop_fusion_3", 350, 30, compute, hlo_op="loop_fusion.3"),
            event("input_scatter_fusion", 380, 20, compute),
        ],
    )


def test_only_streams_of_a_gpu_count_and_waiting_is_between_them(gpu_trace):
    found = kernels.summary(kernels.read_kernels(gpu_trace), 2, {"loop_fusion.3": "reduction"})
    assert found["kinds_ms"] == pytest.approx(
        {
            "grouped product": 0.050,
            "gemm": 0.030,
            "memcpy": 0.045,
            "reduction": 0.015,
            "sort, scatter, gather": 0.010,
        }
    )
    assert found["window_ms"] == pytest.approx(0.150)
    assert found["idle_ms"] == pytest.approx(0.025)  # from the copy's end at 300 to 350
    assert found["longest_gap_ms"] == pytest.approx(0.050)
    assert found["gaps_per_step"] == 0.5
    assert found["kernels"][0] == {
        "name": "grouped_rows",
        "kind": "grouped product",
        "ms": pytest.approx(0.05),
        "calls": 0.5,
    }


def test_on_a_cpu_operations_count_by_the_time_that_none_within_them_covers(tmp_path):
    lane, other = (3, 1), (3, 2)
    file = written(
        tmp_path,
        [
            *named(*lane, "/host:CPU", "tf_XLAEigen"),
            event("while.1", 0, 100, lane, hlo_op="while.1"),
            event("dot.2", 10, 40, lane, hlo_op="dot.2"),
            event("sort.3", 60, 30, lane, hlo_op="sort.3"),
            event("ThunkExecutor", 0, 200, other),  # no operation
            event("add.4", 120, 5, other, hlo_op="add.4"),
        ],
    )
    found = kernels.summary(kernels.read_kernels(file), 1, {"add.4": "elementwise"})
    assert found["kinds_ms"] == pytest.approx(
        {"gemm": 0.04, "sort, scatter, gather": 0.03, "elementwise": 0.005, "other": 0.03}
    )
    assert found["idle_ms"] == pytest.approx(0.02)


def test_a_trace_without_kernels_says_so(tmp_path):
    file = written(tmp_path, named(1, 1, "/host:CPU", "python"))
    assert "error" in kernels.summary(kernels.read_kernels(file), 3, {})


PROGRAM = """
%fused_computation.1 (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %scatter.9 = f32[8]{0} scatter(f32[8]{0} %p), to_apply=%add
}

%fused_computation.2 (p: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %add.2 = f32[8]{0} add(f32[8]{0} %p.1, f32[8]{0} %p.1)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %fusion.1 = f32[8]{0} fusion(f32[8]{0} %x), kind=kInput, calls=%fused_computation.1
  %fusion.2 = f32[8]{0} fusion(f32[8]{0} %fusion.1), kind=kLoop, calls=%fused_computation.2
  %fusion.3 = f32[8]{0} fusion(%x), calls=%fused_computation.2, metadata={op_name="attention/add"}
  %custom-call.4 = (bf16[8]{0}, s8[4]{0}) custom-call(%x), metadata={op_name="jit(f)/dot_general"}
  %custom-call.5 = f32[8]{0} custom-call(%x), metadata={op_name="jit(f)/grouped_matrices"}
  ROOT %all-reduce.6 = f32[8]{0} all-reduce(f32[8]{0} %fusion.2), to_apply=%add
}
"""


def test_a_programs_text_tells_kinds_that_names_do_not():
    kinds = kernels.kinds_of_program(PROGRAM)
    assert {name: kinds[name] for name in kinds if name.split(".")[0] != "p"} == {
        "scatter.9": "sort, scatter, gather",
        "add.2": "other",
        "x": "other",
        "fusion.1": "sort, scatter, gather",
        "fusion.2": "elementwise",
        "fusion.3": "attention",
        "custom-call.4": "gemm",
        "custom-call.5": "grouped product",
        "all-reduce.6": "collective",
    }


# --- stages ---

STAGE = """
import json, pathlib, sys, time
result = pathlib.Path(sys.argv[2])
result.write_text(json.dumps({"half": 1}))
if sys.argv[1] == "mixtral":
    print("out of memory", file=sys.stderr); sys.exit(3)
if sys.argv[1] == "olmoe":
    print("still at it", flush=True); time.sleep(60)
"""


class Pretended(script.Script):
    """Stages of a few lines in place of the real ones."""

    def command(self, name: str, result: Path, limit: float) -> list[str]:
        return [sys.executable, "-c", STAGE, name, str(result)]


def test_a_stage_that_fails_or_hangs_keeps_what_it_had_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "LIMITS", {**script.LIMITS, "olmoe": 3})
    monkeypatch.setattr(script, "MIN_SECONDS", 1)
    run = Pretended(tmp_path, seconds=300, dry=False)
    for name in ("mixtral", "olmoe", "deepseek"):
        run.run(name)
    run.end = 0
    run.run("step")
    found = json.loads((tmp_path / "gpu.json").read_text())
    stages = found["stages"]
    assert [stage["status"] for stage in stages.values()] == [
        "failed (3)",
        "timeout",
        "ok",
        "skipped",
    ]
    assert "out of memory" in stages["mixtral"]["error"]
    assert "still at it" in stages["olmoe"]["error"]
    for name in ("mixtral", "olmoe", "deepseek"):
        assert stages[name]["result"] == {"half": 1}
    assert "out of memory" in (tmp_path / "gpu.log").read_text()
    message = "\n".join(tables.show(found))
    assert (
        "| olmoe | | timeout, " in message and "| mixtral | last line | out of memory |" in message
    )


def test_the_stages_fit_in_one_call_of_eight_minutes():
    assert sum(script.LIMITS.values()) <= script.SECONDS <= 470
    assert set(script.LIMITS) == set(script.STAGES)


@pytest.fixture(scope="module")
def device_only(tmp_path_factory):
    """The first stage, by the script itself."""
    out = tmp_path_factory.mktemp("gpu")
    done = subprocess.run(
        ["experiments/benchmarks/gpu.sh", str(out), sys.executable, "--dry-run", "--only=device"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**script.os.environ, "CARRY": str(out / "nothing")},
    )
    return done, out


def test_the_script_writes_a_json_and_its_table(device_only):
    done, out = device_only
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "gpu.json").read_text())
    assert found["schema"] == "moe_jax.gpu/1" and found["dry_run"]
    assert found["stages"]["device"]["result"]["rates"]["bandwidth"] > 0
    assert (out / "gpu.md").read_text() in done.stdout


def test_tables_reads_the_json_and_tells_its_usage(device_only, capsys):
    _, out = device_only
    assert tables.main(str(out / "gpu.json")) == 0
    assert capsys.readouterr().out == (out / "gpu.md").read_text()
    assert tables.main() == 2
    assert "RESULTS.json" in capsys.readouterr().out
    assert tables.main("--help") == 0
    assert tables.main(str(out / "no.json")) == 2


@pytest.mark.parametrize(
    ("file", "title"),
    [("moe_layer.json", "| D, F, k | experts |"), ("train_step.json", "| model | arm |")],
)
def test_tables_reads_the_results_in_the_tree(file, title, capsys):
    assert tables.main(str(ROOT / "docs/figures" / file)) == 0
    assert title in capsys.readouterr().out


# --- what is carried ---


def test_only_wheels_of_what_is_missing_are_unpacked(tmp_path):
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    for name in ("numpy", "not_there"):
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}/__init__.py", "")
            archive.writestr(f"{name}-1.0.data/purelib/{name}_too.py", "x = 1")
            archive.writestr(f"{name}-1.0.data/scripts/tool", "")
    unpack.main(str(wheels), str(site))
    files = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert files == {"not_there/__init__.py", "not_there_too.py"}


# --- references ---


def test_the_exact_figures_are_those_carried_and_layers_agree_with_them():
    expected = exact.expected_norms(exact.TINY)
    seen = set()
    for _, check in exact.every_check(exact.TINY):
        seen.add(exact.reference_name(check.name))
        norms = expected[exact.reference_name(check.name)]
        assert exact.drift(check.exact, norms) < exact.DRIFT, check.name
        if check.name in (
            "float32/product/blocks/skewed",
            "float32/experts/blocks/skewed",
            "float32/layer/rows/dropless",
            "float32/layer/slots_scatter/capacity 1.25",
        ):
            found = exact.errors(check.run(), check.exact)
            assert max(found.values()) < 1e-5, (check.name, found)
            # A wrong array is beyond tolerance, whatever the type.
            wrong = {name: value * 1.03 for name, value in check.exact.items()}
            assert min(exact.errors(wrong, check.exact).values()) > 0.02
    assert seen == set(expected)


def test_an_error_that_is_nan_does_not_pass():
    right = {"y": exact.np.ones(3)}
    found = exact.errors({"y": exact.np.array([1, float("nan"), 1])}, right)
    assert not found["y"] <= exact.TOLERANCE["bfloat16"]
