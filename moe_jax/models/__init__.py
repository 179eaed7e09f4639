"""Whole networks, assembled from nn/."""

from __future__ import annotations

from moe_jax.models.decoder import DecoderConfig
from moe_jax.models.detector import DetectorConfig
from moe_jax.models.encoder import EncoderConfig
from moe_jax.models.encoder_decoder import EncoderDecoderConfig
from moe_jax.models.recommender import RecommenderConfig
from moe_jax.models.vit import VitConfig

MODELS: dict[str, type] = {
    "decoder": DecoderConfig,
    "encoder": EncoderConfig,
    "encoder_decoder": EncoderDecoderConfig,
    "vit": VitConfig,
    "recommender": RecommenderConfig,
    "detector": DetectorConfig,
}
