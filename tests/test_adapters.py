"""Models of transformers with adapters of peft, as they are: only adapters adapt, by the same numbers on every path."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import innerloop as il

from .held import Held
from .torches import AT_ONCE_AND_ONE_BY_ONE, checkpoints_at_once

peft = pytest.importorskip("peft", reason="needs the extra adapters")
transformers = pytest.importorskip("transformers", reason="needs the extra adapters")

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of one of the two packages about the other
]

SIZES: dict[str, dict[str, Any]] = {
    "Bert": {
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3,
    },
    "GPT2": {
        "n_embd": 8, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "initializer_range": 0.3,
    },
    "Llama": {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 8,
    },
}  # fmt: skip
TARGETS = {"Bert": ["query", "dense"], "GPT2": ["c_attn"], "Llama": ["q_proj", "down_proj"]}


def transformer(kind: str = "Bert", attention: str = "eager", **options: Any) -> nn.Module:
    torch.manual_seed(1)
    own = {"vocab_size": 20, "num_labels": 3, "pad_token_id": 0, "max_position_embeddings": 8}
    config = getattr(transformers, f"{kind}Config")(**{**own, **SIZES[kind], **options})
    auto = transformers.AutoModelForSequenceClassification
    return auto.from_config(config, attn_implementation=attention).double()  # type: ignore[no-any-return]


def with_lora(kind: str = "Bert", attention: str = "eager", zero: bool = False, **options: Any) -> nn.Module:
    """With random adapters, unless half of them are to be zero, as they usually are."""
    fan = {"fan_in_fan_out": True} if kind == "GPT2" else {}
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules=TARGETS[kind], init_lora_weights=zero, **fan, **options
    )
    return peft.get_peft_model(transformer(kind, attention), config)  # type: ignore[no-any-return]


def texts(number: int = 3, padded: bool = True, mask: bool = True) -> il.Task:
    """Two texts of six words and two of four, for every task."""
    ids = torch.randint(1, 20, (number, 8, 6), generator=torch.Generator().manual_seed(2))
    attended = torch.ones_like(ids)
    if padded:
        attended[:, ::2, 4:] = 0
    x = {"input_ids": ids * attended, **({"attention_mask": attended} if mask else {})}
    y = torch.randint(3, (number, 8), generator=torch.Generator().manual_seed(3))
    halves = slice(0, 4), slice(4, 8)
    return il.Task(*(il.Batch({k: v[:, part] for k, v in x.items()}, y[:, part]) for part in halves))


def learner(model: nn.Module, **options: Any) -> il.MetaLearner:
    return il.maml(model, 0.3, **{"output": "logits", "steps": 2, "compile": False, **options})


def same(a: Any, b: Any, within: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=within)


def norm(grads: il.Params, part: str) -> float:
    return sum(float(grad.norm()) for name, grad in grads.items() if part in name)


# -- any of these models, unchanged -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", SIZES)
def test_at_once_equals_one_by_one(kind: str, attention: str, mask: bool) -> None:
    tasks, model = texts(mask=mask), with_lora(kind, attention)
    at_once, one_by_one = (learner(model, vectorize=v) for v in (True, False))
    within = 1e-6 if kind == "Llama" else 1e-12  # Llama's norms and positions are in float32 whatever the model is
    same(at_once.meta_gradient(tasks), one_by_one.meta_gradient(tasks), within)
    same(at_once.predict(tasks, 3), one_by_one.predict(tasks, 3), within)


@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradients_are_those_of_finite_differences(order: int) -> None:
    """In second order; in first order those of the loss at the adapted parameters."""
    tasks, model = texts(2), with_lora(zero=True)
    own = learner(model, order=order, steps=3)
    grads, _ = own.meta_gradient(tasks)
    assert norm(grads, "lora_A") > 0
    direction = {name: torch.randn_like(grad) for name, grad in grads.items()}
    if order == 2:
        small, values = 1e-5, []
        for sign in (1, -1):
            with torch.no_grad():
                for name, along in direction.items():
                    own.get_parameter(name).add_(sign * small * along)
                values.append(own(tasks).objective.mean().item())
                for name, along in direction.items():
                    own.get_parameter(name).sub_(sign * small * along)
        slope = (values[0] - values[1]) / (2 * small)
    else:
        slope = 0.0
        for index in range(2):
            task = il.task.select(tasks, index)
            module = own.adapt(task.support).module()
            loss = own.loss(module(**task.query.x).logits, task.query.y)
            found = torch.autograd.grad(loss, [module.get_parameter(n.removeprefix("model.")) for n in direction])
            slope += sum(float((g * along).sum()) for g, along in zip(found, direction.values(), strict=True)) / 2
    assert sum(float((grads[n] * along).sum()) for n, along in direction.items()) == pytest.approx(slope, rel=1e-6)


def test_only_adapters_and_the_head_move_and_are_meta_learned() -> None:
    model, tasks = with_lora(), texts()
    before = copy.deepcopy(model.state_dict())
    own = learner(model)
    grads, _ = own.meta_gradient(tasks)
    assert set(grads) == {f"model.{name}" for name, p in model.named_parameters() if p.requires_grad}
    assert set(own.adapted) == {name.removeprefix("model.") for name in grads} == set(il.adapters.names(model))
    adapted = own.adapt(il.task.select(tasks.support, 0))
    for name, parameter in model.named_parameters():
        assert torch.equal(adapted.parameters[name], parameter) is not parameter.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_backbone_can_be_meta_learned_without_adapting() -> None:
    model, tasks = with_lora(), texts()
    model.requires_grad_(True)
    heads = il.named("*modules_to_save*")
    options = {"output": "logits", "steps": 2}
    own = il.MetaLearner(model, il.SGD(0.3), il.adapters - heads, **options)  # type: ignore[arg-type]
    assert all("lora_" in name for name in own.adapted)
    grads, _ = own.meta_gradient(tasks)
    for part in ("lora_A", "lora_B", "modules_to_save", "word_embeddings", "layer.0.attention.self.query.base_layer"):
        assert norm(grads, part) > 0, part
    adapted = own.adapt(il.task.select(tasks.support, 0))
    moved = {n for n, p in model.named_parameters() if not torch.equal(adapted.parameters[n], p)}
    assert moved == set(own.adapted)


def test_frozen_adapters_adapt_from_a_fixed_start() -> None:
    model, tasks = with_lora(), texts()
    lora = il.adapters - il.named("*modules_to_save*")
    for name in lora.names(model):
        model.get_parameter(name).requires_grad_(False)
    own = il.MetaLearner(model, il.SGD(0.3), lora, output="logits", steps=2)
    assert {name.removeprefix("model.") for name in own.meta_gradient(tasks)[0]} == set(il.everything.names(model))
    adapted = own.adapt(il.task.select(tasks.support, 0))
    assert not any(torch.equal(adapted.parameters[name], model.get_parameter(name)) for name in own.adapted)


def test_the_half_of_lora_that_waits_for_the_other() -> None:
    """While B is zero, A has a gradient of zero: the first step moves B alone, and the second both."""
    model, support = with_lora(zero=True), il.task.select(texts().support, 0)
    for steps, waiting in ((1, True), (2, False)):
        moved = learner(model).adapt(support, steps).parameters
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                assert torch.equal(moved[name], parameter) is waiting
            elif "lora_B" in name:
                assert not torch.equal(moved[name], parameter)


def test_adapters_that_are_not_active_stay() -> None:
    model = with_lora()
    model.add_adapter("other", peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query"]))
    assert all(".default." in name for name in il.adapters.names(model))
    model.set_adapter("other")
    assert all(".other." in name for name in il.adapters.names(model))


def test_a_model_without_adapters_says_so() -> None:
    with pytest.raises(ValueError, match="the selection adapters matches no parameter of BertFor"):
        il.MetaLearner(transformer(), il.SGD(), il.adapters)


def test_what_was_adapted_is_a_model_of_peft() -> None:
    tasks = texts()
    support, query = (il.task.select(part, 0) for part in tasks)
    adapted = learner(with_lora()).adapt(support)
    module = adapted.module()
    expected = adapted(query.x)
    same(module(**query.x).logits, expected)
    state = peft.get_peft_model_state_dict(module)
    assert len(state) == len(il.adapters.names(module))
    again = with_lora()
    peft.set_peft_model_state_dict(again, state)
    same(again.eval()(**query.x).logits, expected)
    same(module.merge_and_unload()(**query.x).logits, expected)


@pytest.mark.parametrize("preset", sorted(set(il.presets.PRESETS) - {"cavia"}))  # whose model has a context
def test_every_preset(preset: str) -> None:
    model, tasks = with_lora(), texts()
    at_once, one_by_one = (
        il.presets.PRESETS[preset](model, output="logits", vectorize=v).meta_gradient(tasks)[0] for v in (True, False)
    )
    same(at_once, one_by_one, 1e-10)
    assert norm(at_once, "lora_" if preset != "anil" else "classifier") > 0


KINDS: dict[str, Callable[[], Any]] = {
    "AdaLoRA": lambda: peft.AdaLoraConfig(
        task_type="SEQ_CLS", init_r=2, target_r=1, total_step=9, target_modules=["query"]
    ),
    "DoRA": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=2, use_dora=True, target_modules=["query"]),
    "IA3": lambda: peft.IA3Config(
        task_type="SEQ_CLS", target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]
    ),
    "layer norms": lambda: peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]),
    "LoRA of embeddings": lambda: peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["word_embeddings"]),
    "prompts": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
    "prompts from a network": lambda: peft.PromptEncoderConfig(
        task_type="SEQ_CLS", num_virtual_tokens=2, encoder_hidden_size=4
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_adapters(kind: str) -> None:
    model, tasks = peft.get_peft_model(transformer(), KINDS[kind]()).double(), texts()
    assert set(il.adapters.names(model)) == set(il.everything.names(model))
    at_once, one_by_one = (learner(model, vectorize=v) for v in (True, False))
    grads, _ = at_once.meta_gradient(tasks)
    same(grads, one_by_one.meta_gradient(tasks)[0])
    assert all(norm(grads, name) > 0 for name in at_once.adapted if "embedding_B" not in name)


def test_what_cannot_be_vectorized_is_looped() -> None:
    config = peft.OFTConfig(task_type="SEQ_CLS", oft_block_size=4, target_modules=["query"])
    model, tasks = peft.get_peft_model(transformer(), config).double(), texts()
    own = learner(model)
    with pytest.warns(UserWarning, match=r"OFTRotationModule \(.*\) cannot be vectorized over tasks, so tasks run one"):
        found = own.meta_gradient(tasks)
    same(found, learner(model, vectorize=False).meta_gradient(tasks))


def test_dropout_is_drawn_for_every_task_and_rests_in_predictions() -> None:
    model = with_lora(lora_dropout=0.5)
    tasks = il.task.select(texts(1), slice(0, 1))
    twice = il.Task(*(pytree.tree_map(lambda t: torch.cat([t, t]), part) for part in tasks))
    own = learner(model.train())
    output = own(twice).output
    assert own.engine.vectorized
    assert not torch.allclose(output[0], output[1])
    same(*own.predict(twice))


def test_tied_weights_of_a_language_model() -> None:
    """Word embeddings that are the output layer too, which adapt as one."""
    config = transformers.GPT2Config(**SIZES["GPT2"], vocab_size=20, n_positions=8, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(config).double()
    ids = texts().support.x["input_ids"] + texts(padded=False).support.x["input_ids"]
    batch = il.Batch({"input_ids": ids[..., :-1] % 20}, ids[..., 1:] % 20)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    found = [learner(model, vectorize=v, loss=loss).meta_gradient(il.Task(batch, batch))[0] for v in (True, False)]
    same(*found)
    assert "model.lm_head.weight" not in found[0]


# -- texts of different lengths ---------------------------------------------------------------------------------------


def test_padding_in_some_tasks_only_is_right_and_does_not_stay_slow() -> None:
    model, mixed = with_lora(), texts()
    mixed.support.x["attention_mask"][1] = 1
    own = learner(model)
    expected = learner(model, vectorize=False).meta_gradient(mixed)
    same(own.adapt_all(texts().support)(mixed.support.x), own.predict(il.Task(texts().support, mixed.support))[:, -1])
    with pytest.warns(UserWarning, match="cannot run these tasks at once, so these run one by one"):
        same(own.meta_gradient(mixed), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.meta_gradient(texts())
    assert own.engine.vectorized


def test_padding_in_some_tasks_at_once() -> None:
    """By masks of an entry for each query and key, which the model does not look into."""
    model, mixed = with_lora(attention="sdpa"), texts()
    mixed.support.x["attention_mask"][1] = 1
    expected = learner(model, vectorize=False).meta_gradient(mixed)[0]
    for batch in mixed:
        batch.x["attention_mask"] = batch.x["attention_mask"][:, :, None, None].bool().expand(-1, -1, -1, 6, -1)
    same(learner(model, vectorize=True).meta_gradient(mixed)[0], expected)


# -- parts of outputs -------------------------------------------------------------------------------------------------


def test_an_output_is_taken_whole_or_in_part() -> None:
    model, tasks = with_lora(), texts()
    whole = learner(model, output=None, loss=lambda out, y: nn.functional.cross_entropy(out.logits, y))
    part = learner(model)
    same(whole.meta_gradient(tasks)[0], part.meta_gradient(tasks)[0])
    same(whole.predict(tasks).logits, part.predict(tasks))
    same(whole.adapt_all(tasks.support)(tasks.query.x).logits, part.adapt_all(tasks.support)(tasks.query.x))


@pytest.mark.parametrize(
    ("kind", "output", "error", "says"),
    [
        ("Bert", "logit", ValueError, r"SequenceClassifierOutput has no 'logit', which output= names; .*'logits'"),
        ("Llama", None, TypeError, r"has a DynamicCache in it, but outputs must be tensors.*give output= the name"),
    ],
)
def test_outputs_that_are_refused(kind: str, output: str | None, error: type[Exception], says: str) -> None:
    own = learner(with_lora(kind), output=output, loss=lambda out, y: nn.functional.cross_entropy(out.logits, y))
    with pytest.raises(error, match=says):
        own.meta_gradient(texts())


def test_a_tensor_has_no_parts(regression: Callable[..., il.Task]) -> None:
    with pytest.raises(ValueError, match="output='logits' names a part of the model's output, which is a tensor"):
        learner(nn.Linear(2, 1), loss=nn.functional.mse_loss).meta_gradient(regression())


# -- gradient checkpointing -------------------------------------------------------------------------------------------


def checkpointed(model: nn.Module, **options: Any) -> nn.Module:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)  # type: ignore[operator]
    return model.train()


@pytest.mark.parametrize("memory", ["graph", "constant"])
@pytest.mark.parametrize("vectorize", AT_ONCE_AND_ONE_BY_ONE)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("kind", "attention"), [("Bert", "sdpa"), ("GPT2", "eager")])
def test_checkpointing_changes_no_gradient(kind: str, attention: str, order: int, vectorize: bool, memory: str) -> None:
    tasks = texts()
    options = {"order": order, "vectorize": vectorize, "memory": memory}
    expected = learner(with_lora(kind, attention), **options).meta_gradient(tasks)[0]
    own = learner(checkpointed(with_lora(kind, attention), use_reentrant=False), **options)
    same(own.meta_gradient(tasks)[0], expected)
    own(tasks).objective.mean().backward()
    same({name: own.get_parameter(name).grad for name in expected}, expected)


@checkpoints_at_once
def test_checkpointing_repeats_dropout() -> None:
    grads = []
    for prepare in (nn.Module.train, lambda model: checkpointed(model, use_reentrant=False)):
        own = learner(prepare(with_lora(lora_dropout=0.5)), vectorize=True)
        torch.manual_seed(4)
        grads.append(own.meta_gradient(texts())[0])
    same(*grads)


def test_reentrant_checkpointing_is_refused() -> None:
    with pytest.raises(ValueError, match=r'gradient_checkpointing_kwargs={"use_reentrant": False}'):
        learner(checkpointed(with_lora(), use_reentrant=True)).meta_gradient(texts())


def peak(checkpoint: bool, **options: Any) -> int:
    model = transformer(num_hidden_layers=6, hidden_size=32, intermediate_size=64, max_position_embeddings=32)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(model, config)
    own = learner(checkpointed(model, use_reentrant=False) if checkpoint else model.train(), steps=1, **options)
    batch = il.Batch({"input_ids": torch.randint(1, 20, (2, 8, 32))}, torch.randint(3, (2, 8)))
    with Held() as held:
        own.meta_gradient(il.Task(batch, batch))
    return held.most


@pytest.mark.parametrize("vectorize", AT_ONCE_AND_ONE_BY_ONE)
def test_checkpointing_halves_memory_in_first_order(vectorize: bool) -> None:
    with_, without = (peak(checkpoint, order=1, vectorize=vectorize) for checkpoint in (True, False))
    assert with_ < 0.6 * without


@checkpoints_at_once
def test_in_second_order_constant_memory_does_what_checkpointing_cannot() -> None:
    """What a layer computed is needed for the gradient of its gradient, of every step."""
    graph, checkpoint, constant = (
        peak(c, vectorize=True, memory=memory) for c, memory in ((False, "graph"), (True, "graph"), (False, "constant"))
    )
    assert checkpoint > 0.75 * graph
    assert constant < 0.8 * graph
