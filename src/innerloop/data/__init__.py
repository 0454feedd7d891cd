"""Task sources: functions, sequences, invented characters, few-shot episodes from images, and mixtures of them."""

from .episodes import FewShot, VaryingFewShot
from .fixed import FixedTasks, SplitTasks, from_tasks
from .folders import image_folder
from .functions import Linear, Lines, Sinusoid, Sinusoids
from .images import ClassImages, Splits
from .mixture import Mixture
from .pairs import Pairs
from .sequences import Oscillator
from .strokes import Strokes
from .tasks import TASKS, Sources, few_shot
from .vision import mini_imagenet, omniglot

from_arrays = ClassImages.from_arrays

__all__ = [
    "TASKS",
    "ClassImages",
    "FewShot",
    "FixedTasks",
    "Linear",
    "Lines",
    "Mixture",
    "Oscillator",
    "Pairs",
    "Sinusoid",
    "Sinusoids",
    "Sources",
    "SplitTasks",
    "Splits",
    "Strokes",
    "VaryingFewShot",
    "few_shot",
    "from_arrays",
    "from_tasks",
    "image_folder",
    "mini_imagenet",
    "omniglot",
]
