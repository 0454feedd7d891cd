from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import innerloop as il
from innerloop.recipe import config, schema
from innerloop.recipe.schema import REQUIRED
from innerloop.train import METRICS

RECIPES = sorted(config.recipes())
BASE = "sinusoid-maml"


def recipe(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# -- shipped recipes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_build_without_data(name):
    resolved = config.load_recipe(name)
    learner = config.build_learner(resolved)
    for section in ("train", "evaluate", "tasks"):
        config.arguments(resolved, section)
    assert resolved["description"]
    comment = config.recipes()[name].read_text().splitlines()
    assert comment[0] == f"# innerloop train {name}"
    assert comment[1].startswith("# ")
    if "ways" in resolved["tasks"]:
        assert learner.model.head.out_features == resolved["tasks"]["ways"]


def test_the_promised_recipes_are_there():
    shots = [f"{w}w{s}s" for w in (5, 20) for s in (1, 5)]
    promised = {f"sinusoid-{k}" for k in ("maml", "fomaml", "reptile", "meta-sgd", "two-phase")}
    promised |= {"linear-maml", "strokes-5w1s-maml", "omniglot-5w1s-quick"}
    promised |= {f"omniglot-{s}-{p}" for s in shots for p in ("maml", "fomaml", "reptile", "anil", "meta-sgd")}
    promised |= {f"mini-imagenet-5w{s}s-{p}" for s in (1, 5) for p in ("maml", "anil")}
    assert promised <= set(RECIPES)


# -- mistakes ---------------------------------------------------------------------------------------------------------

KEYS = [
    (section, key)
    for section in config.SECTIONS
    for key in config.SECTIONS[section].options(section, config.load_recipe("omniglot-5w1s-maml")[section])
    if len(key) > 2
]


@st.composite
def misspelt(draw):
    """A key of a section, with two letters swapped, one doubled, left out or replaced."""
    section, key = draw(st.sampled_from(KEYS))
    at = draw(st.integers(0, len(key) - 2))
    letter = draw(st.sampled_from(string.ascii_lowercase))
    wrong = draw(
        st.sampled_from(
            [
                key[:at] + key[at + 1] + key[at] + key[at + 2 :],
                key[:at] + key[at] + key[at:],
                key[:at] + key[at + 1 :],
                key[:at] + letter + key[at:],
            ]
        )
    )
    return section, key, wrong


@settings(max_examples=150)
@given(misspelt())
def test_a_misspelt_key_names_the_right_one(case):
    section, key, wrong = case
    base = config.load_recipe("omniglot-5w1s-maml")
    known = config.SECTIONS[section].options(section, base[section])
    if wrong in known or wrong in ("name", "preset"):
        return
    with pytest.raises(ValueError, match="unknown key") as caught:
        config.resolve({**base, section: {**base[section], wrong: 1}})
    assert f"unknown key {section}.{wrong}; did you mean " in str(caught.value)
    others = [other for other in known if schema.nearest(wrong, [other]) != "." and other != key]
    assert f"did you mean {key!r}?" in str(caught.value) or others
    assert f"Keys of [{section}]: " in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.lr=1", "unknown key trian; did you mean 'train'?"),
        ("train.iteratoins=1", "unknown key train.iteratoins; did you mean 'iterations'?"),
        ("learner.step=1", "unknown key learner.step; did you mean 'steps'?"),
        ("evaluate.tasks=1", "unknown key evaluate.tasks; did you mean 'num_tasks'?"),
        ("learner.preset=mamll", "unknown learner.preset 'mamll'; did you mean 'maml'?"),
        ("model.name=mpl", "unknown model.name 'mpl'; did you mean 'mlp'?"),
        ("tasks.name=sinusiod", "unknown tasks.name 'sinusiod'; did you mean 'sinusoid'?"),
        ("learner.loss=mes", "unknown loss 'mes'; did you mean 'mse'?"),
        ("learner.preset=3", "unknown learner.preset 3"),
        ("train.lr=fast", "train.lr = 'fast' is a string; expected a number or a table"),
        ("train.lr=true", "train.lr = True is a boolean; expected a number"),
        ("train.lr=nan", "train.lr = nan is a number; expected a number"),
        ("train.tasks=1.5", "train.tasks = 1.5 is a number; expected an integer"),
        ("train.tasks=true", "train.tasks = True is a boolean; expected an integer"),
        ("train.optimizer=adamw", 'expected "adam" or "sgd"'),
        ("model.sizes=3", "model.sizes = 3 is an integer; expected a list, each an integer"),
        ("model.sizes=[1, true]", "model.sizes[1] = True is a boolean; expected an integer"),
        (
            "train.lr={schedule='linaer', start=1.0, end=0.0}",
            "unknown train.lr.schedule 'linaer'; did you mean 'linear'",
        ),
        ("train.lr={schedule='linear', start=1.0, ned=0.0}", "unknown key train.lr.ned; did you mean 'end'"),
        ("train.lr={schedule='linear', start=1.0}", "[train.lr] needs the key end"),
        ("train=3", "train = 3 is not a table; expected a section"),
        ("seed=x", "seed = 'x' is a string; expected an integer"),
        ("seed.x=1", "seed"),
        ("learner.lr", "does not have the form section.key=value"),
        ("a.b.c.d.e=1", "does not have the form section.key=value"),
        ("tasks.root='/data'", "unknown key tasks.root"),
        ("train.seed=1", "unknown key train.seed"),
    ],
)
def test_mistakes_say_what_would_be_right(override, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        config.load_recipe(BASE, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["learner", "tasks", "model"])
def test_a_missing_section_says_what_it_needs(section):
    base = config.load_recipe(BASE)
    del base[section]
    with pytest.raises(ValueError, match=rf"\[{section}\] needs the key (name|preset), one of"):
        config.resolve(base)


def test_a_missing_argument_is_named(tmp_path):
    base = config.load_recipe(BASE)
    del base["model"]["sizes"]
    with pytest.raises(ValueError, match=r"\[model\] needs the key sizes"):
        config.resolve(base)


def test_unknown_recipes_and_files(tmp_path):
    with pytest.raises(ValueError, match="unknown recipe 'sinusoid-mmal'; did you mean 'sinusoid-maml'"):
        config.load_recipe("sinusoid-mmal")
    with pytest.raises(FileNotFoundError, match="there is no recipe"):
        config.load_recipe(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"bad\.toml: .*line 1"):
        config.load_recipe(recipe(tmp_path / "bad.toml", "a = = 3"))


@pytest.mark.parametrize("key", ["seed", "train.lr", "train.iterations", "learner.steps", "model.sizes"])
@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, str(2**63), "0x" + "f" * 5000])
def test_integers_of_more_than_64_bits_are_refused(key, number):
    """Torch and floats have none, and Python does not even write some of them."""
    given = f"[1, {number}]" if key == "model.sizes" else number
    with pytest.raises(ValueError, match=rf"{key}.* is an integer of more than 64 bits") as caught:
        config.load_recipe(BASE, [f"{key}={given}"])
    assert len(str(caught.value)) < 120


def test_long_values_and_odd_keys_are_one_short_line(tmp_path):
    long = recipe(tmp_path / "long.toml", f'extends = "{BASE}"\n[train]\nlr = "{"a" * 100_000}"')
    with pytest.raises(ValueError, match=r"train\.lr = 'aaa") as caught:
        config.load_recipe(long)
    assert len(str(caught.value)) < 400
    odd = recipe(tmp_path / "odd.toml", f'extends = "{BASE}"\n[train]\n"a\\nb" = 1')
    with pytest.raises(ValueError, match=r"unknown key train\.a\\nb"):
        config.load_recipe(odd)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [(b"a = = 3", "line 1"), (b"\xff\xfea", "not UTF-8"), (b"x = " + b"[" * 5000, "nested too deeply"),
     (b"extends = 3", "extends = 3 is an integer")],
)  # fmt: skip
def test_what_is_wrong_with_a_recipe_that_is_extended_names_both(tmp_path, content, wrong):
    (tmp_path / "base.toml").write_bytes(content)
    top = recipe(tmp_path / "top.toml", 'extends = "base.toml"')
    with pytest.raises(ValueError, match=wrong) as caught:
        config.load_recipe(top)
    assert "top.toml" in str(caught.value)
    assert "base.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["none.toml", "folder.toml", "/dev/zero", "~nobody-of-this-name/x.toml", "a\\nb.toml"])
def test_what_is_extended_and_is_no_file_is_named_with_what_extends_it(tmp_path, base):
    (tmp_path / "folder.toml").mkdir()
    top = recipe(tmp_path / "top.toml", f'extends = "{base}"')
    with pytest.raises(FileNotFoundError, match=r"there is no recipe .*, which .*top\.toml extends"):
        config.load_recipe(top)


def test_recipes_that_extend_each_other_in_a_circle_or_without_end(tmp_path):
    """By other paths each time, too."""
    recipe(tmp_path / "a.toml", f'extends = "../{tmp_path.name}/b.toml"')
    recipe(tmp_path / "b.toml", f'extends = "../{tmp_path.name}/a.toml"')
    with pytest.raises(ValueError, match="extends itself"):
        config.load_recipe(tmp_path / "a.toml")
    for number in range(50):
        recipe(tmp_path / f"chain-{number}.toml", f'extends = "chain-{number + 1}.toml"')
    with pytest.raises(ValueError, match="more than 20 recipes extend each other"):
        config.load_recipe(tmp_path / "chain-0.toml")


def test_what_a_recipe_asks_for_and_cannot_be_built_names_the_file(tmp_path):
    for section, key, value in (
        ("model", "sizes", "[1, -1, 1]"), ("model", "sizes", "[1, 1_000_000_000_000, 1]"), ("learner", "steps", "-1"),
        ("tasks", "shots", "-1"),
    ):  # fmt: skip
        path = recipe(tmp_path / "odd.toml", f'extends = "{BASE}"\n[{section}]\n{key} = {value}')
        with pytest.raises(ValueError, match=r"odd\.toml: ") as caught:
            config.build(config.load_recipe(path))
        assert "\n" not in str(caught.value)
        assert str(caught.value).count("odd.toml") == 1


def test_a_model_takes_no_more_memory_than_there_are_weights_for_it():
    settings = config.load_recipe(BASE)
    config.build_learner(settings, most=1_761)
    with pytest.raises(ValueError, match="its model has 1,761 values, but its weights have 1,760"):
        config.build_learner(settings, most=1_760)
    settings["model"]["sizes"] = [1, 10**9, 10**9, 1]  # of which none is made to count them
    with pytest.raises(ValueError, match="has 1,000,000,004,000,000,001 values"):
        config.build_learner(settings, most=1_760)


@settings(max_examples=60)
@given(st.text(max_size=40))
def test_any_override_is_applied_or_explained(text):
    try:
        resolved = config.load_recipe(BASE, [text])
        said = BASE
        assert config.resolve(resolved) == resolved
    except ValueError as error:
        said = str(error)
    assert said.startswith(str(BASE))


@settings(max_examples=100)
@example(("train", "metric"), "")
@example(("learner", "loss"), "none")
@given(
    st.sampled_from(KEYS),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()),
              st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.just({"schedule": []})),
)  # fmt: skip
def test_any_value_is_accepted_or_explained(place, value):
    section, key = place
    base = config.load_recipe("omniglot-5w1s-maml")
    try:
        config.resolve({**base, section: {**base[section], key: value}})
        message = f"{section}.{key}"
    except ValueError as error:
        message = str(error)
    assert f"{section}.{key}" in message


# -- values -----------------------------------------------------------------------------------------------------------


def test_overrides_are_toml_or_words():
    overrides = ["learner.lr=1", "learner.loss=l1", "model.sizes=[1, 3, 1]", "train.clip=0.5", 'description="a = b"']
    resolved = config.load_recipe(BASE, overrides, seed=7)
    assert resolved["seed"] == 7
    assert resolved["description"] == "a = b"
    arguments = config.arguments(resolved, "learner")
    assert (arguments["lr"], arguments["loss"]) == (1.0, il.losses.LOSSES["l1"])
    assert isinstance(arguments["lr"], float)
    assert config.arguments(resolved, "train")["clip"] == 0.5


def test_a_recipe_names_its_metric():
    resolved = config.load_recipe(BASE, ["train.metric=rmse", "evaluate.metric=l1"])
    assert (resolved["train"]["metric"], resolved["evaluate"]["metric"]) == ("rmse", "l1")
    assert config.arguments(resolved, "train")["metric"] is METRICS["rmse"]
    assert config.arguments(config.load_recipe(BASE, ["train.metric=none"]), "train")["metric"] is None
    with pytest.raises(ValueError, match=r"unknown metric 'acuracy'; did you mean 'accuracy'\? Known: accuracy, .*mse"):
        config.load_recipe(BASE, ["train.metric=acuracy"])
    with pytest.raises(ValueError, match=r"train\.metric = 3 is an integer; expected one of accuracy, mse, .*\"none\""):
        config.load_recipe(BASE, ["train.metric=3"])


def test_schedules_run_over_the_training_unless_told_otherwise():
    table = "train.lr={schedule='linear', start=1.0, end=0.0}"
    resolved = config.load_recipe(BASE, [table, "train.iterations=100"])
    lr = config.arguments(resolved, "train")["lr"]
    assert [lr(0), lr(50), lr(100)] == [1.0, 0.5, 0.0]
    resolved = config.load_recipe(BASE, [table, "train.lr.iterations=10"])
    assert config.arguments(resolved, "train")["lr"](5) == 0.5


def test_none_undoes_what_a_recipe_extends():
    resolved = config.load_recipe("mini-imagenet-5w1s-maml", ["train.clip=none"])
    assert config.arguments(resolved, "train")["clip"] is None


def test_the_model_follows_the_tasks():
    resolved = config.load_recipe("omniglot-5w1s-maml", ["tasks.ways=7", "tasks.size=20"])
    assert (resolved["model"]["ways"], resolved["model"]["image_size"]) == (7, 20)
    with pytest.raises(ValueError, match=r"model.ways = 5 contradicts tasks.ways = 7; leave out model.ways"):
        config.load_recipe("omniglot-5w1s-maml", ["tasks.ways=7", "model.ways=5"])


MIXED = """
[model]
name = "conv4"
width = 4
[learner]
preset = "maml"
[tasks]
name = "mixture"
weights = {drawn = 3, more = 1}
[tasks.sets.drawn]
name = "strokes"
[tasks.sets.more]
name = "strokes"
ways = 7
[train]
iterations = 4
"""


def test_a_mixture_is_made_of_problems(tmp_path):
    resolved = config.load_recipe(recipe(tmp_path / "mixed.toml", MIXED), ["tasks.sets.drawn.shots=2"])
    plain = {key: value for key, value in config.load_recipe("strokes-5w1s-maml")["tasks"].items() if key != "name"}
    assert resolved["tasks"]["sets"]["drawn"] == {"name": "strokes", **plain, "shots": 2}
    assert (resolved["model"]["ways"], resolved["model"]["image_size"]) == (7, 28)
    assert config.resolve(config.parse(config.dumps(resolved))) == resolved
    _, sources = config.build(resolved)
    assert sources.val.weights == {"drawn": 0.75, "more": 0.25}
    assert [(one.ways, one.shots) for one in sources.test.sources.values()] == [(5, 2), (7, 1)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks.sets.drawn.wyas=5", "unknown key tasks.sets.drawn.wyas; did you mean 'ways'?"),
        ("tasks.sets.drawn.name=storkes", "unknown tasks.sets.drawn.name 'storkes'; did you mean 'strokes'?"),
        ("tasks.sets.drawn.ways=many", "tasks.sets.drawn.ways = 'many' is a string; expected an integer"),
        ("tasks.sets.drawn.root=/data", "unknown key tasks.sets.drawn.root"),
        ("tasks.sets.drawn=5", "tasks.sets.drawn = 5 is an integer; expected a table"),
        ("tasks.sets=5", "tasks.sets = 5 is an integer; expected a table whose values are each a table {name"),
        ("tasks.weights={drawn = 'x'}", "tasks.weights.drawn = 'x' is a string; expected a number"),
    ],
)
def test_mistakes_in_a_mixture_name_their_place(tmp_path, override, message):
    path = recipe(tmp_path / "mixed.toml", MIXED)
    with pytest.raises(ValueError, match=re.escape(message)):
        config.load_recipe(path, [override])


def test_a_mixture_needs_sets_and_a_weight_for_each(tmp_path):
    path = recipe(
        tmp_path / "mixed.toml", '[model]\nname = "mlp"\n[learner]\npreset = "maml"\n[tasks]\nname = "mixture"\n'
    )
    with pytest.raises(ValueError, match=r"\[tasks\] needs the key sets"):
        config.load_recipe(path)
    resolved = config.load_recipe(recipe(tmp_path / "mixed.toml", MIXED), ["tasks.weights={drawn = 1}"])
    with pytest.raises(ValueError, match="weights are needed for the sets drawn, more, and given for drawn"):
        config.build(resolved)


def test_numbers_of_ways_and_shots_may_vary():
    resolved = config.load_recipe("omniglot-5w1s-maml", ["tasks.ways=[3, 9]", "tasks.shots=[1, 5]"])
    assert resolved["model"]["ways"] == 9
    with pytest.raises(ValueError, match=re.escape("tasks.ways = [3] is a list; expected an integer or a list of 2")):
        config.load_recipe("omniglot-5w1s-maml", ["tasks.ways=[3]"])


def test_images_that_the_model_cannot_take_are_refused():
    resolved = config.load_recipe("strokes-5w1s-maml", ["model.channels=3"])
    with pytest.raises(ValueError, match=r"model.channels = 3, but the images of strokes have 1"):
        config.build(resolved)


def test_extends(tmp_path):
    recipe(tmp_path / "a.toml", 'extends = "sinusoid-maml"\n[train]\ntasks = 3\niterations = 5\n')
    recipe(tmp_path / "b.toml", 'extends = "a.toml"\n[train]\niterations = 6\n')
    resolved = config.load_recipe(tmp_path / "b.toml")
    assert (resolved["train"]["tasks"], resolved["train"]["iterations"], resolved["learner"]["lr"]) == (3, 6, 0.01)
    assert "extends" not in resolved
    recipe(tmp_path / "a.toml", 'extends = "b.toml"')
    with pytest.raises(ValueError, match="extends itself"):
        config.load_recipe(tmp_path / "b.toml")


def test_every_default_is_explicit():
    resolved = config.load_recipe(BASE)
    assert resolved["train"]["optimizer"] == "adam"
    assert resolved["learner"]["order"] == 2
    assert config.load_recipe("omniglot-5w1s-maml")["learner"]["loss"] == "cross_entropy"


def test_differences_are_named():
    one, other = config.load_recipe(BASE), config.load_recipe(BASE, ["learner.lr=0.5", "train.clip=3.0"])
    assert config.differences(one, one) == []
    assert sorted(config.differences(one, other)) == ["learner.lr", "train.clip"]


# -- signatures -------------------------------------------------------------------------------------------------------


def test_options_are_read_off_the_signature():
    found = schema.options(il.presets.maml)
    assert {"lr", "order", "loss", "steps", "vectorize"} <= set(found)
    assert "model" not in found
    assert "adapt" not in schema.options(il.presets.cavia)
    assert schema.options(il.models.mlp)["sizes"].default is REQUIRED
    assert schema.call(il.models.mlp, {"sizes": (1, 2, 3)})[2].out_features == 3


# -- building ---------------------------------------------------------------------------------------------------------


def test_the_learner_is_initialized_under_its_seed():
    def weights(seed):
        state = config.build_learner(config.load_recipe(BASE, seed=seed)).state_dict()
        return torch.cat([tensor.flatten() for tensor in state.values()])

    random = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(random, torch.get_rng_state())


def test_devices():
    assert config.find_device("cpu") == torch.device("cpu")
    assert config.find_device("auto").type in ("cpu", "cuda")
    for wrong in ("cuda:99", "gpu", "tpu9"):
        with pytest.raises(ValueError, match=f"device '{wrong}' is not available here"):
            config.find_device(wrong)


def test_a_run_is_read_back(tmp_path):
    resolved = config.load_recipe(BASE, ["train.iterations=4", "train.tasks=2", "train.val_tasks=3"])
    learner, sources = config.build(resolved)
    trainer = il.Trainer(
        learner, sources.train, sources.val, tmp_path, progress=False, **config.arguments(resolved, "train")
    )
    trainer.fit()
    (tmp_path / "config.toml").write_text(config.dumps(resolved))
    again, _, read = il.load_run(tmp_path)
    assert read == resolved
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, learner.state_dict()[name])
    (tmp_path / "config.toml").write_text(config.dumps(config.load_recipe(BASE, ["model.sizes=[1, 2, 1]"])))
    with pytest.raises(ValueError, match=r"not those of its config\.toml"):
        il.load_run(tmp_path)


def test_what_is_not_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run directory"):
        il.load_run(tmp_path)
    (tmp_path / "config.toml").write_text(config.dumps(config.load_recipe(BASE)))
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        il.load_run(tmp_path)


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_written_recipe_is_the_same_recipe(name, tmp_path):
    resolved = config.load_recipe(name)
    (tmp_path / "config.toml").write_text(config.dumps(resolved))
    assert config.load_recipe(tmp_path / "config.toml") == resolved


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.dictionaries(WORDS, PLAIN, max_size=4))
def test_plain_values_survive_toml(values):
    assert config.parse(config.dumps(values)) == values
