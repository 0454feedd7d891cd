from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import innerloop as il
from innerloop import cli
from innerloop.report import adaptation_curve, episode, failed_episode, fits, new_figure, solved_episode
from innerloop.report.figures import in_figure
from innerloop.train.evaluate import accuracy


@pytest.fixture
def sinusoids() -> il.MetaLearner:
    return il.maml(il.models.mlp(1, 8, 1), lr=0.01, loss=F.mse_loss)


@pytest.fixture
def characters() -> il.MetaLearner:
    return il.prototypical(il.models.conv4(width=8))


def test_the_curve_shows_every_step_and_the_mode(sinusoids: il.MetaLearner) -> None:
    result = il.evaluate(sinusoids, il.Sinusoid(), num_tasks=10, steps=4)
    axes = adaptation_curve(new_figure(4, 3).subplots(), result)
    assert axes.lines[0].get_ydata().tolist() == pytest.approx(list(result.steps))
    assert result.mode in axes.get_title()


def test_fits_draw_the_function_the_points_came_from(sinusoids: il.MetaLearner) -> None:
    axes = fits(new_figure(4, 3).subplots(), sinusoids, il.Sinusoid(shots=5), steps=(0, 1, 3), seed=4)
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"truth", "before adaptation", "1 step", "3 steps", "5 support points"}
    task = il.task.select(il.Sinusoid(shots=5).sample(1, torch.Generator().manual_seed(4)), 0)
    truth = il.Sinusoid(shots=5).functions(1, torch.Generator().manual_seed(4))
    torch.testing.assert_close(truth(task.support.x)[0], task.support.y)
    grid = torch.tensor(lines["truth"].get_xdata(), dtype=torch.float32)[:, None]
    torch.testing.assert_close(
        torch.tensor(lines["truth"].get_ydata(), dtype=torch.float32), truth(grid)[0, :, 0], rtol=1e-4, atol=1e-5
    )
    before = sinusoids.model(grid).detach()[:, 0]
    torch.testing.assert_close(
        torch.tensor(lines["before adaptation"].get_ydata(), dtype=torch.float32), before, rtol=1e-4, atol=1e-5
    )


def test_one_logit_tells_one_of_two_classes() -> None:
    """By its sign: of problems with targets 0 and 1, as many are told right as accuracy says."""

    class Halves:
        def sample(self, n: int, generator: torch.Generator) -> il.Task:
            x = torch.rand(n, 12, 1, 16, 16, generator=generator)
            y = torch.tensor([0.0, 1.0]).repeat(6).expand(n, 12)
            x = x + 0.1 * y[..., None, None, None]
            return il.Task(*(il.Batch(x[:, s], y[:, s]) for s in (slice(8), slice(8, None))))

    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 1), nn.Flatten(0))
    learner = il.maml(model, lr=0.1, steps=5, loss=F.binary_cross_entropy_with_logits)
    tasks = [Halves().sample(1, torch.Generator().manual_seed(seed)) for seed in range(100)]
    right = [accuracy(learner.predict(task)[0, -1], task.query.y[0]).item() for task in tasks]
    assert solved_episode(learner, Halves()) == right.index(max(right))
    assert failed_episode(learner, Halves()) == right.index(min(right))
    assert min(right) < max(right)
    figure = episode(new_figure(5, 5), learner, Halves())
    assert len(figure.axes) == 8 + 2 * 4


def test_an_episode_shows_all_its_images(characters: il.MetaLearner, tmp_path: Path) -> None:
    figure = episode(new_figure(5, 5), characters, il.Strokes(ways=5, shots=2, queries=1))
    figure.savefig(tmp_path / "episode.png")
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 10 + 5 + 5
    assert sum(axes.get_xlabel().startswith("predicted") for axes in pictures) == 10


def test_a_solved_episode_is_solved(characters: il.MetaLearner) -> None:
    source = il.Strokes(ways=2)
    task = source.sample(1, torch.Generator().manual_seed(solved_episode(characters, source)))
    assert (characters.predict(task)[0, -1].argmax(-1) == task.query.y[0]).all()


def test_without_matplotlib_the_extra_is_named() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from innerloop.report import new_figure; new_figure(1, 1)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert "pip install 'innerloop[plot]'" in result.stderr


@pytest.mark.parametrize("name", ["costs $5 or $6", r"a$\frac$b", "_hidden", "$$", "one $", "plain"])
def test_names_are_shown_as_they_are(name: str, tmp_path: Path) -> None:
    """Not as formulas, of which matplotlib refuses the wrong ones, and leaves what begins with an underscore out."""
    figure = new_figure(6, 4)
    (left, right) = figure.subplots(1, 2)
    left.set_title(in_figure(name))
    left.plot([1, 2], [1, 2], label=in_figure(name))
    right.barh([in_figure(name), "b"], [1, 2])
    legend = left.legend()
    figure.savefig(tmp_path / "figure.png")
    for text in (left.title, *legend.get_texts(), right.get_yticklabels()[0]):
        shown, as_formula = text._preprocess_math(text.get_text())
        assert shown.strip() == name
        assert not as_formula


@pytest.mark.parametrize("name", ["a$\\frac$", "a\udcffb", "a\nb$"])
def test_odd_names_in_a_record_are_drawn(
    name: str, recorded: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of metrics, units and parameters, which another program may have written."""
    judged = {"metric": name, "unit": name, "mean": 1.0, "ci95": 0.1, "num_tasks": 2, "transductive": True}
    lines = [
        *({"kind": "rates", "iteration": i, "rates": {name: [0.1, 0.2]}} for i in (1, 2)),
        *({"kind": "validation", "iteration": i, **judged} for i in (1, 2)),
    ]
    run = recorded(tmp_path / "run", lines)
    assert cli.run(["plot", str(run), "--kind", "rates", "--kind", "validation", "-o", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"rates.png", "validation.png"}, capsys.readouterr()
    assert cli.run(["plot", str(run), str(run), "--kind", "compare", "-o", str(tmp_path)]) == 0
