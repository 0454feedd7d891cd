"""Loggers that report a training while it runs: TensorBoard, Weights & Biases, trackio, MLflow, or your own.

The record in the run directory is written regardless.
"""

from __future__ import annotations

import hashlib
import importlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..common.disk import read_text, refuse_link, subfolder, writing

LEFT_OUT = (
    "environment", "phases", "steps", "steps_ci95", "scores", "transductive", "num_tasks", "metric",
    "higher_is_better", "unit",
)  # fmt: skip


class Logger(Protocol):
    """Receives the numbers of a training, under names such as ``train/loss`` and ``validation/accuracy``."""

    def begin(self, run: Path | None, config: Mapping[str, Any], iteration: int) -> None:
        """Start logging after ``iteration``, which is 0 or the iteration that an interrupted run resumes from.

        Values that were logged for later iterations are obsolete.
        """
        ...

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log the values of an iteration. Values may be NaN or infinite."""
        ...

    def close(self) -> None:
        """End logging, after the last iteration, an error or an interruption."""
        ...


class TensorBoard:
    """Event files in the run directory: ``tensorboard --logdir runs`` shows them."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard is not installed: pip install 'innerloop[tensorboard]'") from error
        self._open = SummaryWriter

    def begin(self, run: Path | None, config: Mapping[str, Any], iteration: int) -> None:
        """Open the folder ``tensorboard`` in the run directory; events of later iterations are hidden.

        Raises:
            ValueError: the training has no run directory.
        """
        folder = str(subfolder(_needed(run, "TensorBoard"), "tensorboard"))
        purge = iteration + 1 if iteration else None
        # TensorBoard names event files by time and process, which can be guessed, and opens them through links.
        self._writer = self._open(folder, purge_step=purge, filename_suffix=f".{secrets.token_hex(16)}")

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write each value as a scalar."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """Weights & Biases, or trackio, which has the same functions.

    Their own settings, such as ``WANDB_MODE=offline``, decide whether and where runs are sent. A resumed run continues
    under its name.

    Args:
        module: ``"wandb"`` or ``"trackio"``.
        project: the project of the runs.
    """

    def __init__(self, module: str = "wandb", project: str = "innerloop") -> None:
        self._module, self._project = _imported(module), project

    def begin(self, run: Path | None, config: Mapping[str, Any], iteration: int) -> None:
        """Start the run, or resume it, under the name of the run directory.

        Raises:
            ValueError: the training has no run directory.
        """
        run = _needed(run, self._module.__name__)
        options: dict[str, Any] = {"project": self._project, "name": run.name, "config": dict(config)}
        if self._module.__name__ == "wandb":
            refuse_link(run / "wandb")
            options |= {"dir": str(run), "id": hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]}
        self._run = self._module.init(**options, resume="allow")

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log the values at this step."""
        self._run.log(dict(values), step=iteration)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow:
    """MLflow, at its own tracking address (``MLFLOW_TRACKING_URI``).

    A resumed run continues as the same MLflow run, whose name is kept in the run directory.

    Args:
        experiment: the experiment of the runs.
    """

    def __init__(self, experiment: str = "innerloop") -> None:
        self._mlflow, self._experiment = _imported("mlflow"), experiment

    def begin(self, run: Path | None, config: Mapping[str, Any], iteration: int) -> None:
        """Start the run, or resume the one whose identifier is in ``mlflow.txt`` in the run directory.

        Raises:
            ValueError: the training has no run directory.
        """
        run = _needed(run, "MLflow")
        kept = run / "mlflow.txt"
        self._mlflow.set_experiment(self._experiment)
        known = read_text(kept, 1_000).strip() if kept.exists() else None
        begun = self._mlflow.start_run(run_id=known, run_name=None if known else run.name)
        if not known:
            with writing(kept) as file:
                file.write(begun.info.run_id.encode())
            sections = {key: value if isinstance(value, Mapping) else {"": value} for key, value in config.items()}
            self._mlflow.log_params(
                {f"{s}.{k}".rstrip("."): v for s, some in sections.items() for k, v in some.items()}
            )

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Log the values at this step, under names that MLflow allows."""
        # MLflow does not allow brackets and plus signs in names, which names of parameters may have.
        self._mlflow.log_metrics({_plain(name): value for name, value in values.items()}, step=iteration)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


LOGGERS: dict[str, Callable[[], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": lambda: WandB("trackio"),
    "mlflow": MLflow,
}
"""The loggers by their names on the command line."""


def numbers(kind: str, fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a line of the record for loggers; docs/record.md describes the lines."""
    values = {
        f"{kind}/{key}": float(value) for key, value in fields.items() if key not in LEFT_OUT and _is_number(value)
    }
    if kind == "train" and fields.get("steps"):
        values["train/first_inner_loss"], values["train/last_inner_loss"] = fields["steps"][0], fields["steps"][-1]
    if kind == "validation":
        values = {f"validation/{fields['metric']}": fields["mean"], "validation/ci95": fields["ci95"]}
        values |= {
            f"validation/{fields['metric']}/{name}": part["mean"] for name, part in fields.get("sets", {}).items()
        }
    if kind == "rates":
        for name, rates in fields["rates"].items():
            values |= {f"rates/{name or 'all'}/step {step}": rate for step, rate in enumerate(rates, 1)}
    return values if kind in ("train", "validation", "rates") else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


def _needed(run: Path | None, what: str) -> Path:
    if run is None:
        raise ValueError(f"{what} needs a run directory: give the trainer one")
    return run


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: pip install {module}") from error


def made(loggers: Iterable[Logger | str]) -> list[Logger]:
    """Make the loggers that are given by name (`LOGGERS`).

    Raises:
        ImportError: the package of one is not installed.
        TypeError: something is no logger.
        ValueError: an unknown name.
    """
    if isinstance(loggers, str):
        raise TypeError(f"loggers is a list, such as [{loggers!r}], got the string {loggers!r}")
    found: list[Logger] = []
    for logger in loggers:
        if isinstance(logger, str):
            if logger not in LOGGERS:
                raise ValueError(f"unknown logger {logger!r}: it is one of {', '.join(LOGGERS)}, or one of your own")
            found.append(LOGGERS[logger]())
        elif isinstance(logger, type) or not all(callable(getattr(logger, n, None)) for n in ("begin", "log", "close")):
            raise TypeError(
                f"a logger is a name ({', '.join(LOGGERS)}) or an object with begin, log and close, got {logger!r}"
            )
        else:
            found.append(logger)
    return found
