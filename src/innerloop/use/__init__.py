"""Using a meta-trained model: adapting it to one's own few examples, keeping it, handing it on."""

from .pretrained import Pretrained, shipped

__all__ = ["Pretrained", "shipped"]
