"""What `import moe_jax` does, and does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import moe_jax


def test_import_is_light():
    program = "import sys, moe_jax; print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", moe_jax.__version__)


def test_load_is_the_notebooks():
    from moe_jax.notebook import load

    assert moe_jax.load is load


def test_its_types_are_for_others_too():
    assert (Path(moe_jax.__file__).parent / "py.typed").exists()
