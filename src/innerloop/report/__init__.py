"""What a run came to, as pictures."""

from .figures import adaptation_curve, episode, fits, new_figure, showcase, solved_episode

__all__ = ["adaptation_curve", "episode", "fits", "new_figure", "showcase", "solved_episode"]
