"""A finished (or running) run for notebooks and commands: `run = moe_jax.load(workdir)`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from moe_jax.analysis.report.pictures import Picture
from moe_jax.analysis.report.samples import Samples
from moe_jax.analysis.trace import Trace
from moe_jax.config.activity import doing
from moe_jax.config.checks import require
from moe_jax.config.errors import UserError
from moe_jax.config.json_files import Json, JsonObject, read_object
from moe_jax.config.kinds import trusted
from moe_jax.config.overrides import apply_overrides, load_config
from moe_jax.config.paths import folder_of
from moe_jax.config.tree import from_json_dict
from moe_jax.data.histories import HistoryRows
from moe_jax.data.paired import PairRows
from moe_jax.data.pipeline import EvaluationBatches
from moe_jax.data.tokenizer import BPE_FILE, Bpe, WithLanguages, writable_ids
from moe_jax.data.types import DataInfo, Dataset, Rows, Tokenizer, described
from moe_jax.models.by_layer import unstack
from moe_jax.models.generation import Generator, Token
from moe_jax.models.network import Params
from moe_jax.models.translation import Decoding
from moe_jax.nn.context import Routes
from moe_jax.parallel.compiler import keep_compiled_programs
from moe_jax.parallel.hosts import is_multiprocess
from moe_jax.parallel.mesh import MeshConfig
from moe_jax.routing.counterfactual import Counterfactual, Replay
from moe_jax.training import observation, pictures, samples
from moe_jax.training.build import Program, build
from moe_jax.training.checkpoint import Checkpoints
from moe_jax.training.evaluation import evaluate
from moe_jax.training.experiment import Experiment
from moe_jax.training.identity import data_changes
from moe_jax.training.state import TrainState
from moe_jax.training.translating import translations
from moe_jax.training.workdir import TOKENIZER, info_of

LATER_TOKENS = (
    "this model's routing lets a token see later ones, so it cannot generate "
    "(config.moe.router: its kind or drop_order)"
)


def train(
    config: str | os.PathLike[str] | ConfigDict | Experiment,
    workdir: str | os.PathLike[str],
    *,
    overrides: Mapping[str, object] | None = None,
    allow_changes: bool = False,
    warm_start: str | os.PathLike[str] | None = None,
    grow: str = "noise",
) -> LoadedRun:
    """Trains as the command does, or goes on with the run that `workdir` holds; the run, loaded.

    config: a config file ("FILE.py", "FILE.py:arg"), a ConfigDict as its get_config gives, or an
    `Experiment`. overrides: other values by dotted path, such as {"steps": 100}. The rest as the
    command's flags. Ctrl-C stops and saves. The mesh is over all devices, and compiled programs
    are kept, as by the command. Raises UserError for all that the user can mend, and for a run that
    was stopped before it had a checkpoint.
    """
    from moe_jax.training import loop

    keep_compiled_programs()
    overridden = dict(overrides or {})
    if isinstance(config, str | os.PathLike):
        experiment = load_config(os.fspath(config), overridden.items(), Experiment)
    else:
        experiment = apply_overrides(config, overridden.items(), Experiment)
    origin = None if warm_start is None else os.fspath(warm_start)
    loop.train(experiment, workdir, allow_changes=allow_changes, warm_start_from=origin, grow=grow)
    return load(workdir)


def load(
    workdir: str | os.PathLike[str],
    *,
    step: int | None = None,
    overrides: Mapping[str, object] | None = None,
    devices: Sequence[jax.Device] | None = None,
    allow_changes: bool = False,
    own_mesh: bool = False,
    trust: bool = False,
) -> LoadedRun:
    """Opens the run in `workdir` at its newest good checkpoint, or at `step`.

    overrides: other values of the config by dotted path, such as {"moe.router.k": 1} or
    {"evaluation.capacity_factor": 1.0}; the shapes of parameters must stay as they are.
    devices: default the first one; the mesh is all of them along `data`. In a run of several
    processes: all devices, in the mesh of the config. own_mesh: the run's mesh, where it fits the
    devices that are here, so that sums are rounded as in the run.
    allow_changes: evaluate on data that are no longer those of the run, with its own tokenizer;
    overrides of the data mean the same. The data are opened when they are first asked for.
    trust: import classes from outside of moe_jax (a router of one's own) that the run's config
    names and that are not imported already, which runs their module's code.
    Compiled programs are kept as by the commands (parallel/compiler.py), unless JAX's own settings
    say where, or not to. Raises UserError where there is no run or no good checkpoint.
    """
    keep_compiled_programs()
    folder = folder_of(workdir)
    with trusted(trust):
        experiment = config_of(folder)
    if devices is None and (is_multiprocess() or (own_mesh and _fits(experiment.mesh))):
        devices = jax.devices()
    else:
        experiment = replace(experiment, mesh=MeshConfig())
    if overrides:
        experiment = apply_overrides(experiment, dict(overrides))
    require(experiment)
    devices = jax.devices()[:1] if devices is None else devices
    info = info_of(folder, experiment)
    with doing("building the model"):
        program = build(experiment, info, devices=devices)
    saved = Checkpoints(folder / "checkpoints", experiment.checkpoint, read_only=True)
    with saved as checkpoints, doing("loading the checkpoint"):
        restored = checkpoints.restore(program.abstract_model, step=step, partial=True)
    if restored is None:
        raise UserError(f"{folder}: no checkpoint to load")
    others = allow_changes or any(path.startswith("data.") for path in overrides or ())
    data = None if others else restored.fingerprint
    return LoadedRun(folder, program, restored.state, info, data)


def _fits(mesh: MeshConfig) -> bool:
    try:
        mesh.sizes(jax.device_count())
    except UserError:
        return False
    return True


def config_of(workdir: str | os.PathLike[str]) -> Experiment:
    """The config of the run in `workdir`. UserError where there is none."""
    folder = folder_of(workdir)
    config_file = folder / "config.json"
    if not config_file.exists():
        raise UserError(f"{folder}: no run here (no config.json); train one with moe_jax.train")
    return from_json_dict(read_object(config_file), Experiment)


@dataclass(frozen=True)
class LoadedRun:
    """A checkpoint with its model, tokenizer and evaluation data.

    program: mesh, network and compiled steps. state: step, parameters and router state; what
    belongs to training alone (optimizer, counters, probe) is None. info: tokenizer, classes and
    domains of the run. data:
    fingerprints of the run's splits, to which what is opened is held; None: it may be other data.
    """

    workdir: Path
    program: Program
    state: TrainState
    info: DataInfo
    data: Mapping[str, Json] | None = None

    def __repr__(self) -> str:
        counts = self.program.counts
        return (
            f"LoadedRun({str(self.workdir)!r}, step {self.step:,}, {counts.total:,} parameters, "
            f"{counts.active:,} active per token)"
        )

    @cached_property
    def rows(self) -> Rows:
        """The evaluation split. UserError where it is not what the run had."""
        split, data = self.config.evaluation.split, self.config.data
        rows = data.open(split)
        if self.data is not None:
            lines = data_changes(self.data, {split: rows.fingerprint})
            if lines:
                message = "\n  ".join(lines)
                raise UserError(
                    f"{self.workdir}: the data are not those of the run:\n  {message}\n"
                    "--allow_changes evaluates on them all the same, with the run's own tokenizer."
                )
        own = self.info.tokenizer
        if own is not None and described(rows) != own.describe():
            rows = self._with_own_tokenizer(data).open(split)
        return rows

    def _with_own_tokenizer(self, data: Any) -> Dataset:
        """The dataset, read by the tokenizer that the run carries."""
        file = self.workdir / TOKENIZER / BPE_FILE
        if not hasattr(data, "tokenizer") or not file.exists():
            raise UserError(f"{self.workdir}: the data have another tokenizer than the run")
        return replace(data, tokenizer=Bpe(file=str(file)))

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's own. UserError where its data are no text."""
        if self.info.tokenizer is None:
            raise UserError(f"{self.workdir}: the run's data are no text")
        return self.info.tokenizer

    @property
    def config(self) -> Experiment:
        return self.program.experiment

    @property
    def step(self) -> int:
        return int(self.state.step)

    @property
    def params(self) -> Params:
        return self.state.params

    @property
    def arrays(self) -> dict[str, jax.Array]:
        """The parameters by their canonical names, one array a layer, however the layers are
        stacked: {"embedding": (V, D), "layers/07/moe/experts/w_up": (E, D, F), ...}."""
        return unstack(self.params, self.program.layout)

    def at(self, step: int) -> LoadedRun:
        """The same run at another of its checkpoints; nothing is compiled anew. UserError where
        that is not there or not good."""
        config = self.program.experiment.checkpoint
        with Checkpoints(self.workdir / "checkpoints", config, read_only=True) as checkpoints:
            restored = checkpoints.restore(self.program.abstract_model, step=step, partial=True)
        if restored is None:
            raise UserError(f"{self.workdir}: no checkpoint of step {step}")
        return replace(self, state=restored.state)

    def checkpoint_steps(self) -> list[int]:
        """The steps of the run's checkpoints, ascending."""
        config = self.program.experiment.checkpoint
        with Checkpoints(self.workdir / "checkpoints", config, read_only=True) as checkpoints:
            return checkpoints.steps()

    @cached_property
    def metrics(self) -> list[JsonObject]:
        """The lines of metrics.jsonl."""
        from moe_jax.analysis.read_run import read_metrics

        return list(read_metrics(self.workdir))

    def predictions(self, batch: Mapping[str, np.ndarray]) -> Any:
        """What the model predicts of a batch, as evaluation has it: logits, of numpy arrays
        (nn/predictions.py)."""
        self._alone("a prediction")
        raw, scalars = self.program.put(batch), self.program.scalars(self.step)
        state = self.state
        found = self.program.predict_step(state.params, state.router_state, raw, scalars)
        return jax.device_get(found)

    def picture(self, row: int) -> Picture:
        """The image of a row of the evaluation split, with its patches and its class, or the true
        and the predicted class of each pixel, or the true and the predicted objects."""
        return pictures.of_row(self.program, self.info, self.rows[row], self.predictions)

    def samples(self) -> Samples | None:
        """Some rows of the evaluation split with what the model makes of them: translations, or
        items of histories; None of others."""
        rows = self.rows
        if isinstance(rows, PairRows) and self.writes:
            return samples.translated(rows, self.translate)
        if isinstance(rows, HistoryRows):
            batch = next(self.batches())
            return samples.recommended(rows, batch, self.predictions(batch))
        return None

    def text_of_token(self, token: int) -> str:
        """For people: a piece of text, or the name of an item."""
        if isinstance(self.rows, HistoryRows):
            return f"{self.rows.names[token]} · "
        return self.tokenizer.decode([token])

    def batches(self, count: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """Batches of the evaluation split, in order; of each, the rows that this process needs.
        count: None for as many as the run evaluates itself on, -1 for all."""
        return iter(self._batches(count))

    def _batches(self, count: int | None) -> EvaluationBatches:
        size = self.program.eval_batch_size
        local = self.program.local_rows(size).tolist()
        return EvaluationBatches(self.rows, size, self._limit(count), local, self.program.columns)

    def _limit(self, count: int | None) -> int | None:
        count = self.config.evaluation.batches if count is None else count
        return None if count == -1 else count

    def evaluate(self, batches: int | None = None) -> JsonObject:
        """Metrics over `batches` batches of the evaluation split; None: those that the run
        evaluates itself on, which repeats its last evaluation; -1: all."""
        return evaluate(self.program, self.state, self._batches(batches))

    def covered(self, batches: int | None = None) -> str:
        """What an evaluation of so many batches is over, in words."""
        size, limit = self.program.eval_batch_size, self._limit(batches)
        total = len(self.rows)
        rows = total if limit is None else min(limit * size, total)
        share = "all" if rows == total else f"the first {rows:,} of"
        return f"{share} {total:,} rows of the {self.config.evaluation.split} split"

    def with_counterfactual(self, counterfactual: Counterfactual) -> LoadedRun:
        """The same model with other routes in its evaluations: `MaskBest`, `RouteBy`, ... of
        routing/counterfactual.py."""
        return replace(self, program=replace(self.program, counterfactual=counterfactual))

    def trace(self, batches: int | None = None) -> Trace:
        """Where every token of `batches` evaluation batches goes; `trace.save(file)` keeps it."""
        self._alone("a trace")
        return observation.trace(
            self.program, self.state, self._batches(batches), DataInfo.of(self.rows)
        )

    def replay(self, trace: Trace) -> JsonObject:
        """Metrics over the batches of the trace with its routes in place of the router's."""
        self._alone("a replay")
        run = self.with_counterfactual(Replay())
        pairs = list(observation.recorded_batches(run.program, trace, self._batches(-1)))
        if not pairs:
            raise UserError("the trace has no rows of text to replay")
        raws, recorded = zip(*pairs, strict=True)
        return evaluate(run.program, run.state, raws, recorded)

    def leak(self, batches: int | None = None, *, train: bool = False) -> dict[str, float]:
        """How much later tokens decide of earlier ones (analysis/leak.py), over `batches`
        evaluation batches; train: with the routing and the capacity of training."""
        self._alone("the leak")
        if not self.config.io.predicts_next or self.config.io.source is not None:
            raise UserError("the leak is of models that predict the next token (config.task)")
        return observation.leak(self.program, self.state, self._batches(batches), train=train)

    def _alone(self, what: str) -> None:
        if is_multiprocess():
            raise UserError(f"{what} is of one process: start evaluate without --processes")

    def route(self, batch: Mapping[str, np.ndarray]) -> dict[int, Routes]:
        """Where each token of a batch goes: layer number -> Routes (expert_BSK, weight_BSK,
        kept_BSK, prob_BSE), without noise and without drops; of several gates with a leading axis
        of them."""
        if not self.program.layout.moe_layers:
            return {}
        routes = self.program.route_step(
            self.state.params,
            self.state.router_state,
            self.program.put(
                batch, batch_size=self.program.eval_batch_size if is_multiprocess() else None
            ),
            self.program.scalars(self.step),
        )
        routes = self.config.moe.gating.of_layers(jax.device_get(routes))
        return {
            layer: jax.tree.map(lambda leaf, row=row: leaf[row], routes)
            for row, layer in enumerate(self.program.layout.moe_layers)
        }

    def text(self, prompt: str, max_tokens: int = 200, **options: Any) -> str:
        """The prompt and what the model writes behind it; options: of `generate`."""
        tokens = self.generate(prompt, max_tokens, **options)
        return self.tokenizer.decode([token.id for token in tokens])

    def translate(
        self,
        texts: Sequence[str],
        into: str | Sequence[str],
        *,
        beams: int = 4,
        length_penalty: float = 0.6,
    ) -> list[str]:
        """What the model makes of texts in the language `into`, one of `run.languages` for all of
        them or one for each; by beam search over `beams` hypotheses, 1 is greedy. Each text by
        itself: no other decides of it.

        UserError for a model that does not translate, a language that it does not know, a text that
        is empty or longer than its rows, and a router that lets a token see later ones. (Orders of
        drops do not matter: nothing is dropped.)
        """
        each = [into] * len(texts) if isinstance(into, str) else list(into)
        if len(each) != len(texts):
            raise UserError(f"into: {len(each)} languages for {len(texts)} texts")
        known, asked = self.languages, [into] if isinstance(into, str) else each
        if unknown := [language for language in asked if language not in known]:
            raise UserError(f"into {unknown[0]!r}: the run translates into {', '.join(known)}")
        if not self.writes:
            raise UserError(LATER_TOKENS)
        decoding = Decoding(beams=beams, length_penalty=length_penalty)
        if rules := list(decoding.check()):
            raise UserError("; ".join(f"{name} {rule}" for name, rule in rules))
        return translations(self.program, self.state, self._translator, texts, each, decoding)

    @property
    def writes(self) -> bool:
        """Whether no token of its routing sees later ones, so that it can write one by one."""
        return not self.config.moe.every or self.config.moe.router.causal_choice

    @property
    def languages(self) -> tuple[str, ...]:
        """Those that the run has learned to translate into. UserError where it does not
        translate."""
        known = self._translator.languages
        learned = {name.partition("-")[2] for name in self.info.domains}
        return tuple(language for language in known if language in learned)

    @property
    def _translator(self) -> WithLanguages:
        tokenizer = self.tokenizer
        if self.config.io.source is None or not isinstance(tokenizer, WithLanguages):
            raise UserError("this model does not translate (config.task)")
        return tokenizer

    def generate(
        self,
        prompt: str,
        max_tokens: int = 200,
        *,
        seed: int = 0,
        temperature: float = 0.8,
        top_p: float = 0.95,
        show_routing: bool = False,
    ) -> Iterator[Token]:
        """Tokens of the prompt, which is taken as the start of a document, and its continuation.
        UserError for an empty prompt, and for a model whose routing lets a token see later ones."""
        if not self.config.io.predicts_next:
            raise UserError("this model does not predict the next token (config.task)")
        if self.config.io.source is not None:
            raise UserError("this model translates: --into=LANGUAGE, or run.translate(...)")
        moe, tokenizer = self.config.moe, self.tokenizer
        if not self.config.model.causal:
            raise UserError(
                "this model's blocks choose among all tokens of a row, later ones too, so it "
                "cannot generate (config.model.depth)"
            )
        if not self.config.model.keeps_cache:
            kind = type(self.config.model.mixer).__name__
            raise UserError(f"{kind} keeps no cache, so it cannot generate (config.model.mixer)")
        if moe.every and not moe.causal:
            raise UserError(LATER_TOKENS)
        ids = list(tokenizer.encode(prompt))
        if not ids:
            raise UserError("--prompt is empty: give at least one character to go on from")
        generator = Generator(
            network=self.program.network,
            params=self.state.params,
            router_state=self.state.router_state,
            router=self.program.step.router_at(self.program.scalars(self.step)),
            usable_V=writable_ids(tokenizer, self.config.vocabulary or 0),
            capture=show_routing,
        )
        # In training every document starts with this one; nobody wants to read it.
        start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        tokens = generator(
            start + ids,
            max_tokens,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            stop=tokenizer.eos_id,
        )
        return itertools.islice(tokens, len(start), None)
