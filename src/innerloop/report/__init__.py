"""What a run came to, as pictures."""

from .figures import adaptation_curve, episode, fits, new_figure, showcase, solved_episode
from .runs import Run, UnreadableRunError, read_run

__all__ = [
    "Run",
    "UnreadableRunError",
    "adaptation_curve",
    "episode",
    "fits",
    "new_figure",
    "read_run",
    "showcase",
    "solved_episode",
]
