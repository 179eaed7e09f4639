"""A trace: where every token of an evaluation went, in a file that can be replayed.

The file is a compressed .npz. Its schema, version 1 (docs/traces.md):

    schema          "moe_jax.trace/1"
    step            int64         the checkpoint's step
    num_experts     int64         E; ids E, E+1, ... below `unused` are undispatched experts
    unused          int64         the id of "no expert"
    capacity_factor float64       of the evaluation; nan: dropless
    layers          int32 (L,)    numbers of the sparse layers in the model; of several gates that
                                  of each gate of a layer, one after the other
    gates           str (L,)      then, what each gate is for
    token           int32 (N, S)  input ids of N rows, in the order of the evaluation
    segment         int32 (N, S)  0: padding
    expert          int32 (L, N, S, K)    wanted experts, best first; `unused`: none
    weight          float32 (L, N, S, K)  combine weights before drops
    kept            bool (L, N, S, K)     whether the expert took the token
    nats            float32 (N, S)        -log p(next token); 0 where no target counts
    domain          int32 (N,)    index into `domains`
    domains         str (D,)
    source          int32 (N, S)  only where it is known (the planted corpus)
    label           int32 (N,)    index into `classes`, -1: none; only of rows with a class
    class           int32 (N, S)  the same of each patch, where every pixel has a class
    classes         str (C,)      with either
    target          float32 (N, T)        of rows with several targets; nan: not known
    targets         str (T,)      then, their names

and of a model of several parts, as an encoder and a decoder, whose last part `token`, `segment` and
`nats` are of:

    parts           str (P,)      their names
    part            int32 (L,)    which of them each sparse layer is in
    part_token      int32 (P, N, S)   input ids of each
    part_segment    int32 (P, N, S)

Of images, token is the place of the patch and nats is the loss of the row, or of the patch where
every pixel has a class.
"""

from __future__ import annotations

import dataclasses
import io
import os
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_jax.config.errors import UserError
from moe_jax.config.paths import folder_of, write_whole

SCHEMA = "moe_jax.trace/1"


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The content of a trace file; see the module."""

    step: int
    num_experts: int
    unused: int
    capacity_factor: float | None
    layers_L: np.ndarray
    token_NS: np.ndarray
    segment_NS: np.ndarray
    expert_LNSK: np.ndarray
    weight_LNSK: np.ndarray
    kept_LNSK: np.ndarray
    nats_NS: np.ndarray
    domain_N: np.ndarray
    domains: tuple[str, ...]
    source_NS: np.ndarray | None = None
    label_N: np.ndarray | None = None
    class_NS: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None
    part_L: np.ndarray | None = None
    token_PNS: np.ndarray | None = None
    segment_PNS: np.ndarray | None = None
    gates: tuple[str, ...] | None = None
    target_NT: np.ndarray | None = None
    targets: tuple[str, ...] | None = None

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the file, under exactly this name."""
        arrays: dict[str, Any] = {"schema": SCHEMA}
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) is not None:
                arrays[_key(field.name)] = np.asarray(value)
        if self.capacity_factor is None:
            arrays["capacity_factor"] = np.float64("nan")
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_whole(folder_of(file), content.getvalue())

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Trace:
        """UserError where there is no file, or one that is no trace of this version."""
        try:
            with np.load(file, allow_pickle=False) as data:
                found = {name: data[name] for name in data.files}
        except FileNotFoundError as error:
            raise UserError(f"{file}: no such trace file") from error
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{file}: is no trace file ({error})") from error
        schema = str(found.get("schema", "nothing"))
        if schema != SCHEMA:
            raise UserError(f"{file}: its schema is {schema!r}, this reads {SCHEMA!r}")
        factor = float(found["capacity_factor"])
        values: dict[str, Any] = {
            field.name: found.get(_key(field.name)) for field in dataclasses.fields(cls)
        }
        values |= {name: int(found[name]) for name in ("step", "num_experts", "unused")}
        values["capacity_factor"] = None if np.isnan(factor) else factor
        values["domains"] = tuple(str(name) for name in found["domains"])
        for names in {"classes", "parts", "gates", "targets"} & found.keys():
            values[names] = tuple(str(name) for name in found[names])
        return cls(**values)

    @property
    def rows(self) -> int:
        return len(self.token_NS)

    @property
    def tokens_of_parts(self) -> np.ndarray:
        """(P, N, S): the input ids of each part of the model."""
        return self.token_NS[None] if self.token_PNS is None else self.token_PNS

    @property
    def token_LNS(self) -> np.ndarray:
        """The input ids of each sparse layer."""
        return self._of_layers(self.token_NS, self.token_PNS)

    @property
    def segment_LNS(self) -> np.ndarray:
        """The segments of each sparse layer's tokens; 0: padding."""
        return self._of_layers(self.segment_NS, self.segment_PNS)

    def _of_layers(self, last_NS: np.ndarray, of_parts: np.ndarray | None) -> np.ndarray:
        if of_parts is None or self.part_L is None:
            return np.broadcast_to(last_NS[None], (len(self.layers_L), *last_NS.shape))
        return of_parts[self.part_L]

    def router_name(self, number: int) -> str:
        """Of each of L: "layer 1", "layer 1, gate income", "layer 3, decoder"."""
        gate = f", gate {self.gates[number]}" if self.gates else ""
        part = ""
        if self.parts and self.part_L is not None:
            part = f", {self.parts[self.part_L[number]]}"
        return f"layer {int(self.layers_L[number])}{part}{gate}"

    def title(self, number: int) -> str:
        """The same at the head of a figure."""
        name = self.router_name(number)
        return name[0].upper() + name[1:]

    def gate_weights(self) -> np.ndarray:
        """(L, N, S, E) float32: the weight of each matrix expert in each token's output."""
        return gates_of(self.expert_LNSK, self.weight_LNSK, self.kept_LNSK, self.num_experts)


def gates_of(
    expert_K: np.ndarray, weight_K: np.ndarray, kept_K: np.ndarray, num_experts: int
) -> np.ndarray:
    """(..., K) choices as (..., E) weights of the experts that took the token."""
    gate_E = np.zeros((*expert_K.shape[:-1], num_experts + 1), np.float32)
    experts = np.minimum(expert_K, num_experts)
    weights = np.where(kept_K, weight_K, 0)
    for k in range(expert_K.shape[-1]):
        here = np.take_along_axis(gate_E, experts[..., k : k + 1], axis=-1)
        np.put_along_axis(gate_E, experts[..., k : k + 1], here + weights[..., k : k + 1], axis=-1)
    return gate_E[..., :num_experts]


def _key(field: str) -> str:
    """The name in the file: without the shape suffix."""
    name, _, suffix = field.rpartition("_")
    if suffix == "PNS":
        return f"part_{name}"
    return name if suffix.isupper() else field
