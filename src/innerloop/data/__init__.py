"""Task sources: functions, invented characters, and few-shot episodes from images."""

from innerloop.data.episodes import FewShot
from innerloop.data.folders import image_folder
from innerloop.data.functions import Linear, Lines, Sinusoid, Sinusoids
from innerloop.data.images import ClassImages, Splits
from innerloop.data.strokes import Strokes
from innerloop.data.tasks import TASKS, Sources, few_shot
from innerloop.data.vision import mini_imagenet, omniglot

from_arrays = ClassImages.from_arrays

__all__ = [
    "TASKS",
    "ClassImages",
    "FewShot",
    "Linear",
    "Lines",
    "Sinusoid",
    "Sinusoids",
    "Sources",
    "Splits",
    "Strokes",
    "few_shot",
    "from_arrays",
    "image_folder",
    "mini_imagenet",
    "omniglot",
]
