import inspect
import typing
from functools import partial

import pytest

from innerloop.data import TASKS, ClassImages, FewShot, Mixture, Sinusoid, Sources, Strokes, VaryingFewShot
from innerloop.task import TaskSource

from .stand_ins import folders, write_tree


@pytest.mark.parametrize("name", TASKS)
def test_a_signature_is_a_schema(name):
    hints = typing.get_type_hints(TASKS[name])
    assert hints.pop("return") is Sources
    parameters = inspect.signature(TASKS[name]).parameters
    assert set(hints) == set(parameters), "every option has an annotation"
    without = {key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    assert without == ({"sets"} if name == "mixture" else set()), "and a default, unless there cannot be one"


@pytest.mark.parametrize("name", ["sinusoid", "sinusoid-two-phase", "linear", "strokes"])
def test_problems_without_data_sample_with_their_defaults(name, generator):
    sources = TASKS[name]()
    for source in sources:
        assert isinstance(source, TaskSource)
        task = source.sample(2, generator)
        assert len(task.support.x) == len(task.query.y) == 2


def test_two_phase():
    assert TASKS["sinusoid-two-phase"]().train == Sinusoid.two_phase(shots=4)


def test_strokes_splits_and_queries():
    assert TASKS["strokes"](ways=3, queries=2, eval_queries=7) == Sources(
        Strokes(3, 1, 2, split="train"), Strokes(3, 1, 7, split="val"), Strokes(3, 1, 7, split="test")
    )
    assert TASKS["strokes"](queries=2).test.queries == 2


def test_image_folder_passes_its_options_on(tmp_path, monkeypatch):
    monkeypatch.delenv("INNERLOOP_DATA", raising=False)
    root = write_tree(tmp_path, folders(*"abcdefghi", images=6))
    sources = TASKS["image-folder"](
        ways=2, shots=2, queries=1, eval_queries=4, size=5, channels=1, split=(0.34, 0.33, 0.33), root=root
    )
    assert isinstance(sources.train, FewShot)
    assert isinstance(sources.train.dataset, ClassImages)
    assert sources.train.dataset.image_shape == (1, 5, 5)
    assert [len(source.dataset.names) for source in sources] == [3, 3, 3]
    assert [source.queries for source in sources] == [1, 4, 4]
    assert [(source.ways, source.shots) for source in sources] == [(2, 2)] * 3
    with pytest.raises(ValueError, match=r"image-folder needs a folder .*--data DIR"):
        TASKS["image-folder"]()
    with pytest.raises(ValueError, match=r"ways=5, but the train split of .* has 3 classes"):
        TASKS["image-folder"](split=(0.34, 0.33, 0.33), root=root)
    monkeypatch.setenv("INNERLOOP_DATA", str(root))
    found = TASKS["image-folder"](ways=2, shots=2, size=5, channels=1, split=(0.34, 0.33, 0.33))
    assert found.test.dataset.names == sources.test.dataset.names


def test_a_mixture_hands_on_where_data_are(tmp_path):
    write_tree(tmp_path, {f"{kind}/{path}": data for kind in ("birds", "cars")
                          for path, data in folders(*"abcdef", images=4).items()})  # fmt: skip
    folder = partial(TASKS["image-folder"], shots=1, size=5, channels=1, split=(0.34, 0.33, 0.33))
    sets = {"birds": partial(folder, folder="birds", ways=2), "cars": partial(folder, folder="cars", ways=(2, 2))}
    sources = TASKS["mixture"]({**sets, "lines": TASKS["strokes"]}, {"birds": 2, "cars": 1, "lines": 1}, root=tmp_path)
    assert [type(source) for source in sources] == [Mixture] * 3
    assert sources.val.weights == {"birds": 0.5, "cars": 0.25, "lines": 0.25}
    birds, cars, lines = sources.test.sources.values()
    assert birds.dataset.names != []
    assert (type(birds), type(cars), type(lines)) == (FewShot, VaryingFewShot, Strokes)
    assert "cars" in cars.dataset.name


def test_omniglot_passes_its_options_on(omniglot_root):
    sources = TASKS["omniglot"](
        ways=3,
        shots=2,
        queries=1,
        eval_queries=5,
        split="alphabets",
        rotations=False,
        within_groups=True,
        root=omniglot_root,
    )
    assert [source.queries for source in sources] == [1, 5, 5]
    assert all(source.within_groups and not source.dataset.rotations for source in sources)
    assert sources.val.dataset.name == "the val split of Omniglot"


def test_mini_imagenet_passes_its_options_on(mini_imagenet_root):
    sources = TASKS["mini-imagenet"](queries=15, eval_queries=1, size=32, root=mini_imagenet_root)
    assert [source.queries for source in sources] == [15, 1, 1]
    assert sources.train.dataset.image_shape == (3, 32, 32)
