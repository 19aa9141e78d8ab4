"""Codecs: a peer's predictions encoded as named tensors, and decoded as a student's targets."""

from ray_l4.exchange.codecs.payload import Codec, Payload
from ray_l4.exchange.codecs.table import build_codec

__all__ = ["Codec", "Payload", "build_codec"]
