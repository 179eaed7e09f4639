"""Translation: the loss, its smoothing, sums by pair of languages; BLEU and chrF of sacrebleu."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sacrebleu
from scipy.special import log_softmax

from moe_jax.data.tokenizer import ByteTokenizer, WithLanguages
from moe_jax.nn.predictions import GivenLogits, Predictions
from moe_jax.routing.plan import add_sums
from moe_jax.tasks.translation import TranslatedText, Translation, scores, text_of

B, S, V, D = 5, 7, 272, 6
PAIRS = ("de-en", "en-de", "en-ja", "en-zh_CN")
TOKENIZER = WithLanguages(ByteTokenizer(), ("de", "en", "ja", "zh_CN"))


def task(**changes):
    return TranslatedText(Translation(**changes), V, TOKENIZER, PAIRS)


@pytest.fixture
def batch():
    """Row 3 has a source and a target of one token each; row 4 only fills up the batch."""
    random = np.random.default_rng(0)
    lengths = np.array([8, 5, 3, 2, 0])
    segment = (np.arange(S + 1) < lengths[:, None]).astype(np.int32)
    raw = {
        "target": random.integers(0, V, (B, S + 1)).astype(np.int32),
        "target_segments": segment,
        "source": random.integers(0, V, (B, S)).astype(np.int32),
        "source_segments": segment[:, :S],
        "domain": np.array([0, 1, 0, 2, 0], np.int32),
        "row": np.arange(B, dtype=np.int32),
    }
    hidden, head = random.normal(size=(B, S, D)), random.normal(size=(D, V))
    predictions = Predictions(
        hidden_BSD=jnp.asarray(hidden, jnp.float32), head_DV=jnp.asarray(head, jnp.float32)
    )
    return predictions, hidden @ head, {name: jnp.asarray(x) for name, x in raw.items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_figures_against_float64(batch, smoothing):
    predictions, logits, raw = batch
    log_p = log_softmax(logits, axis=-1)
    target, segment = np.asarray(raw["target"]), np.asarray(raw["target_segments"])
    there = segment[:, 1:] > 0
    nll = -np.take_along_axis(log_p, target[:, 1:, None], axis=-1)[..., 0]
    loss = (1 - smoothing) * nll - smoothing * log_p.mean(axis=-1)
    objective = task(label_smoothing=smoothing)
    count = float(objective.weights(raw)["nats"])
    assert count == there.sum() == 7 + 4 + 2 + 1
    for form in (predictions, GivenLogits(logits_BSV=jnp.asarray(logits, jnp.float32))):
        found = objective.metrics(jax.device_get(objective.sums(form, raw)))
        assert found["cross_entropy"] == pytest.approx(nll[there].mean(), rel=1e-5)
        assert found["smoothed_cross_entropy"] == pytest.approx(loss[there].mean(), rel=1e-5)
        assert found["perplexity"] == pytest.approx(np.exp(nll[there].mean()), rel=1e-4)
        right = log_p.argmax(axis=-1) == target[:, 1:]
        assert found["accuracy"] == pytest.approx(right[there].mean())
        rows = [0, 2]
        assert found["domain/de-en/cross_entropy"] == pytest.approx(
            nll[rows][there[rows]].mean(), rel=1e-5
        )
        assert "domain/en-zh_CN/cross_entropy" not in found  # a pair that does not occur
        told = np.asarray(objective.token_losses(form, raw))
        np.testing.assert_allclose(told, np.where(there, nll, 0), rtol=1e-4, atol=1e-5)


def test_gradients_of_the_smoothed_loss_are_those_of_the_logits(batch):
    predictions, _, raw = batch
    objective = task(label_smoothing=0.3)

    def loss(hidden, head, as_logits):
        form = Predictions(hidden_BSD=hidden, head_DV=head)
        if as_logits:
            form = GivenLogits(logits_BSV=form.logits_BSV)
        return objective.sums(form, raw)["nats"]

    both = [
        jax.grad(loss, argnums=(0, 1))(predictions.hidden_BSD, predictions.head_DV, as_logits)
        for as_logits in (False, True)
    ]
    for mine, right in zip(*both, strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-4, atol=1e-5)


def test_sums_of_parts_are_those_of_the_whole(batch):
    predictions, _, raw = batch
    objective = task()

    def sums(rows):
        part = Predictions(hidden_BSD=predictions.hidden_BSD[rows], head_DV=predictions.head_DV)
        return objective.sums(part, {name: x[rows] for name, x in raw.items()})

    whole, parts = sums(slice(None)), add_sums(sums(slice(0, 2)), sums(slice(2, None)))
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5)


def ids_of(text, end=True):
    ids = [*TOKENIZER.encode(text), *([TOKENIZER.eos_id] if end else [])]
    return np.asarray([*ids, *[TOKENIZER.pad_id] * (40 - len(ids))], np.int32)


def test_scores_are_sacrebleus_and_means_those_of_the_pairs():
    written = ["the cat sat on the mat", "a small dog ran", "猫が座る", "小猫坐着", "das ist gut"]
    true = ["the cat sat on a mat", "a small dog runs", "猫が座った", "小猫坐下", "das ist gut"]
    pair = np.array([0, 0, 2, 3, 1])
    rows = {
        "written": np.stack([ids_of(text) for text in written]),
        "reference": np.stack([ids_of(text) for text in true]),
        "pair": pair,
    }
    sums = {"nats": 1.0, "nll": 1.0, "tokens": 1, "correct": 0}
    found = task().metrics(sums, rows)
    tokenizers = {0: "13a", 1: "13a", 2: "char", 3: "zh"}
    for number, tokenizer in tokenizers.items():
        mine = [written[i] for i in np.flatnonzero(pair == number)]
        theirs = [true[i] for i in np.flatnonzero(pair == number)]
        bleu = sacrebleu.corpus_bleu(mine, [theirs], tokenize=tokenizer).score
        chrf = sacrebleu.corpus_chrf(mine, [theirs]).score
        assert found[f"domain/{PAIRS[number]}/bleu"] == pytest.approx(bleu)
        assert found[f"domain/{PAIRS[number]}/chrf"] == pytest.approx(chrf)
    for name in ("bleu", "chrf"):
        each = [found[f"domain/{one}/{name}"] for one in PAIRS]
        assert found[name] == pytest.approx(np.mean(each))
    assert next(h.name for h in Translation.headlines if h.name in found) == "bleu"
    assert scores(["gut"], ["gut"], "de")["chrf"] == pytest.approx(100)
    assert scores([""], ["gut"], "de") == {"bleu": 0.0, "chrf": 0.0}


def test_a_text_ends_at_its_end():
    after = ids_of("gut", end=False)
    after[3:5] = TOKENIZER.eos_id, 65
    assert text_of(after, TOKENIZER, TOKENIZER.eos_id) == "gut"
    assert text_of([TOKENIZER.vocab_size + 3, 65], TOKENIZER, TOKENIZER.eos_id) == "A"


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("target", ["en", "de", "ja", "zh_CN"]),
        ("source", ["de", "en", "en", "en"]),
        ("pair", PAIRS),
    ],
)
def test_rows_tell_their_languages_to_routers(batch, by, names):
    _, _, raw = batch
    objective = task(tasks=by)
    pairs = objective.inputs(raw)
    for text in (pairs.source, pairs.target):
        told = [[objective.tasks[n] for n in row] for row in np.asarray(text.task_BS)]
        assert told == [[names[d]] * S for d in np.asarray(raw["domain"])]
    config = Translation(tasks=by)
    assert config.row_tasks(dict.fromkeys(raw), PAIRS) == tuple(sorted(set(names)))
    assert config.row_tasks({}, PAIRS) is None


def test_what_may_be_written():
    """No specials, no languages, no ids that only round the vocabulary up; the end."""
    usable = np.asarray(task()._alphabet.usable_V)
    assert usable[:256].all() and usable[TOKENIZER.eos_id] and usable.sum() == 257
