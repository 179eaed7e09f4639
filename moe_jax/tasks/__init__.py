"""What is learned: the columns that are read, loss and metrics of each application."""

from __future__ import annotations

from moe_jax.tasks.choice import DiscreteChoice
from moe_jax.tasks.classification import Classification
from moe_jax.tasks.detection import Detection
from moe_jax.tasks.language_model import LanguageModel
from moe_jax.tasks.multi_task import MultiTask
from moe_jax.tasks.next_item import NextItem
from moe_jax.tasks.segmentation import Segmentation
from moe_jax.tasks.tagging import Tagging
from moe_jax.tasks.translation import Translation

TASKS: dict[str, type] = {
    "language_model": LanguageModel,
    "classification": Classification,
    "segmentation": Segmentation,
    "tagging": Tagging,
    "translation": Translation,
    "multi_task": MultiTask,
    "choice": DiscreteChoice,
    "detection": Detection,
    "next_item": NextItem,
}
