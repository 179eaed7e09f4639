"""Installs `moe_jax`. Experiments, configs and launch scripts run from the clone."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "moe_jax/__init__.py").read_text("utf-8"), re.MULTILINE
)[1]

# Lower bounds are what `make test-oldest` runs the test suite with; those of extras that it does
# not install (hf, gcs, wandb, ...) are the releases that they were tried with.
# Upper bounds only with a reason beside them.
CORE = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "tensorstore>=0.1.86",  # orbax's own store: reads back what it has written
    "etils[epath]>=1.10",
    "grain>=0.2.18",
    "array_record>=0.8.3",
    "tensorflow-datasets>=4.9.10",  # used without TensorFlow: file format array_record only
    "importlib_resources>=6.0",  # tensorflow-datasets imports it, but declares it for 3.8 only
    "ml_collections>=1.1.0",
    "absl-py>=2.1",
    "tensorboardX>=2.6.2",
    "rich>=14.3",
    "numpy>=2.0",
    "jaxtyping>=0.3.2",
    "scipy>=1.15",
]

TEXT = ["tokenizers>=0.22"]
DATA = ["pyarrow>=18.0", "zstandard>=0.22"]
VISION = ["scikit-learn>=1.6", "pillow>=11.0"]
TRANSLATION = ["sacrebleu>=2.5"]
VOWELS = ["praat-parselmouth>=0.4.7"]  # GPL: run as a process of its own, never imported
HF = ["transformers>=5.0", "safetensors>=0.5", "torch>=2.8"]
SWEEP = ["optuna>=5.0"]
SLURM = ["submitit>=1.5.4"]
KUBERNETES = ["pyyaml>=6.0"]
GCS = ["gcsfs>=2024.6.1"]
S3 = ["s3fs>=2024.6.1"]
WANDB = ["wandb>=0.28"]
BENCH = ["matplotlib>=3.9"]  # pictures of benchmark results
TEST = [
    "pytest>=9.0",
    "pytest-xdist>=3.6",
    "beartype>=0.21",  # checks the jaxtyping annotations while the tests run
    "fsspec>=2024.6.1",  # stands in for an object store
    "jsonschema>=4.20",
    "hypothesis>=6.100",
    *SWEEP,
    *SLURM,
    *KUBERNETES,
    *TEXT,
    *DATA,
    *VISION,
    *TRANSLATION,
]

EXTRAS = {
    "test": TEST,
    "text": TEXT,
    "data": DATA,  # .parquet, .arrow and .zst of a folder of text
    "vision": VISION,  # handwritten digits, images in files
    "translation": TRANSLATION,  # BLEU and chrF
    "vowels": VOWELS,  # the table of Peterson and Barney, by Praat
    "hf": HF,
    "oracles": [*HF, "pycocotools>=2.0.8"],  # what figures are held against (make test-oracles)
    "gpu": ["jax[cuda12]>=0.10.2"],
    "tpu": ["jax[tpu]>=0.10.2"],
    # Compiling for GPUs that are not there: XLA's CUDA compiler and ptxas, no driver.
    "gpu-plan": ["jax-cuda12-plugin>=0.10.2", "nvidia-cuda-nvcc-cu12>=12.9"],
    "sweep": SWEEP,
    "slurm": SLURM,
    "kubernetes": KUBERNETES,
    "gcs": GCS,
    "s3": S3,
    "wandb": WANDB,
    "bench": BENCH,
    # The real packages behind the extras, and servers for their clients (make test-extras).
    "test-extras": [
        *TEST,
        *GCS,
        *S3,
        *WANDB,
        *BENCH,
        *VOWELS,
        "moto[server]>=5.2",
        "boto3",
        "gcp-storage-emulator>=2026.7",
    ],
    "dev": [
        *TEST,
        "ruff>=0.17.6,<0.18",  # the formatter's style may change with each minor release
        "mypy>=2.4",
        "pre-commit>=4.0",
        "uv>=0.9",  # make locks
    ],
}

setup(
    name="moe_jax",
    version=VERSION,
    description="A JAX research framework for sparse Mixture-of-Experts models",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["moe_jax*"]),
    package_data={"moe_jax": ["py.typed"]},
    install_requires=CORE,
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
