"""Evaluation while training: when it is due, what is kept and said of it."""

import time

from gfl import build
from gfl.data.batch import Normalize
from gfl.distributed import broadcast_buffers, is_main
from gfl.drawing import save_picture
from gfl.engine.evaluate import METRICS
from gfl.engine.evaluate import evaluate as evaluate_model
from gfl.engine.keeper import Keeper
from gfl.engine.options import LoopOptions
from gfl.engine.run_log import RunLog
from gfl.engine.stop import StopSignal
from gfl.schema import Config
from gfl.visualize import draw_predictions


class Validation:
    """Judges the weights of a run on its validation data.

    Args:
        config: its `data`, `train` and `postprocess` sections are used.
        dataset: the validation split.
        normalize: batch to network input.
        options: of the loop.
        keeper: gets the best weights.
        log: gets the numbers.
        stop: a signal ends an evaluation early; it is then still owed.

    Attributes:
        interrupted: whether a signal has ended the evaluation, on every process alike.
    """

    def __init__(
        self,
        config: Config,
        dataset,
        normalize: Normalize,
        options: LoopOptions,
        keeper: Keeper,
        log: RunLog,
        stop: StopSignal,
    ):
        self.eval_epochs = config.train.eval_epochs
        self.dataset = dataset
        self.loader = build.build_eval_loader(config, dataset)
        self.postprocess = build.build_postprocess(config)
        self.normalize = normalize
        self.options = options
        self.keeper = keeper
        self.log = log
        self.stop = stop
        self.interrupted = False

    def run_if_due(self) -> dict | None:
        """Evaluate at the end of an epoch that owes it; keep the best weights.

        Returns:
            The numbers, or None where nothing was due or a signal came.
        """
        state, options = self.keeper.state, self.options
        epoch, within = divmod(state.step, options.steps_per_epoch)
        due = epoch % self.eval_epochs == 0 or epoch == options.epochs
        if within or not epoch or not due or state.evaluated_step == state.step:
            return None
        started = time.perf_counter()
        broadcast_buffers(state.evaluated_model)
        metrics, _ = evaluate_model(
            state.evaluated_model,
            self.loader,
            self.postprocess,
            self.normalize,
            self.dataset,
            self.log.say,
            self.stop.in_evaluation,
        )
        self.interrupted = metrics is None
        if metrics is None:
            return None
        seconds = time.perf_counter() - started
        state.evaluated_step = state.step
        if not state.best or metrics["AP"] > state.best["AP"]:
            thresholds = [metrics["thresholds"][name] for name in self.dataset.class_names]
            self.keeper.save_best({"AP": metrics["AP"], "epoch": epoch}, thresholds)
        self._tell(epoch, metrics, seconds)
        self._draw_predictions()
        self.keeper.save_last()
        return metrics

    def _tell(self, epoch: int, metrics: dict, seconds: float) -> None:
        state, weights = self.keeper.state, self.keeper.weights
        per_class = metrics["per_class"]
        self.log.metrics(
            state.step,
            {
                "epoch": epoch,
                **{name: metrics[name] for name in METRICS},
                **{f"AP/{name}": ap for name, ap in per_class.items() if ap is not None},
                "weights": weights,
                "eval_seconds": seconds,
            },
        )
        self.log.say(
            f"epoch {epoch}: AP {metrics['AP']:.4f} AP50 {metrics['AP50']:.4f} "
            f"AP75 {metrics['AP75']:.4f} ({weights} weights, val, {seconds:.1f} s), best AP "
            f"{state.best['AP']:.4f} of epoch {state.best['epoch']}"
        )

    def _draw_predictions(self) -> None:
        if is_main():
            picture = draw_predictions(
                self.keeper.state.evaluated_model,
                self.loader,
                self.postprocess,
                self.normalize,
                self.dataset.class_names,
            )
            with self.log.going_on():
                save_picture(self.keeper.work_dir / "predictions.jpg", picture)
            self.log.picture(self.keeper.state.step, "predictions", picture)
