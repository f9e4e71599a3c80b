"""TRL's SFTTrainer with what is measured here, and on a CPU a loss of answers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names that models give to what becomes of the head's scores afterwards.
_SCORES_CHANGE = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def trainer_class(base: PreTrainedModel) -> Any:
    """Return the trainer's class for a base model; a factory, as TRL is imported when needed.

    Held-out rows are scored over all of their answered tokens, by all processes together: the loss
    is what one process would find, and the share of tokens that are the most likely ones stands
    beside it (`eval_held_out_loss`, `eval_held_out_accuracy`; in training `accuracy`).
    """
    import torch
    from trl.trainer.sft_trainer import SFTTrainer

    class MeasuredTrainer(SFTTrainer):
        """The share of right tokens of the training rows is TRL's own, the mean of all passes.

        `measured` gives more numbers for the log, of the trainer's state.
        """

        measured: Callable[[Any], dict[str, float]]

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            told = self._metrics["train"].get("mean_token_accuracy")
            if "loss" in logs:
                logs |= self.measured(self.state)
            if "loss" in logs and told:
                logs["accuracy"] = sum(told) / len(told)
            super().log(logs, start_time)

        def scores(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any, Any]:
            """Return the sum of the losses, how many tokens are right, and how many answered."""
            found = model(**inputs, use_cache=False, fused_lm_head=True)
            return -found.log_probs.sum(), found.is_top1.sum(), found.label_mask.sum()

        def evaluation_loop(
            self,
            dataloader: Any,
            description: str,
            prediction_loss_only: bool | None = None,
            ignore_keys: list[str] | None = None,
            metric_key_prefix: str = "eval",
        ) -> Any:
            from transformers.trainer_utils import EvalLoopOutput

            model: Any = self.model
            model.eval()
            totals = torch.zeros(3, dtype=torch.float64, device=self.args.device)
            for inputs in dataloader:
                prepared = self._prepare_inputs(inputs)
                with torch.no_grad(), self.compute_loss_context_manager():
                    found = self.scores(model, prepared)
                totals += torch.stack([each.double() for each in found])
            loss, right, answered = self.accelerator.reduce(totals, "sum").tolist()
            metrics = {
                f"{metric_key_prefix}_loss": loss / answered,
                f"{metric_key_prefix}_accuracy": right / answered,
            }
            nothing: Any = None
            return EvalLoopOutput(nothing, nothing, metrics, len(dataloader.dataset))

    if torch.cuda.is_available() or _changes_scores(base):
        return MeasuredTrainer

    class AnswerTrainer(MeasuredTrainer):
        """The loss computed at the answers' positions only.

        TRL's fused head does that with Triton alone: elsewhere it scores every position of the
        prompt too and drops the result, half of the time with a model as small as the embedded one.
        """

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            model: Any = self.model
            _score_answers(model.get_base_model())
            self._right = torch.zeros(2, dtype=torch.int64)  # right and answered, since a log line

        def scores(self, model: Any, inputs: dict[str, Any]) -> tuple[Any, Any, Any]:
            # Padding follows the text and attention looks back only, so no mask is needed.
            found: tuple[Any, Any, Any] = model(
                input_ids=inputs["input_ids"],
                position_ids=inputs.get("position_ids"),
                labels=inputs["labels"],
                answers_only=True,
            )
            return found

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            total, right, answered = self.scores(model, inputs)
            self._right += torch.stack([right, answered])
            # Of the whole step, in all processes; gradients are averaged over them.
            return total / num_items_in_batch * self.accelerator.num_processes

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                right, answered = self.accelerator.reduce(self._right, "sum").tolist()
                logs["accuracy"] = right / max(answered, 1)
                self._right.zero_()
            super().log(logs, start_time)

    return AnswerTrainer


def _changes_scores(base: PreTrainedModel) -> bool:
    config: Any = base.config.get_text_config()
    return any(getattr(config, name, None) not in (None, 1.0) for name in _SCORES_CHANGE)


def _score_answers(causal: Any) -> None:
    """Teach `causal` the call (..., labels, answers_only=True); others stay as they are.

    Part of its forward, so that what is wrapped around it (several processes, autocast, PEFT) sees
    the call. It returns the sum of the answered tokens' losses, how many of them are the most
    likely ones, and how many there are.
    """
    import torch

    forward = causal.forward

    def score(*given: Any, answers_only: bool = False, **named: Any) -> Any:
        if not answers_only:
            return forward(*given, **named)
        answers = named.pop("labels")[:, 1:]
        hidden = causal.base_model(*given, **named, use_cache=False).last_hidden_state
        answered = answers != -100
        scores = causal.get_output_embeddings()(hidden[:, :-1][answered]).float()
        right = answers[answered]
        loss = torch.nn.functional.cross_entropy(scores, right, reduction="sum")
        return loss, (scores.detach().argmax(-1) == right).sum(), answered.sum()

    causal.forward = score
