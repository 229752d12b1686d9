"""What the train loop tells those who watch it. The loop knows this protocol and nothing of pictures or files."""

from typing import Any

from jaxseg.core.types import DatasetInfo


class Observer:
    """Base class with methods that do nothing; `jaxseg.report` holds the observers that a run has by default."""

    def on_start(self, config: Any, workdir: str, total_steps: int, start_step: int) -> None:
        """Called once before the first step; `start_step` is 0 or the step of the restored checkpoint."""

    def on_step(self, step: int) -> None:
        """Called after every step has been dispatched, with the number of steps done."""

    def on_log(self, step: int, scalars: dict[str, float]) -> None:
        """Called every `config.train.log_every_steps` steps with finite Python numbers."""

    def on_evaluation(self, step: int, result: Any, info: DatasetInfo) -> None:
        """Called with the `EvaluationResult` of the evaluation split."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """Called once when the run ends by itself, not when it is stopped."""
