"""What trained runs do with unseen tasks, as numbers and pictures: python examples/pictures.py RUN [RUN ...]

Writes adapted functions (regression) or a solved episode (images), and the curve over inner steps, into each run.
"""

import sys
from pathlib import Path

import innerloop as il
from innerloop import report


def pictures(run: Path) -> None:
    learner, sources, config = il.load_run(run)
    steps = config["evaluate"].get("steps")
    result = il.evaluate(learner, sources.test, num_tasks=600, steps=steps)
    print(f"\n{run}: {config['description']}")
    for step, (mean, half) in enumerate(zip(result.steps, result.steps_ci95, strict=True)):
        when = "before adaptation" if step == 0 else f"after {step} step{'s' * (step > 1)}"
        print(f"  {when:<18} {result.metric} {mean:8.3f} +- {half:.3f}   ({result.num_tasks} unseen tasks)")

    figure = report.new_figure(5, 3.5)
    report.adaptation_curve(figure.subplots(), result)
    save(figure, run / "adaptation.png")
    save(report.showcase(learner, sources.test, steps), run / "tasks.png")


def save(figure: object, path: Path) -> None:
    figure.savefig(path)
    print(f"  picture: {path}")


if __name__ == "__main__":
    for directory in sys.argv[1:]:
        pictures(Path(directory))
