"""Published peak FLOP/s per device, for MFU. Unknown devices have none, and no MFU is logged."""

from __future__ import annotations

import jax

# Dense (no sparsity) bfloat16 matmul peaks, FLOP/s per JAX device, from the makers' data sheets.
BFLOAT16_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device: jax.Device, dtype: str) -> float | None:
    """The device's peak in `dtype` matmuls, None where it is not known."""
    if dtype != "bfloat16":
        return None
    kind = device.device_kind
    matches = [name for name in BFLOAT16_PEAKS if kind.startswith(name)]
    return BFLOAT16_PEAKS[max(matches, key=len)] if matches else None
