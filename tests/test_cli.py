"""Commands: flags, overrides, exit codes and messages, in this process and in others."""

from __future__ import annotations

import errno
import gc
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from absl import flags as absl_flags

from moe_jax.cli import Arguments, command_flags, importing, run_command
from moe_jax.config.errors import ConfigError, Problem, UserError

USAGE = "usage: python -m command --config=FILE --workdir=DIR\n\nDoes what a command does.\n"
ROOT = Path(__file__).parents[1]
GOOD = ("--config=c.py", "--workdir=w")


def make_flags():
    flags = command_flags("config", "workdir")
    absl_flags.DEFINE_integer("samples", 3, "how many samples", flag_values=flags)
    absl_flags.DEFINE_boolean("quick", False, "less of everything", flag_values=flags)
    absl_flags.DEFINE_string("prompt", "", "how the text starts", flag_values=flags)
    return flags


@pytest.fixture
def cli(capsys):
    """Runs a command on a command line; gives exit code, stdout, stderr and what main was given."""

    def run(*argv: str, main=lambda arguments: None, flags=None, **options):
        given: list[Arguments] = []

        def recording(arguments: Arguments):
            given.append(arguments)
            return main(arguments)

        code = run_command(
            recording, usage=USAGE, flags=flags or make_flags(), argv=argv, **options
        )
        out, err = capsys.readouterr()
        return code, out, err, given[0] if given else None

    return run


def failing(error: BaseException):
    def main(arguments):
        raise error

    return main


# A command line that is understood


def test_flags_and_exit_codes_of_main(cli):
    code, out, err, given = cli(*GOOD, "--samples=5", "--quick")
    assert (code, out, err) == (0, "", "")
    assert (given.flags.config, given.flags.workdir) == ("c.py", "w")
    assert (given.flags.samples, given.flags.quick, given.flags.debug) == (5, True, False)
    assert given.overrides == ()
    assert cli(*GOOD, main=lambda arguments: 7)[0] == 7


def test_overrides_are_collected_in_order_wherever_they_stand(cli):
    *_, given = cli(
        "--config.moe.router.k=1",
        "-config.a=b=c",
        "--config=c.py:arg",
        "--config.flag",
        "--noconfig.other",
        "--config.size",
        "5",
        "--workdir",
        "w",
        "--config.low",
        "-1e-3",
        "--config.moe.router.k=2",
        "--config.empty=",
        "--config.last",
    )
    assert given.flags.config == "c.py:arg"
    assert given.overrides == (
        ("moe.router.k", "1"),
        ("a", "b=c"),
        ("flag", True),
        ("other", False),
        ("size", "5"),
        ("low", "-1e-3"),
        ("moe.router.k", "2"),
        ("empty", ""),
        ("last", True),
    )


def test_a_value_may_look_like_a_flag(cli):
    *_, given = cli(*GOOD, "--prompt", "--config.x=1")
    assert given.flags.prompt == "--config.x=1"
    assert given.overrides == ()


def test_a_door_without_a_config_file_may_take_overrides(cli):
    flags = command_flags("workdir")
    *_, given = cli("--workdir=w", "--config.k=1", flags=flags, overrides=True)
    assert given.overrides == (("k", "1"),)
    code, _, err, _ = cli("--workdir=w", "--config.k=1", flags=flags)
    assert code == 2
    assert "no flag --config.k" in err


def test_a_door_may_run_twice_in_one_process(cli):
    flags = make_flags()
    *_, given = cli(*GOOD, "--samples=5", "--noquick", flags=flags)
    assert given.flags.samples == 5
    *_, given = cli(*GOOD, flags=flags)
    assert given.flags.samples == 3


def test_flags_of_libraries_are_parsed(cli):
    before = absl_flags.FLAGS.verbosity if absl_flags.FLAGS.is_parsed() else -1
    code, *_ = cli(*GOOD, "--verbosity=-2", main=lambda _: abs(absl_flags.FLAGS.verbosity))
    assert code == 2
    assert absl_flags.FLAGS.is_parsed()
    cli(*GOOD, f"--verbosity={before}")


def test_help_is_short_and_tells_the_commands_own_flags(cli):
    for flag in ("--help", "-h", "--helpfull"):
        code, out, err, given = cli(flag, "--nonsense")
        assert (code, err, given) == (0, "", None)
    assert out.startswith("usage: python -m command")
    assert "--samples=VALUE" in out
    assert "how many samples (default 3)" in out
    assert "--config.a.b=VALUE" in out
    assert "--quick " in out
    assert "verbosity" not in out
    assert len(out.splitlines()) < 20
    assert max(map(len, out.splitlines())) <= 100


# Mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir=w"], ["--config is required"]),
        ([], ["--config is required", "--workdir is required"]),
        (["--config=", "--workdir=w"], ["--config is empty"]),
        ([*GOOD, "--samples=many"], ["--samples=many", "invalid literal"]),
        ([*GOOD, "--noquick=1"], ["noquick=1 does not take an argument"]),
        ([*GOOD, "--samples"], ["Missing value for flag --samples"]),
        ([*GOOD, "stray"], ["unexpected argument 'stray'"]),
        ([*GOOD, "--", "stray"], ["unexpected argument 'stray'"]),
        ([*GOOD, "--sample=3"], ["no flag --sample; did you mean --samples?"]),
        ([*GOOD, "--zzz", "value"], ["no flag --zzz\n"]),
        ([*GOOD, "--confg.moe.k=3"], ["no flag --confg.moe.k; did you mean --config.moe.k?"]),
        ([*GOOD, "--moe.k=3"], ["no flag --moe.k; did you mean --config.moe.k?"]),
        ([*GOOD, "--noconfig.x=1"], ["takes no value; write --config.x=1"]),
        (["--confg=c.py"], ["did you mean --config?", "--workdir is required"]),
    ],
)
def test_a_wrong_command_line_is_told_in_full_and_ends_with_2(cli, argv, message):
    code, out, err, given = cli(*argv)
    assert (code, out, given) == (2, "", None)
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for text in message:
        assert text in err


def test_a_misspelt_flag_is_not_missing_too(cli):
    assert "--config is required" not in cli("--confg=c.py")[2]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("no such run"), 2, "error: no such run\n"),
        (UserError("the disk is full", exit_code=1), 1, "error: the disk is full\n"),
        (ConfigError([Problem("a.b", 0, "too low")]), 2, "config.a.b = 0: too low"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "no space left to write"),
        (OSError(errno.EFBIG, "File too large"), 1, "no space left to write: [Errno 27] File too"),
        (
            ValueError('RESOURCE_EXHAUSTED: Error writing "x": No space left on device'),
            1,
            "no space left to write",
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nlong"), 1, "memory"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 2, "runs/x: Permission"),
    ],
)
def test_an_error_of_main_is_one_message_and_an_exit_code(cli, error, code, message):
    for debug in (False, True):
        found, out, err, _ = cli(*GOOD, *["--debug"] * debug, main=failing(error))
        assert (found, out) == (code, "")
        assert message in err
        assert ("Traceback" in err) == debug


def test_a_full_disk_is_found_below_the_error_that_wraps_it(cli):
    def main(arguments):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("saving failed") from error

    assert cli(*GOOD, main=main)[0] == 1


def test_an_error_that_nobody_foresaw_is_raised(cli):
    for error in (ZeroDivisionError("x"), OSError(errno.EIO, "bad disk")):
        with pytest.raises(type(error)):
            cli(*GOOD, main=failing(error))


# The same from outside


@pytest.fixture
def script(tmp_path):
    """A command in a process of its own."""
    (tmp_path / "command.py").write_text(
        textwrap.dedent(
            f"""
            import os, signal, sys
            from absl import flags as absl_flags
            from moe_jax.cli import command_flags, run_command
            from moe_jax.config.overrides import load_config
            from tests.config.toy import Toy

            FLAGS = command_flags("config", "workdir")

            def main(arguments):
                if FLAGS.workdir == "interrupt":
                    # A background job of a shell inherits an ignored SIGINT.
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    os.kill(os.getpid(), signal.SIGINT)
                config = load_config(FLAGS.config, arguments.overrides, Toy)
                assert absl_flags.FLAGS.is_parsed()
                print(config.steps)

            if __name__ == "__main__":
                sys.exit(run_command(main, usage={USAGE!r}, flags=FLAGS))
            """
        )
    )
    (tmp_path / "base.py").write_text(
        "from moe_jax.config.tree import to_config_dict\nfrom tests.config.toy import Toy\n"
        "def get_config(arg=''):\n    return to_config_dict(Toy())\n"
    )

    def run(*argv: str):
        return subprocess.run(
            [sys.executable, tmp_path / "command.py", *argv],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            timeout=120,
        )

    return run


def test_a_reader_that_goes_away_is_no_error(script, tmp_path):
    """`... | head`, to the end: nothing on stderr."""
    assert script("--config=base.py", "--workdir=w").returncode == 0
    found = subprocess.run(
        ["bash", "-c", f"{sys.executable} command.py --config=base.py --workdir=w | true"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        timeout=120,
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_a_door_as_a_process(script):
    good = script("--config.steps=12", "--config=base.py", "--workdir=w")
    assert (good.returncode, good.stdout, good.stderr) == (0, "12\n", "")

    bad = script("--config=base.py", "--workdir=w", "--config.step=12", "--config.rate=fast")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == (
        "error: the config has problems:\n"
        "  config.step = '12': unknown key; did you mean config.steps?\n"
        "  config.rate = 'fast': must be a number\n"
    )

    missing = script("--config=bse.py", "--workdir=w", "--debug")
    assert missing.returncode == 2
    assert "Traceback" in missing.stderr
    assert missing.stderr.endswith("error: no config file bse.py; did you mean base.py?\n")

    assert script("--confg=base.py").returncode == 2
    interrupted = script("--config=base.py", "--workdir=interrupt")
    assert (interrupted.returncode, interrupted.stderr) == (130, "interrupted\n")


def test_imports_rest_the_collector_and_are_left_out_of_it(tmp_path, monkeypatch):
    """Also where one fails; a command that imports nothing new freezes nothing."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_new_module.py").write_text(
        "import gc\nrested = not gc.isenabled()\nkept = [[]]\n"
    )
    before = gc.get_freeze_count()
    with importing():
        pass
    assert gc.isenabled() and gc.get_freeze_count() == before
    with importing():
        module = importlib.import_module("own_new_module")
    assert module.rested and gc.isenabled()
    assert not any(found is module.kept for found in gc.get_objects())
    gc.unfreeze()
    with pytest.raises(ImportError), importing():
        importlib.import_module("own_module_that_is_not_there")
    assert gc.isenabled()
