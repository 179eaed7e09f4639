"""model.vocab_size left to the tokenizer: the same number at every command."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from moe_jax.checking.shrink import shrink
from moe_jax.config.errors import ConfigError
from moe_jax.config.overrides import apply_overrides
from moe_jax.data.tokenizer import IdTokenizer, train_bpe
from moe_jax.planning.estimate import estimate
from moe_jax.training.build import build
from moe_jax.training.experiment import Experiment

BPE = {"data.tokenizer.kind": "bpe"}
IDS = {"data.kind": "memmap"}


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ({}, 264),  # the bytes
        ({"data.kind": "planted"}, 264),  # 64 symbols; what it was before
        (BPE, 8192),
        ({**BPE, "data.tokenizer.vocab_size": 1001}, 1008),
        (IDS, 50264),
        ({"data.kind": "mixture", "data.parts": "stdlib_text(tokenizer.kind=bpe): 1"}, 8192),
        ({"data.kind": "mixture", "data.parts": "planted(symbols=1000): 1"}, 1000),
        ({**BPE, "model.vocab_size": 9000}, 9000),
        ({**BPE, "model.vocab_size": 0}, 8192),
    ],
)
def test_the_size_follows_the_settings_of_the_tokenizer(overrides, size):
    assert apply_overrides(Experiment(), overrides).model.vocab_size == size


def test_the_size_of_a_file(tmp_path):
    bpe = train_bpe(["some text for a tokenizer, some more text"], 290)
    bpe.save(tmp_path)
    given = {**BPE, "data.tokenizer.file": str(tmp_path / "tokenizer.json")}
    size = -(-bpe.vocab_size // 8) * 8
    assert size != 8192
    assert apply_overrides(Experiment(), given).model.vocab_size == size
    (tmp_path / "tokenizer.json").unlink()  # told when the data is opened
    assert apply_overrides(Experiment(), given).model.vocab_size == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreign:
    """A dataset from outside that does not say how many ids it has."""

    sequence_length: int = 256


def test_where_no_setting_says_it_the_tokenizer_itself_does():
    unknown = Experiment(data=Foreign())
    assert unknown.completed().model.vocab_size == 0
    program = build(unknown, IdTokenizer(1001), devices=jax.devices()[:1])
    assert program.experiment.model.vocab_size == 1008
    assert program.network.abstract["embedding"].shape[0] == 1008


def test_a_size_that_is_too_small_names_the_way_out():
    small = Experiment(model=dataclasses.replace(Experiment().model, vocab_size=300))
    with pytest.raises(ConfigError, match="at least the tokenizer's 301, or 0 to follow it"):
        build(small, IdTokenizer(301), devices=jax.devices()[:1])


def test_plan_and_check_take_the_same_size():
    left = Experiment(data=apply_overrides(Experiment(), BPE).data)
    chosen = left.completed()
    assert (left.model.vocab_size, chosen.model.vocab_size) == (0, 8192)
    assert estimate(left, 1) == estimate(chosen, 1)
    assert shrink(left, 2) == shrink(chosen, 2)
    assert shrink(left, 2)[0].model.vocab_size == 64
