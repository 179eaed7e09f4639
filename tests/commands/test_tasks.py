"""Every task through the commands: what holds for the next token holds for classes of texts and
images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import moe_jax
from moe_jax.analysis.specialisation import domain_counts
from moe_jax.config.errors import UserError
from tests.commands.runs import lines, results, start
from tests.drawn import some


@dataclass(frozen=True)
class Case:
    """A task with its data and model. own: lines of its config. metrics: that every evaluation
    has. classes: names of the data. page: what a report with routing shows, and what it does not.
    refused: for a change of the config, what is said of it."""

    own: str
    metrics: frozenset[str]
    classes: tuple[str, ...]
    page: tuple[str, ...]
    no_page: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    labels: str | None = "label_N"  # the classes of a trace, of rows or of tokens
    loss: str = "cross_entropy"


IMAGES = {
    "task.kind=language_model": "reads tokens, segments, and the data has image, ",
    "moe.router.kind=hash": "routes by the ids of tokens, and this model knows none",
    "model.kind=decoder": "reads rows of text, and the data has none",
}
CASES = {
    "vision": Case(
        own="""
    config = read_config_file(configs / "vision.py")
    config.data.augmentation.mixup = 0.2
    config.data.augmentation.crop = 0
    config.moe.capacity_factor = 1.5
    """,
        metrics=frozenset({"accuracy", "macro_f1", "calibration_error", "top5_accuracy"}),
        classes=tuple("0123456789"),
        page=("Macro F1", "Classes by experts", "Patches by expert"),
        no_page=("Domains by experts",),
        refused={
            **IMAGES,
            "data.kind=stdlib_text": "reads label, and the data has tokens, segments, domain",
            "task.classes=2": "task.classes = 2: must be at least the",
        },
    ),
    "texts": Case(
        own="""
    config = read_config_file(configs / "sentiment.py")
    config.data.kind = "labelled"
    config.data.path = str(folder / "rows.jsonl")
    config.data.domain = "site"
    config.data.data_dir = str(folder)
    config.data.sequence_length = 16
    config.data.tokenizer.kind = "bytes"
    """,
        metrics=frozenset({"accuracy", "macro_f1", "calibration_error", "domain/a/accuracy"}),
        classes=("bad", "good", "so"),
        page=("Macro F1", "Classes by experts", "Domains by experts"),
        no_page=("Patches by expert",),
        refused={
            "data.kind=stdlib_text": "reads label, and the data has tokens, segments, domain",
            "task.classes=2": "task.classes = 2: must be at least the",
        },
    ),
    "tags": Case(
        own="""
    config = read_config_file(configs / "sentiment.py")
    config.task.kind = "tagging"
    config.data.kind = "labelled"
    config.data.path = str(folder / "rows.jsonl")
    config.data.label = "tags"
    config.data.labels = ("even", "low", "good")
    config.data.data_dir = str(folder)
    config.data.sequence_length = 16
    config.data.tokenizer.kind = "bytes"
    """,
        metrics=frozenset({"mean_average_precision", "micro_f1", "macro_f1"}),
        classes=("even", "low", "good"),
        page=("Mean average precision", "Text by expert"),
        no_page=("Classes by experts",),
        refused={"data.kind=stdlib_text": "reads labels, and the data has tokens, segments, dom"},
        labels=None,
    ),
    "segments": Case(
        own="""
    config = read_config_file(configs / "segmentation.py")
    config.data.kind = "map_folder"
    config.data.path = str(folder / "maps")
    config.data.names = ("sky", "field", "wood")
    config.data.height = config.data.width = 16
    config.data.validation_fraction = 0.4
    config.model.patch_size = 4
    """,
        metrics=frozenset({"mean_iou", "pixel_accuracy", "iou/sky", "iou/wood"}),
        classes=("sky", "field", "wood"),
        page=("Mean intersection over union", "Classes by experts", "Classes of pixels"),
        no_page=("Domains by experts",),
        refused={
            **IMAGES,
            "data.kind=digits": "reads label_map, and the data has image, label",
            "task.classes=2": "task.classes = 2: must be at least the",
        },
        labels="class_NS",
    ),
    "pairs": Case(
        own="""
    config = read_config_file(configs / "translation.py")
    config.data.kind = "line_pairs"
    config.moe.first = 0
    config.data.source = str(folder / "pairs.up")
    config.data.target = str(folder / "pairs.down")
    config.data.languages = ("up", "down")
    config.data.data_dir = str(folder)
    config.data.sequence_length = 16
    config.data.tokenizer.kind = "bytes"
    config.task.written = 20
    """,
        metrics=frozenset({"bleu", "chrf", "perplexity", "smoothed_cross_entropy", "accuracy"}),
        classes=(),
        page=("BLEU", "Text by expert", "Layer 0, encoder", "Samples", "the model"),
        no_page=("Classes by experts",),
        refused={
            "data.kind=stdlib_text": "reads source, source_segments, target, target_segments",
            "model.kind=decoder": "reads no pairs of texts: that is model.kind = encoder_decoder",
            "model.depth.every=1": "model.depth.every",
            "moe.router.kind=expert_choice": "task.written = 20: must be 0: with this router",
            "moe.first=1": "must be below the layers of encoder and decoder, 1",
            "moe.ensemble=2": "moe.ensemble = 2: must be 1: a model of several parts has no",
        },
        labels=None,
    ),
    "targets": Case(
        own="""
    config = read_config_file(configs / "census.py:ple")
    config.data.kind = "table"
    config.data.path = str(folder / "shop.csv")
    config.data.categories = ("user", "colour")
    config.data.numbers = ("age",)
    config.data.targets = ("buys", "price")
    config.data.validation_fraction = 0.3
    config.data.together = "user"
    config.task.binary = ("buys",)
    config.task.real = ("price",)
    config.task.weighting = "uncertainty"
    config.moe.group_size = 2
    config.evaluation.batch_size = 16
    config.model.sharing.own_experts = 1
    """,
        metrics=frozenset({"auc", "auc/buys", "rmse/price", "weight/price"}),
        classes=(),
        page=("Area under the ROC curve", "Gates by experts", "gate buys"),
        no_page=("Text by expert", "Classes by experts"),
        refused={
            "data.kind=digits": "reads categories, numbers, buys, price, and the data has image, l",
            "model.kind=vit": "model.kind",
            "moe.gates=2": "moe.gates = 2: must be 1: model.sharing says that they are 3",
            "model.vocab_size=8": "model.vocab_size = 8: must be at least the",
            "moe.every=2": "moe.every = 2: must be 1: each level has experts",
            "moe.capacity_factor=1": "must be none: with own_experts a gate's load",
            "task.real=cost": "reads cost, and the data has categories, numbers, buys, price",
            "data.targets=cost": "data.targets: ",
        },
        labels=None,
    ),
    "choices": Case(
        own="""
    config = read_config_file(configs / "swissmetro.py")
    config.data.kind = "table"
    config.data.path = str(folder / "trips.csv")
    config.data.categories = ("purpose",)
    config.data.numbers = ("minutes",)
    config.data.targets = ("bus", "train", "car")
    config.data.validation_fraction = 0.3
    config.data.together = "person"
    config.task.among = ("bus", "train", "car")
    config.moe.group_size = 2
    config.evaluation.batch_size = 16
    """,
        metrics=frozenset({"accuracy", "rho_squared", "share/car", "expected/car"}),
        classes=(),
        page=("McFadden", "Gates by experts", "gate car"),
        no_page=("Text by expert", "Area under the ROC curve"),
        refused={
            "task.among=bus": "task.among",
            "task.among=bus,boat": "reads boat, and the data has categories, numbers, bus, train",
            "moe.gates=2": "moe.gates = 2: must be 1: model.sharing says that they are 3",
        },
        labels=None,
    ),
    "objects": Case(
        own="""
    config = read_config_file(configs / "detection.py")
    config.task.copies = 2
    config.data.kind = "digit_scenes"
    config.data.height = config.data.width = 32
    config.data.rows, config.data.validation_rows = 200, 40
    config.data.smallest = 0.4
    config.data.max_objects = 3
    config.moe.every, config.moe.first = 1, 0
    config.task.gamma = 1.5
    """,
        metrics=frozenset({"average_precision", "ap50", "class_loss", "box_loss", "giou_loss"}),
        classes=tuple("0123456789"),
        page=("Average precision", "Classes by experts", "Objects found", "Patches by expert"),
        no_page=("Classes of pixels",),
        refused={
            "task.kind=language_model": IMAGES["task.kind=language_model"],
            "moe.router.kind=hash": IMAGES["moe.router.kind=hash"],
            "data.kind=digits": "reads boxes, classes, objects, and the data has image, label",
            "task.classes=2": "task.classes = 2: must be at least the",
            "model.kind=vit": "gives a class for each image or each pixel, or labels",
            "task.copies=6": "makes 16 patches, each of which predicts an object, and up to 18",
        },
        labels="class_NS",
        loss="detection_loss",
    ),
    "sets": Case(
        own="""
    config = read_config_file(configs / "detection.py:together")
    config.data.parts = (
        "one = digit_scenes(rows=120, validation_rows=20, smallest=0.4, max_objects=2): 1",
        "two = digit_scenes(rows=80, validation_rows=20, smallest=0.4, max_objects=3): 2",
    )
    config.data.height = config.data.width = 32
    config.moe.every, config.moe.first = 1, 0
    config.moe.router.kind = "task_level"
    config.moe.losses.importance.coefficient = config.moe.losses.load.coefficient = 0.0
    """,
        metrics=frozenset(
            {
                "average_precision",
                "ap50",
                "class_loss",
                "box_loss",
                "giou_loss",
                "domain/one/average_precision",
                "domain/two/average_precision",
            }
        ),
        classes=tuple("0123456789"),
        page=("Average precision", "Domains by experts", "Objects found", "Patches by expert"),
        no_page=("Classes of pixels",),
        refused={
            "data.parts=digits: 1": "config.data.parts",
            "data.parts=stdlib_text: 1": "no kind 'stdlib_text'",
            "data.kind=mixture": "reads image, boxes, classes, objects, and the data has tokens",
        },
        labels="class_NS",
        loss="detection_loss",
    ),
}
COMMON = """
from pathlib import Path
from moe_jax.config.overrides import read_config_file

def get_config(arg=""):
    configs, folder = Path({configs!r}), Path(__file__).parent
{own}
    config.steps = 18
    config.batch_size = 16
    config.model.num_heads = config.model.num_kv_heads = 2
    config.model.num_layers = 2
    config.model.model_dim = 16
    config.model.head_dim = 8
    config.model.mlp_dim = 16
    config.moe.num_experts = 4
    config.moe.expert_dim = 16
    config.optimizer.learning_rate = 1e-2
    config.optimizer.schedule.warmup_steps = 2
    config.evaluation.every = 9
    config.evaluation.batches = -1
    config.checkpoint.every = 6
    config.logging.every = 2
    config.logging.load_every = 4
    config.logging.probe_every = 3
    config.logging.probe_rows = 5
    return config
"""


@pytest.fixture(scope="session", params=some(CASES, ["vision"]))
def task(request) -> str:
    return request.param


@pytest.fixture
def case(task) -> Case:
    return CASES[task]


@pytest.fixture(scope="session")
def config(task, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp(task)
    texts(folder)
    pairs(folder)
    maps(folder)
    table(folder)
    trips(folder)
    configs = Path(__file__).parents[2] / "configs"
    own = CASES[task].own.strip("\n").rstrip()
    (folder / "tiny.py").write_text(COMMON.format(own=own, configs=str(configs)))
    return str(folder / "tiny.py")


def texts(folder: Path) -> None:
    words = {"good": "fine lovely great", "bad": "poor broken awful", "so": "table chair door"}
    rows = [
        {
            "text": f"{words[label].split()[n % 3]} {n % 7}",
            "label": label,
            "site": "ab"[n % 2],
            "tags": ", ".join(
                name
                for name, has in [
                    ("even", n % 7 % 2 == 0),
                    ("low", n % 7 < 3),
                    ("good", label == "good"),
                    ("none of them", True),
                ]
                if has
            ),
        }
        for n in range(240)
        for label in words
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs(folder: Path) -> None:
    """Words in capitals and small."""
    words = "one two three four five six seven".split()
    texts = [f"{words[n % 7]} {words[n // 7 % 7]}" for n in range(280)]
    (folder / "pairs.up").write_text("".join(f"{n} {t.upper()}\n" for n, t in enumerate(texts)))
    (folder / "pairs.down").write_text("".join(f"{n} {t}\n" for n, t in enumerate(texts)))


def table(folder: Path) -> None:
    """Who is young buys, and what is red is dear; some prices are not known."""
    random = np.random.default_rng(0)
    lines = ["user,colour,age,buys,price"]
    for n in range(400):
        age, colour = random.integers(18, 80), ["red", "blue", "green"][n % 3]
        price = f"{(colour == 'red') + random.normal() / 4:.3f}" if n % 4 else ""
        buys = int(age < 40) if random.random() < 0.9 else n % 2
        lines.append(f"u{n % 80},{colour},{age},{buys},{price}")
    (folder / "shop.csv").write_text("\n".join(lines) + "\n")


def trips(folder: Path) -> None:
    """Who has little time takes the train; a third has no car, and one in ten does not say."""
    random = np.random.default_rng(0)
    lines = ["person,purpose,minutes,bus,train,car"]
    for n in range(400):
        minutes, has_car = random.integers(10, 90), n // 5 % 3 > 0
        best = 1 if minutes < 40 else 2 if has_car and n % 2 else 0
        chosen = [str(int(k == best)) if n % 10 else "0" for k in range(3)]
        lines.append(
            ",".join(
                [f"p{n // 5}", "ab"[n % 2], str(minutes), *chosen[:2], chosen[2] if has_car else ""]
            )
        )
    (folder / "trips.csv").write_text("\n".join(lines) + "\n")


def maps(folder: Path) -> None:
    """A wood or a field below the sky, in their colours and some noise."""
    random = np.random.default_rng(0)
    colours = np.array([[90, 140, 220], [200, 190, 80], [40, 90, 40]])
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / "maps" / name).mkdir(parents=True)
    for n in range(60):
        classes = np.zeros((20, 24), np.uint8)
        classes[4 + n % 12 :] = 1 + n // 12 % 2
        pixels = np.clip(colours[classes] + random.normal(0, 20, (20, 24, 3)), 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"maps/JPEGImages/{n}.png")
        Image.fromarray(classes).save(folder / f"maps/SegmentationClass/{n}.png")


@pytest.fixture(scope="session")
def run(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "classes"
    _, err = (process := start(config, workdir)).communicate(timeout=300)
    assert process.returncode == 0, err
    return workdir


def test_it_learns_and_says_so(run, case, task):
    first, last = lines(run, "eval")
    assert last[case.loss] < first[case.loss]
    assert case.metrics <= last.keys()
    others = set().union(*(other.metrics for other in CASES.values()))
    assert not (others - case.metrics) & last.keys()
    train = {k: v for line in lines(run, "train") for k, v in line.items()}
    assert {"moe/max_violation", "moe/probe/churn", "moe/layer_01/load"} <= train.keys()
    known = json.loads((run / "data.json").read_text())
    assert tuple(known["classes"]) == case.classes


@pytest.mark.lab
def test_a_run_that_lost_its_last_checkpoints_goes_on_bit_for_bit(config, run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    for step in (12, 18):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    out, err = (process := start(config, workdir)).communicate(timeout=300)
    assert process.returncode == 0 and "resuming at step 6" in out, err
    assert results(workdir) == results(run)


@pytest.mark.lab
def test_on_another_mesh_the_losses_are_the_same(config, run, case, tmp_path):
    mesh = ("--config.mesh.data=2", "--config.mesh.expert=4")
    _, err = (process := start(config, tmp_path / "mesh", *mesh)).communicate(timeout=300)
    assert process.returncode == 0, err
    for one, two in zip(lines(run, "eval"), lines(tmp_path / "mesh", "eval"), strict=True):
        np.testing.assert_allclose(two[case.loss], one[case.loss], rtol=1e-4)


def test_evaluate_repeats_the_run(cli, run, case, tmp_path):
    file = tmp_path / "found.json"
    code, out, err = cli("evaluate", f"--workdir={run}", f"--json={file}")
    assert code == 0 and all(name in out for name in case.metrics if "/" not in name), err
    (found,) = json.loads(file.read_text())
    last = lines(run, "eval")[-1]
    for name in (case.loss, "moe/max_violation", *case.metrics):
        assert found["metrics"][name] == last[name], name


def test_a_loaded_run_tells_where_classes_and_places_go(run, case, task, tmp_path):
    loaded = moe_jax.load(run)
    trace = loaded.trace(1)
    trace.save(tmp_path / "trace.npz")
    again = type(trace).read(tmp_path / "trace.npz")
    valid = (trace.segment_NS > 0).any(axis=1)
    if case.labels is not None:
        label = getattr(trace, case.labels)
        np.testing.assert_array_equal(getattr(again, case.labels), label)
        assert len(found := set(np.unique(label[valid]))) > 1
        nothing = {-1} if task in ("objects", "sets") else set()
        assert found - nothing <= set(range(len(case.classes))) and not (label[~valid] >= 0).any()
        counts, names = domain_counts(again, "class")
        assert names == again.classes == loaded.info.classes and counts.sum() > 0
    replayed = loaded.replay(trace)
    assert replayed["moe/dropped_fraction"] >= 0
    if task == "vision":
        assert trace.token_NS.max() == 15 and loaded.picture(0).pixels.shape == (8, 8, 1)
    if task == "segments":
        maps = loaded.picture(0).maps
        np.testing.assert_array_equal(maps["truth"], loaded.rows[0]["label_map"])
        assert maps["prediction"].shape == (16, 16)
    if task in ("objects", "sets"):
        boxes, row = loaded.picture(0).boxes, loaded.rows[0]
        assert len(boxes["truth"]) == row["objects"] and trace.parts == ("encoder", "decoder")
        assert all(0 <= share <= 1 for one in boxes["truth"] for share in one.corner)
    if task == "pairs":
        assert trace.parts == ("encoder", "decoder") and trace.part_L.tolist() == [0, 1]
        texts = ["1 ONE TWO", "2 SIX"]
        both = loaded.translate(texts, "down", beams=2)
        assert both[1] == loaded.translate(texts[1:], "down", beams=2)[0]
        assert loaded.translate(texts, ["down", "down"], beams=2) == both
        with pytest.raises(UserError, match="1 languages for 2 texts"):
            loaded.translate(texts, ["down"])
        with pytest.raises(UserError, match="into 'up': the run translates into down"):
            loaded.translate(texts, "up")
        with pytest.raises(UserError, match="room for 14"):
            loaded.translate(["1 " * 9], "down")
        why = "this model translates: --into=LANGUAGE"
    else:
        with pytest.raises(
            UserError, match=r"this model does not translate \(config.task\)|no text"
        ):
            loaded.translate(["x"], "de")
        why = r"does not predict the next token \(config.task\)"
    with pytest.raises(UserError, match=why):
        loaded.generate("x")
    with pytest.raises(UserError, match="the leak is of models that predict the next token"):
        loaded.leak()


def test_the_report_shows_them(cli, run, case):
    code, _, err = cli("report", f"--workdir={run}", "--routing")
    assert code == 0, err
    page = (run / "report.html").read_text("utf-8")
    assert all(text in page for text in case.page)
    assert not any(text in page for text in case.no_page)


@pytest.mark.grid
def test_no_mesh_changes_a_number(cli, config):
    """One variant of the check here, all of them in tests/checking."""
    code, out, err = cli("check", f"--config={config}", "--steps=1", "--only=fsdp=2")
    assert code == 0 and "all 1 variants equal the reference" in out, out + err


def test_it_can_be_planned(cli, config):
    code, out, err = cli("plan", f"--config={config}", "--topology=v5e:2x2", "--analytic")
    assert code == 0 and "parameters" in out, out + err


def test_what_does_not_fit_together_is_told(cli, config, case, tmp_path):
    for change, message in case.refused.items():
        argv = (f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.{change}")
        code, _, err = cli("train", *argv)
        assert code == 2 and message in err and "Traceback" not in err, (change, err)
