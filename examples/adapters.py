"""LoRA adapters that learn a text task from 32 examples: python examples/adapters.py [ITERATIONS]

The transformer is not trained: its adapters and its head are meta-learned, and they alone adapt.
"""

import sys

import peft
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

import innerloop as il

WORDS, KEYWORDS, LENGTH, TEXTS = 60, 3, 5, 64


class Keywords:
    """Which texts have one of three keywords? Every task has its own, of 34,220 sets; an evaluation's are new."""

    def sample(self, n: int, generator: torch.Generator) -> il.Task:
        words = torch.rand(n, 1, WORDS, generator=generator).argsort(-1).expand(n, TEXTS, WORDS)
        keywords, others = words[..., :KEYWORDS], words[..., KEYWORDS:]
        texts = others.gather(2, torch.randint(WORDS - KEYWORDS, (n, TEXTS, LENGTH), generator=generator))
        keyword = keywords.gather(2, torch.randint(KEYWORDS, (n, TEXTS, 1), generator=generator))
        place = torch.randint(LENGTH, (n, TEXTS, 1), generator=generator)
        labels = torch.randint(2, (n, TEXTS), generator=generator)
        texts = torch.where(labels[..., None] == 1, texts.scatter(2, place, keyword), texts)
        ids = torch.cat([torch.full((n, TEXTS, 1), WORDS), texts], 2)  # a text begins with a word of its own
        support, query = slice(0, TEXTS // 2), slice(TEXTS // 2, None)
        return il.Task(*(il.Batch({"input_ids": ids[:, part]}, labels[:, part]) for part in (support, query)))


def transformer() -> peft.PeftModel:
    config = BertConfig(
        vocab_size=WORDS + 2, pad_token_id=WORDS + 1,  # padding has a row of its own, which does not move
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=64, target_modules=["word_embeddings", "value"])
    return peft.get_peft_model(AutoModelForSequenceClassification.from_config(config), lora)


iterations = int(sys.argv[1]) if len(sys.argv) > 1 else 300
torch.manual_seed(0)
learner = il.maml(transformer(), lr=0.1, steps=3, output="logits", vectorize=True)
initialized = il.evaluate(learner, Keywords(), num_tasks=200, batch=100)
il.Trainer(learner, Keywords(), iterations=iterations, tasks=8, lr=3e-3, clip_norm=1.0).fit()
trained = il.evaluate(learner, Keywords(), num_tasks=200, batch=100)

print("accuracy in %, 200 new tasks    as initialized    meta-trained")
for step in range(learner.steps + 1):
    columns = (f"{e.steps[step]:6.2f} +- {e.steps_ci95[step]:.2f}" for e in (initialized, trained))
    print(f"{f'after {step} steps' if step else 'before':<30}", *columns, sep="  ")
