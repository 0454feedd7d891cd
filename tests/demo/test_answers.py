"""What the page is told is what the learner says."""

from __future__ import annotations

import random

import pytest
import torch

import innerloop as il
from innerloop.demo import Characters, answering, render

from .conftest import untrained
from .figures import drawn


@pytest.fixture
def question():
    rng = random.Random(0)
    return [[drawn(name, rng)] for name in ("A", "circle", "zigzag")], drawn("circle", rng)


def test_probabilities_are_the_learners_own_predictions(small, question):
    characters, _ = small
    examples, drawing = question
    support = il.Batch(torch.stack([render(x, 28) for (x,) in examples])[None], torch.arange(3)[None])
    query = il.Batch(render(drawing, 28)[None, None], torch.zeros(1, 1, dtype=torch.int64))
    logits = characters.learners[3].predict(il.Task(support, query), 4, transductive=False)[0, :, 0]
    told = characters(examples, drawing, 4)
    assert told["before"] == pytest.approx(logits[0].softmax(-1).tolist(), abs=1e-3)
    assert told["after"] == pytest.approx(logits[4].softmax(-1).tolist(), abs=1e-3)
    assert len(told["losses"]) == 5
    assert told["losses"][-1] < told["losses"][0]
    assert torch.tensor(told["image"]).sub(255 * render(drawing, 28)[0]).abs().max() <= 0.5


def test_without_a_step_after_is_before(small, question):
    characters, functions = small
    told = characters(*question, 0)
    assert told["before"] == told["after"]
    assert len(told["losses"]) == 1
    told = functions([(0.0, 1.0)], 0)
    assert told["before"] == told["after"]


def test_a_question_is_answered_the_same_whatever_was_asked_before(small, question):
    characters, _ = small
    examples, drawing = question
    first = characters(examples, drawing, 2)
    asked = (examples[::-1], drawing, 2), (examples, drawing, 3), (examples[:2], drawing, 2)
    others = [characters(*other) for other in asked]
    assert all(other["after"] != first["after"] for other in others)
    assert characters(examples, drawing, 2) == first


def test_characters_may_have_several_examples_and_not_equally_many(small):
    characters, _ = small
    rng = random.Random(0)
    examples = [[drawn("A", rng)], [drawn("E", rng) for _ in range(3)], [drawn("S", rng), drawn("S", rng)]]
    support = characters._support(examples)
    assert support.y.tolist() == [0, 1, 2, 1, 2, 1]
    assert torch.equal(support.x[3], render(examples[1][1], 28))
    assert sum(characters(examples, drawn("A", rng), 1)["after"]) == pytest.approx(1)


def test_probabilities_are_those_of_calibrated_logits(small, question):
    model = untrained("strokes-5w1s-maml", "model.width=4")
    model.temperature = 2.0
    warm = Characters(model)(*question, 1)["after"]
    cold = torch.tensor(small[0](*question, 1)["after"])
    assert warm == pytest.approx((cold.log() / 2).softmax(-1).tolist(), abs=1e-3)


def test_pictures_from_files_are_ink_on_paper(question):
    model = untrained("image-folder-5w1s-maml", "tasks.channels=1", "model.width=4", "tasks.ways=4")
    characters = Characters(model)
    assert characters.about()["most"] == 4
    size = characters.size
    x = characters._support(question[0]).x
    assert torch.equal(x[0], 1 - render(question[0][0][0], size))
    told = torch.tensor(characters(*question, 1)["image"])
    assert told.float().mean() < 64  # what is shown is still ink


def test_the_learner_is_not_changed(small, question):
    before = {name: tensor.clone() for name, tensor in small[0].learners[5].state_dict().items()}
    small[0](*question, 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in small[0].learners[5].state_dict().items())


def test_functions_are_the_learners_own_predictions(small):
    _, functions = small
    points = [(-2.0, 1.0), (0.5, -1.0), (3.0, 0.0)]
    told = functions(points, 6)
    x, y = (torch.tensor([[[p[axis]] for p in points]]) for axis in (0, 1))
    task = il.Task(il.Batch(x, y), il.Batch(functions.x[None], functions.x[None]))
    outputs = functions.learner.predict(task, 6)[0, ..., 0]
    assert told["before"] == pytest.approx(outputs[0].tolist(), abs=1e-3)
    assert told["after"] == pytest.approx(outputs[6].tolist(), abs=1e-3)
    assert len(told["losses"]) == 7


def test_random_sinusoids_are_sinusoids_of_the_task_and_differ(small):
    _, functions = small
    first, second = functions.draw(), functions.draw()
    assert first != second
    low, high = functions.x[0, 0], functions.x[-1, 0]
    for x, y in first["points"]:
        assert low <= x <= high
        nearest = first["y"][round(float((x - low) / (high - low)) * (len(first["y"]) - 1))]
        assert y == pytest.approx(nearest, abs=0.15)
    assert len(first["points"]) == 10


@pytest.mark.parametrize(
    "recipe",
    [
        ["sinusoid-maml", "tasks.name=sinusoid-two-phase"],
        ["omniglot-5w1s-quick-maml++", "model.width=4"],
        ["omniglot-5w1s-reptile", "model.width=4"],
        ["omniglot-5w1s-prototypical-quick", "model.width=4"],
        ["strokes-5w1s-maml", "model.width=4", "learner.preset=protomaml"],
    ],
    ids=str,
)
def test_other_recipes_that_have_a_tab(recipe):
    model = untrained(*recipe)
    characters, functions = answering([model])
    assert (characters is None) != (functions is None)
    (characters or functions).warm_up()


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ("mini-imagenet-5w1s-maml", "mini-imagenet tasks"),
        ("image-folder-5w1s-maml", "image-folder tasks with 3 channels"),
    ],
)
def test_a_model_of_another_kind_is_refused(recipe, what):
    with pytest.raises(ValueError, match=f"{recipe} was trained on {what}; the demo takes .* or of sinusoids"):
        answering([untrained(recipe)])


def test_steps_are_those_of_the_test_and_bounded(small):
    characters, functions = small
    reptile = Characters(untrained("omniglot-5w1s-reptile", "model.width=4"))
    for answers, tested, begin, most in ((characters, 1, 1, 10), (functions, 10, 10, 20), (reptile, 50, 20, 20)):
        about = answers.about()
        assert (about["tested"], about["steps"], about["most_steps"]) == (tested, begin, most)
