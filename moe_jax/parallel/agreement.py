"""What the processes of a run say to each other, so that all of them take the same way.

A process that stops, raises or takes another checkpoint than the others leaves them waiting for
it for ever. Alone, all of this costs nothing. All functions are to be called by all processes in
the same order, from their main threads.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_jax.config.activity import heard
from moe_jax.config.errors import UserError
from moe_jax.config.failures import explain
from moe_jax.config.json_files import JsonObject
from moe_jax.parallel.hosts import client, is_multiprocess, is_primary

T = TypeVar("T")
_numbers = itertools.count()  # of the agreements so far: the same at every process
_FOREVER = 7 * 24 * 3600 * 1000  # ms; the coordinator ends the wait for a process that has died


def say(text: str) -> None:
    """A line on stdout, once for the whole run."""
    if is_primary():
        heard()
        print(text, flush=is_multiprocess())


def barrier() -> None:
    """Waits until all processes are here, as long as it takes."""
    if is_multiprocess():
        client().wait_at_barrier(_key(), _FOREVER)


def _key() -> str:
    return f"moe_jax/{next(_numbers)}"


def from_primary(action: Callable[[], T]) -> T:
    """What `action` returns at process 0, which alone calls it; None, or a value for JSON.

    What it raises there is raised by all, by the others as UserError.
    """
    if not is_multiprocess():
        return action()
    key = _key()
    if not is_primary():
        answer = json.loads(client().blocking_key_value_get(key, _FOREVER))
        if "error" in answer:
            raise UserError(answer["error"], exit_code=answer["exit_code"])
        return answer["value"]
    try:
        value = action()
    except Exception as error:
        client().key_value_set(key, json.dumps(_as_json(error)))
        raise
    client().key_value_set(key, json.dumps({"value": value}))
    return value


def together(action: Callable[[], T]) -> T:
    """What `action` returns here; where it raises at some process, all raise."""
    error: Exception | None = None
    try:
        value = action()
    except Exception as failed:
        error = failed
    if (found := first_error(error)) is not None:
        raise found
    return value


def first_error(error: Exception | None) -> Exception | None:
    """This process's own error, else the first one's of the others, as UserError; None where no
    process has one."""
    if not is_multiprocess():
        return error
    key = _key()
    if error is not None:
        client().key_value_set(f"{key}/{jax.process_index():08d}", json.dumps(_as_json(error)))
    client().wait_at_barrier(key, _FOREVER)
    if error is not None:
        return error
    errors = sorted(client().key_value_dir_get(key))
    if not errors:
        return None
    name, text = errors[0]
    answer = json.loads(text)
    message = f"process {int(name.rpartition('/')[2])}: {answer['error']}"
    return UserError(message, exit_code=answer["exit_code"])


def _as_json(error: Exception) -> JsonObject:
    message, exit_code = explain(error) or (f"{type(error).__name__}: {error}", 1)
    return {"error": message, "exit_code": exit_code}


@contextlib.contextmanager
def primary_first() -> Iterator[None]:
    """Process 0 goes through the body before the others, who find done what needs doing once.

    They come also where it failed, and fail by themselves.
    """
    if not is_primary():
        barrier()
    try:
        yield
    finally:
        if is_primary():
            barrier()


class SharedMaximum:
    """The largest of a number of each process, found on the devices along with a step.

    mine: this process's number, from 0 to 2^31 - 1. Alone, `value()` is it, as it is now. With
    several processes it is the largest as of the last `ask`, the same at all of them: one
    all-reduce of 4 bytes.
    """

    def __init__(self, mine: Callable[[], int], mesh: Mesh):
        self._mine = mine
        self._mesh = mesh
        self._found: jax.Array | None = None

    def ask(self, after: jax.Array) -> None:
        """Starts the exchange. after: a replicated result of the step. Collectives of two programs
        must run in the same order everywhere; the exchange waits for it."""
        if is_multiprocess():
            each = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
            mine = np.full(self._mesh.size, self._mine(), np.int32)
            numbers = jax.make_array_from_callback(mine.shape, each, lambda index: mine[index])
            self._found = _maximum(NamedSharding(self._mesh, PartitionSpec()))(numbers, after)

    def value(self) -> int:
        if not is_multiprocess():
            return self._mine()
        return 0 if self._found is None else int(self._found)


@functools.cache
def _maximum(out: NamedSharding) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def maximum(numbers: jax.Array, after: jax.Array) -> jax.Array:
        del after
        return jnp.max(numbers)

    return jax.jit(maximum, out_shardings=out, keep_unused=True)
