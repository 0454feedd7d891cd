"""Read the record and the results of runs, as data frames, figures and the HTML report."""

from .curves import (
    compare,
    final_support_loss,
    inner_loss,
    learned_rates,
    meta_loss,
    task_grid,
    validation,
)
from .figures import adaptation_curve, episode, failed_episode, fits, new_figure, showcase, solved_episode
from .page import write_report
from .runs import Run, UnreadableRunError, read_run
from .series import NothingToDrawError, smooth

__all__ = [
    "NothingToDrawError",
    "Run",
    "UnreadableRunError",
    "adaptation_curve",
    "compare",
    "episode",
    "failed_episode",
    "final_support_loss",
    "fits",
    "inner_loss",
    "learned_rates",
    "meta_loss",
    "new_figure",
    "read_run",
    "showcase",
    "smooth",
    "solved_episode",
    "task_grid",
    "validation",
    "write_report",
]
