"""MonitorCallback in the Hugging Face Trainer: it logs what a loop over the data finds, and changes no number."""

from __future__ import annotations

import base64
import copy
import functools
import io
import json
import logging
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import heavytail
from heavytail.errors import SpecError
from heavytail.metrics import FrequencyGroups
from heavytail.monitor.journal import Journal, read_journal

transformers = pytest.importorskip("transformers", reason="pip install transformers accelerate")
pytest.importorskip("accelerate", reason="pip install transformers accelerate")

from heavytail.monitor.hf import FrequencyLoss, MonitorCallback  # noqa: E402

CLASSES, LENGTH = 12, 7
TINY = {"vocab_size": CLASSES, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
# The frameworks' own deprecations and advice are no errors of ours.
pytestmark = pytest.mark.filterwarnings("ignore")


# -- models of each class, with rows of data -------------------------------------------------------------------------


def tokens(number: int, seed: int = 0, classes: int = CLASSES) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(number, LENGTH, generator=generator) ** 3 * classes).long()


def causal_rows(number: int = 16, seed: int = 0) -> list[dict[str, Tensor]]:
    """Sequences with their first two labels ignored."""
    rows = []
    for sequence in tokens(number, seed):
        labels = sequence.clone()
        labels[:2] = -100
        rows.append({"input_ids": sequence, "labels": labels})
    return rows


def gpt2(dropout: float = 0.0) -> Any:
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config = transformers.GPT2Config(vocab_size=CLASSES, **sizes, **drops, **NO_TOKENS)
    model = transformers.GPT2LMHeadModel(config)
    model.lm_head.weight.data.mul_(20)
    return model


def bert_config(**more: Any) -> Any:
    return transformers.BertConfig(**TINY, intermediate_size=16, max_position_embeddings=8, pad_token_id=0, **more)


def bert_classifier() -> tuple[Any, list[Any]]:
    rows = [{"input_ids": row, "labels": row[0] % 5} for row in tokens(16)]
    return transformers.BertForSequenceClassification(bert_config(num_labels=5)), rows


def bert_tagger() -> tuple[Any, list[Any]]:
    rows = [{"input_ids": row, "labels": row % 5} for row in tokens(16)]
    return transformers.BertForTokenClassification(bert_config(num_labels=5)), rows


def bert_masked() -> tuple[Any, list[Any]]:
    rows = causal_rows()
    for row in rows:
        row["labels"][4:] = -100
    return transformers.BertForMaskedLM(bert_config()), rows


def mixtral() -> tuple[Any, list[Any]]:
    sizes = {"num_key_value_heads": 1, "intermediate_size": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = transformers.MixtralConfig(
        **TINY, **sizes, **NO_TOKENS, output_router_logits=True, router_aux_loss_coef=1.0
    )
    return transformers.MixtralForCausalLM(config), causal_rows()


def gemma2() -> tuple[Any, list[Any]]:
    sizes = {"num_key_value_heads": 1, "intermediate_size": 8, "head_dim": 4, "final_logit_softcapping": 0.5}
    model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**TINY, **sizes, **NO_TOKENS))
    return model, causal_rows()


def t5() -> tuple[Any, list[Any]]:
    config = transformers.T5Config(
        vocab_size=CLASSES, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config)
    rows = [{**row, "decoder_input_ids": model._shift_right(row["input_ids"][None])[0]} for row in causal_rows()]
    return model, rows


def lora() -> tuple[Any, list[Any]]:
    peft = pytest.importorskip("peft", reason="pip install peft")
    settings = peft.LoraConfig(r=2, target_modules=["c_attn", "lm_head"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    return peft.get_peft_model(gpt2(), settings), causal_rows()


MODELS: dict[str, tuple[Callable[[], tuple[Any, list[Any]]], dict[str, Any]]] = {
    "gpt2": (lambda: (gpt2(), causal_rows()), {}),
    "gpt2 dropout": (lambda: (gpt2(0.1), causal_rows()), {}),
    "gpt2 accumulated": (lambda: (gpt2(), causal_rows()), {"gradient_accumulation_steps": 2}),
    "gpt2 smoothed": (lambda: (gpt2(), causal_rows()), {"label_smoothing_factor": 0.3}),
    "gpt2 smoothed, accumulated": (
        lambda: (gpt2(), causal_rows()),
        {"label_smoothing_factor": 0.3, "gradient_accumulation_steps": 2},
    ),
    "gpt2 bf16": (lambda: (gpt2(), causal_rows()), {"bf16": True}),
    "gpt2 checkpointed": (lambda: (gpt2(), causal_rows()), {"gradient_checkpointing": True}),
    "gpt2 compiled": (
        lambda: (gpt2(), causal_rows()),
        {"torch_compile": True, "torch_compile_backend": "aot_eager", "dataloader_drop_last": True},
    ),
    "bert classifier": (bert_classifier, {}),
    "bert classifier smoothed": (bert_classifier, {"label_smoothing_factor": 0.2}),
    "bert masked": (bert_masked, {}),
    "bert tagger": (bert_tagger, {}),
    "mixtral": (mixtral, {}),
    "mixtral accumulated": (mixtral, {"gradient_accumulation_steps": 2}),
    "gemma2": (gemma2, {}),
    "t5": (t5, {}),
    "t5 smoothed": (t5, {"label_smoothing_factor": 0.1}),
    "lora": (lora, {}),
}


def make_trainer(
    folder: Path, model: Any, rows: list[Any], *, lr: float = 0.01, callbacks: Any = (), **more: Any
) -> Any:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4 // more.get("gradient_accumulation_steps", 1),
        "per_device_eval_batch_size": 3,
        "num_train_epochs": 2,
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "logging_steps": 2,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        "remove_unused_columns": False,
    }
    parts = ("eval_dataset", "compute_metrics", "compute_loss_func", "data_collator")
    others = {k: more.pop(k) for k in parts if k in more}
    arguments = transformers.TrainingArguments(**(settings | more))
    others.setdefault("eval_dataset", rows)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=list(callbacks), **others)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def all_numbers(trainer: Any) -> tuple[Tensor, list[dict[str, float]]]:
    """Weights, and what was logged without the monitor's entries and what the clock decides."""
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    clock = ("runtime", "per_second", "_time")
    history = [
        {k: v for k, v in entry.items() if "/" not in k and not k.endswith(clock)}
        for entry in trainer.state.log_history
    ]
    return weights, history


# -- it changes nothing ----------------------------------------------------------------------------------------------


HEADS = ("gpt2", "gpt2 accumulated", "gpt2 smoothed", "gpt2 compiled", "mixtral", "t5")  # with their statistics, too


@pytest.mark.parametrize(("name", "head"), [(name, False) for name in MODELS] + [(name, True) for name in HEADS])
def test_training_is_the_same_bit_for_bit(tmp_path: Path, name: str, head: bool) -> None:
    """With the callback every weight and every number that the Trainer logs is what it is without, and it measures."""
    make, settings = MODELS[name]
    results = []
    for with_it in (False, True):
        torch.manual_seed(0)
        torch.compiler.reset()
        model, rows = make()
        callback = MonitorCallback(num_groups=3, head=head)
        trainer = make_trainer(tmp_path, model, rows, callbacks=[callback] if with_it else [], **settings)
        trainer.train()
        results.append(all_numbers(trainer))
    assert callback.stopped is None
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=0)
    assert results[1][1] == results[0][1]
    logged = trainer.state.log_history
    assert any("loss/group_01" in entry for entry in logged)
    assert any("eval_loss/group_01" in entry for entry in logged)
    assert any("grad_norm/group_01" in entry for entry in logged) == head


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_logs_what_a_loop_finds(tmp_path: Path, accumulate: int, every: int) -> None:
    """Shifted labels, -100, accumulated batches, training and evaluation: log_history has the loop's numbers."""
    torch.manual_seed(0)
    callback = MonitorCallback(num_groups=3, every=every, journal=heavytail.Journal(tmp_path / "journal"))
    trainer = make_trainer(
        tmp_path, gpt2(), causal_rows(), lr=0.0, callbacks=[callback], gradient_accumulation_steps=accumulate,
        logging_steps=4,
    )  # fmt: skip
    trainer.train()
    by_group, overall = expected_losses(trainer)
    train = [entry for entry in trainer.state.log_history if "loss/group_01" in entry]
    test = [entry for entry in trainer.state.log_history if "eval_loss/group_01" in entry]
    assert len(train) == len(test) == 2
    for entries, prefix in ((train, ""), (test, "eval_")):
        for entry in entries if every == 1 or prefix else ():
            values = [entry[f"{prefix}loss/group_{g:02d}"] for g in range(1, len(by_group) + 1)]
            np.testing.assert_allclose(values, by_group, rtol=1e-5)
            assert entry[f"{prefix}loss/all"] == pytest.approx(overall, rel=1e-5)
            assert 0 < entry[f"{prefix}p_correct/all"] < 1
    tracks, count, _ = read_journal(tmp_path / "journal")
    assert tracks["train"].step.tolist() == [4, 8]
    assert tracks["eval"].step.tolist() == [4, 8]
    assert count.sum() == 2 * 16 * (LENGTH - 2)  # labels of the steps that are not measured count for the cut, too


def expected_losses(trainer: Any) -> tuple[list[float], float]:
    """Mean loss of each group and overall, over the whole data, by a loop; groups of the labels themselves."""
    losses: list[list[float]] = [[] for _ in range(CLASSES)]
    model = trainer.model.eval()
    for row in trainer.train_dataset:
        with torch.no_grad():
            logits = model(input_ids=row["input_ids"][None]).logits[0].double()
        for position, label in enumerate(row["labels"].tolist()[1:]):
            if label != -100:
                losses[label].append(-logits[position].log_softmax(0)[label].item())
    groups = FrequencyGroups.from_counts([len(rows) for rows in losses], 3)
    members = [np.flatnonzero(groups.index == g) for g in range(groups.num_groups)]
    by_group = [float(np.mean([loss for k in classes for loss in losses[k]])) for classes in members]
    return by_group, float(np.mean([loss for rows in losses for loss in rows]))


@pytest.mark.parametrize("name", ["bert classifier", "bert masked", "bert tagger", "t5"])
def test_labels_of_other_models_are_not_shifted(tmp_path: Path, name: str) -> None:
    """Classifiers, masked models, taggers and encoder-decoders predict the label of their own position."""
    torch.manual_seed(0)
    model, rows = MODELS[name][0]()
    callback = MonitorCallback(num_groups=2)
    trainer = make_trainer(tmp_path, model, rows, lr=0.0, callbacks=[callback])
    metrics = trainer.evaluate()
    batch = {k: torch.stack([row[k] for row in rows]) for k in rows[0]}
    with torch.no_grad():
        logits = trainer.model.eval()(**{k: v for k, v in batch.items() if k != "labels"}, labels=None).logits
    expected = F.cross_entropy(logits.flatten(0, -2).double(), batch["labels"].flatten())
    assert metrics["eval_loss/all"] == pytest.approx(expected.item(), rel=1e-5)


# -- evaluations -----------------------------------------------------------------------------------------------------


def test_evaluations_do_not_leak_into_each_other(tmp_path: Path) -> None:
    """`predict`, another prefix and several eval sets each have their own numbers under the Trainer's own prefix."""
    torch.manual_seed(0)
    a, b = causal_rows(10, 1), causal_rows(10, 2)
    callback = MonitorCallback(num_groups=3, journal=heavytail.Journal(tmp_path / "journal"))
    trainer = make_trainer(tmp_path, gpt2(), causal_rows(), lr=0.0, callbacks=[callback], eval_dataset={"a": a, "b": b})
    trainer.train()
    alone = {}
    for name, rows in (("a", a), ("b", b)):
        other = MonitorCallback(num_groups=3)
        alone[name] = make_trainer(tmp_path, trainer.model, rows, callbacks=[other]).evaluate()["eval_loss/all"]
    assert alone["a"] != alone["b"]
    logged: dict[str, float] = {}
    for entry in trainer.state.log_history:
        logged |= entry
    assert logged["eval_a_loss/all"] == pytest.approx(alone["a"], rel=1e-9)
    assert logged["eval_b_loss/all"] == pytest.approx(alone["b"], rel=1e-9)
    assert not {name for name in logged if name.startswith("eval_loss")}
    assert trainer.predict(b).metrics["test_loss/all"] == pytest.approx(alone["b"], rel=1e-9)
    assert trainer.evaluate(a)["eval_loss/all"] == pytest.approx(alone["a"], rel=1e-9)
    assert trainer.evaluate(b, metric_key_prefix="held")["held_loss/all"] == pytest.approx(alone["b"], rel=1e-9)
    assert {"train", "eval", "eval_a", "eval_b", "test", "held"} == set(read_journal(tmp_path / "journal")[0])


def test_the_best_model_is_chosen_as_without_it(tmp_path: Path) -> None:
    """A metric for the best model that does not exist without the monitor does not exist with it."""
    for callbacks in ([], [MonitorCallback()]):
        trainer = make_trainer(
            tmp_path, gpt2(), causal_rows(), callbacks=callbacks, eval_dataset={"a": causal_rows(4)},
            load_best_model_at_end=True, metric_for_best_model="eval_loss", save_strategy="epoch",
        )  # fmt: skip
        with pytest.raises(KeyError, match="eval_loss"):
            trainer.train()


def test_a_users_own_log_is_left_alone(tmp_path: Path) -> None:
    """What a user logs under names like eval_x, or a loss of its own, neither resets the sums nor gets entries."""

    class Chatty(transformers.TrainerCallback):  # type: ignore[name-defined, misc]
        trainer: Any = None

        def on_step_begin(self, *_: Any, **__: Any) -> None:  # in on_step_end it cancels the Trainer's own
            self.trainer.log({"eval_x": 1.0})
            self.trainer.log({"loss": 2.0})

    chatty, callback = Chatty(), MonitorCallback(num_groups=3)
    trainer = make_trainer(tmp_path, gpt2(), causal_rows(), callbacks=[callback, chatty], logging_steps=4)
    chatty.trainer = trainer
    trainer.train()
    own = [entry for entry in trainer.state.log_history if "eval_x" in entry or entry.get("loss") == 2.0]
    assert len(own) == 16
    assert not any("/" in name for entry in own for name in entry)
    assert callback.readings["train"].count.sum() == 16 * (LENGTH - 2)


# -- the first batch -------------------------------------------------------------------------------------------------


def stopped(tmp_path: Path, model: Any, rows: list[Any], caplog: Any, **settings: Any) -> str:
    """Train with a callback that is expected to stop; return its reason, after checking that training was the same."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    callback = MonitorCallback(**settings)
    with caplog.at_level(logging.WARNING, "heavytail"):
        trainer = make_trainer(tmp_path, model, rows, callbacks=[callback])
        trainer.train()
    first = all_numbers(trainer)
    model.load_state_dict(state)
    other = make_trainer(tmp_path, model, rows)
    other.train()
    second = all_numbers(other)
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    assert first[1] == second[1]
    assert not any("loss/group_01" in entry for entry in trainer.state.log_history)
    assert callback.stopped is not None
    assert "the monitor stops, training goes on" in caplog.text
    return callback.stopped


def test_a_wrong_shift_is_diagnosed(tmp_path: Path, caplog: Any) -> None:
    """A shift that the model does not make stops the monitoring with the remedy, not the training."""
    reason = stopped(tmp_path, gpt2(), causal_rows(), caplog, shift=False)
    assert "labels that are shifted: pass shift=True" in reason
    model, rows = bert_tagger()
    assert "labels that are not shifted: pass shift=False" in stopped(tmp_path, model, rows, caplog, shift=True)


def test_a_loss_with_more_terms_is_diagnosed(tmp_path: Path, caplog: Any) -> None:
    """A model that adds something of its own to the loss is not monitored, unless check=False asks for it."""

    class Penalised(transformers.GPT2LMHeadModel):  # type: ignore[name-defined, misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output["loss"] = output["loss"] + 0.1 * self.lm_head.weight.square().sum()
            return output

    def make() -> Any:
        torch.manual_seed(0)
        return Penalised(gpt2().config)

    assert "a loss with more terms than cross-entropy: pass check=False" in stopped(
        tmp_path, make(), causal_rows(), caplog
    )
    callback = MonitorCallback(check=False)
    make_trainer(tmp_path, make(), causal_rows(), callbacks=[callback]).train()
    assert "train" in callback.readings


def test_regression_is_refused(tmp_path: Path, caplog: Any) -> None:
    """Labels that are no classes stop the monitoring with a reason."""
    model = transformers.BertForSequenceClassification(bert_config(num_labels=1))
    rows = [{"input_ids": row, "labels": row[0].float()} for row in tokens(16)]
    assert "expected classes, got torch.float32" in stopped(tmp_path, model, rows, caplog)


# -- errors of its own -----------------------------------------------------------------------------------------------


class Unlabelled(nn.Module):
    """A model that forms its loss without the labels, whatever these are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = gpt2()

    def forward(self, input_ids: Tensor, **_: Any) -> dict[str, Tensor]:
        return {"loss": self.model(input_ids=input_ids, labels=input_ids).loss}


LABELS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "list of dicts": (
        lambda ids: [{"class_labels": row} for row in ids],
        "labels: expected a tensor of classes, got list",
    ),
    "tuple": (tuple, "labels: expected a tensor of classes, got"),
    "dict": (lambda ids: {"classes": ids}, "labels: expected a tensor of classes, got dict"),
    "none": (lambda ids: None, "labels: expected them in the batch, got input_ids, labels"),
    "floating": (lambda ids: ids.float(), "labels: expected classes, got torch.float32"),
    "other shape": (lambda ids: ids[:, :3], "head: expected a Linear"),
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("labels", LABELS)
def test_labels_of_any_kind_end_no_training(tmp_path: Path, labels: str, every: int) -> None:
    """With labels that are no classes training is bit for bit that without the callback, which says why it stopped."""
    form, reason = LABELS[labels]

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Any]:
        ids = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": form(ids)}

    results = []
    callback = MonitorCallback(every=every, counts=range(1, CLASSES + 1))
    for given in ([], [callback]):
        trainer = make_trainer(
            tmp_path, Unlabelled(), causal_rows(), callbacks=given, data_collator=collate, eval_strategy="no"
        )
        trainer.train()
        results.append(all_numbers(trainer))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    assert results[0][1] == results[1][1]
    assert callback.stopped is not None
    assert callback.stopped.startswith(reason)


def raise_type_error(*_: Any) -> Any:
    raise TypeError("made up")


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("what", ["transform", "count", "reading", "update", "state"])
def test_no_error_of_the_monitor_ends_a_training(
    tmp_path: Path, what: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises inside the callback, training is bit for bit that without it, and it says why it stopped."""
    transform = raise_type_error if what == "transform" else None
    results = []
    callback = MonitorCallback(every=every, head=True, transform=transform)
    more: dict[str, Any] = {"save_strategy": "no" if transform else "steps", "save_steps": 3, "eval_strategy": "no"}
    if what == "reading":
        monkeypatch.setattr(callback.alarms, "check", raise_type_error)
    for given in ([], [callback]):
        torch.manual_seed(0)
        model: Any = Fused(gpt2()) if what == "transform" else gpt2()
        trainer = make_trainer(tmp_path, model, causal_rows(), callbacks=given, **more)
        if given and what in ("count", "state"):
            monkeypatch.setattr(heavytail.Monitor, {"count": "count", "state": "state_dict"}[what], raise_type_error)
        if given and what == "update":
            monkeypatch.setattr("heavytail.monitor.head_watch.HeadWatch._after_step", raise_type_error)
        trainer.train()
        results.append(all_numbers(trainer))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    assert results[0][1] == results[1][1]
    assert callback.stopped == (None if (what, every) == ("count", 1) else "TypeError: made up")


# -- models without logits -------------------------------------------------------------------------------------------


class Fused(nn.Module):
    """A head in the manner of Liger and TRL: the loss comes from its inputs and weight, and no logits are returned."""

    def __init__(self, model: Any, change: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        self.model, self.change, self.config = model, change, model.config
        self.loss_type, self.base_model = "ForCausalLM", model.base_model

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> dict[str, Tensor]:
        hidden = self.model.base_model(input_ids=input_ids).last_hidden_state
        head = self.get_output_embeddings()
        loss = input_ids.new_zeros((), dtype=torch.float32)
        for h, y in zip(hidden, labels, strict=True):  # type: ignore[arg-type]
            logits = self.change(F.linear(h[:-1], head.weight))
            loss = loss + F.cross_entropy(logits, y[1:], reduction="sum")
        return {"loss": loss / (labels[:, 1:] != -100).sum()}  # type: ignore[index]


@pytest.mark.parametrize("compiled", [False, True])
def test_without_logits_the_head_is_measured(tmp_path: Path, compiled: bool) -> None:
    """Where the model returns a loss only, the readings are those of the logits that its head would have formed."""
    torch.manual_seed(0)
    torch.compiler.reset()
    model = gpt2()
    callback = MonitorCallback(num_groups=3)
    more = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
    trainer = make_trainer(
        tmp_path, Fused(model), causal_rows(), lr=0.0, callbacks=[callback], logging_steps=4, save_strategy="no", **more
    )
    trainer.train()
    assert callback.stopped is None
    trainer.model = model
    by_group, _ = expected_losses(trainer)
    np.testing.assert_allclose(callback.readings["train"].loss, by_group, rtol=1e-5)


@pytest.mark.parametrize("known", ["configured", "given", "unknown"])
def test_softcapped_heads_without_logits(tmp_path: Path, known: str, caplog: Any) -> None:
    """A softcap is taken from the configuration or `transform`; one that is not known is found at the first batch."""
    torch.manual_seed(0)
    cap = 0.5

    def change(logits: Tensor) -> Tensor:
        return cap * torch.tanh(logits / cap)

    model = gpt2()
    if known == "configured":
        model.config.final_logit_softcapping = cap
    callback = MonitorCallback(num_groups=3, transform=change if known == "given" else None)
    make_trainer(tmp_path, Fused(model, change), causal_rows(), lr=0.0, callbacks=[callback]).train()
    if known == "unknown":
        assert callback.stopped is not None
        assert "caps, scales" in callback.stopped
    else:
        assert callback.stopped is None
        assert callback.readings["train"].overall["loss"] < math.log(CLASSES) + 2 * cap


def test_sft_trainer(tmp_path: Path) -> None:
    """TRL's fused head, with nll and with dft: trained the same bit for bit, and measured without logits."""
    trl = pytest.importorskip("trl", reason="pip install trl")
    datasets = pytest.importorskip("datasets", reason="pip install trl")
    rows = datasets.Dataset.from_dict({"input_ids": tokens(16).tolist(), "labels": tokens(16).tolist()})
    tokenizer = word_tokenizer()
    for loss in ("nll", "dft"):
        results = []
        for with_it in (False, True):
            torch.manual_seed(0)
            callback = MonitorCallback(num_groups=3)
            arguments = trl.SFTConfig(
                str(tmp_path), loss_type=loss, per_device_train_batch_size=4, num_train_epochs=1, logging_steps=2,
                report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no", bf16=False, learning_rate=0.01,
                gradient_checkpointing=False, seed=0, max_length=None,
            )  # fmt: skip
            trainer = trl.SFTTrainer(
                gpt2(), arguments, train_dataset=rows, processing_class=tokenizer,
                callbacks=[callback] if with_it else [],
            )  # fmt: skip
            trainer.train()
            results.append(all_numbers(trainer))
        assert callback.stopped is None
        torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=0)
        assert results[1][1] == results[0][1]
        assert callback.readings["train"].count.sum() == 8 * (LENGTH - 1)


def word_tokenizer() -> Any:
    """A tokenizer of twelve words, made here."""
    import tokenizers

    vocabulary = {f"w{k}": k for k in range(CLASSES - 2)} | {"<pad>": CLASSES - 2, "<eos>": CLASSES - 1}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


# -- resuming, removing, the old name --------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", [False, True])
def test_a_resumed_training_continues_the_counts(tmp_path: Path, restore: bool) -> None:
    """Interrupted and resumed, the last reading, its counts and its groups are those without interruption."""

    def train(resume: bool) -> MonitorCallback:
        torch.manual_seed(0)
        callback = MonitorCallback(num_groups=3, every=2)
        trainer = make_trainer(
            tmp_path, gpt2(), causal_rows(), callbacks=[callback], save_strategy="steps", save_steps=3,
            restore_callback_states_from_checkpoint=restore, logging_steps=4,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        return callback

    whole, resumed = train(False), train(True)
    assert resumed.stopped is None
    for name in ("loss", "class_count", "count"):
        np.testing.assert_array_equal(getattr(resumed.readings["train"], name), getattr(whole.readings["train"], name))
    np.testing.assert_array_equal(resumed.readings["train"].groups.index, whole.readings["train"].groups.index)


def of_other_classes(state: dict[str, Any]) -> None:
    sums = heavytail.Monitor(5).state_dict()
    save_sums(state, {"train": sums, "test": sums})


def without_evaluation(state: dict[str, Any]) -> None:
    save_sums(state, {"train": load_sums(state)["train"]})


def without_a_sum(state: dict[str, Any]) -> None:
    sums = load_sums(state)
    del sums["train"]["seen"]
    save_sums(state, sums)


def damaged(state: dict[str, Any]) -> None:
    state["sums"] = state["sums"][:101]


def no_attributes(state: dict[str, Any]) -> None:
    state["sums"] = 3


def of_a_gpu(state: dict[str, Any]) -> None:
    """Tag the sums as torch does on a GPU."""
    source, target = io.BytesIO(base64.b64decode(state["sums"])), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                changed = content.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
                assert changed != content
                content = changed
            new.writestr(name, content)
    state["sums"] = base64.b64encode(target.getvalue()).decode()


def load_sums(state: dict[str, Any]) -> Any:
    return torch.load(io.BytesIO(base64.b64decode(state["sums"])), weights_only=True)


def save_sums(state: dict[str, Any], sums: Any) -> None:
    buffer = io.BytesIO()
    torch.save(sums, buffer)
    state["sums"] = base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "damage", [of_other_classes, without_evaluation, without_a_sum, damaged, no_attributes, of_a_gpu]
)
def test_a_checkpoint_that_does_not_fit_ends_no_training(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], caplog: Any
) -> None:
    """Resumed with sums of something else, training goes on and the callback says why it does not; a GPU's fit."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
    torch.manual_seed(0)
    make_trainer(tmp_path, gpt2(), causal_rows(), callbacks=[MonitorCallback()], max_steps=3, **settings).train()
    path = tmp_path / "checkpoint-3"
    state = json.loads((path / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["MonitorCallback"]
    damage((kept[0] if isinstance(kept, list) else kept)["attributes"])
    (path / "trainer_state.json").write_text(json.dumps(state))
    results = []
    callback = MonitorCallback()
    for given in ([], [callback]):
        trainer = make_trainer(tmp_path, gpt2(), causal_rows(), callbacks=given, eval_strategy="no")
        trainer.train(resume_from_checkpoint=str(path))
        results.append(all_numbers(trainer)[0])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert trainer.state.global_step == 8
    if damage is of_a_gpu:
        assert callback.stopped is None
    else:
        assert callback.stopped is not None
        wrong = "num_classes: expected 12" if damage is of_other_classes else "the checkpoint's sums: "
        assert callback.stopped.startswith(wrong)
        assert caplog.text.count("the monitor stops, training goes on") == 1


class Interfering(transformers.TrainerCallback):  # type: ignore[name-defined, misc]
    """Removes the monitor, raises, or saves the model, at the end of the second step."""

    def __init__(self, what: str, file: Path) -> None:
        self.what, self.file = what, file
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            if self.what == "removed":
                self.trainer.remove_callback(MonitorCallback)
            elif self.what == "raised":
                raise ZeroDivisionError
            torch.save(self.trainer.model, self.file)


@pytest.mark.parametrize(
    ("what", "late"),
    [(what, late) for what in ("trained", "evaluated", "removed", "raised in the model", "saved") for late in (0, 1)]
    + [("raised", 0)],
)
def test_nothing_stays_on_the_model(tmp_path: Path, what: str, late: int) -> None:
    """After training, evaluation, removal or an exception there is no hook; models saved at any time need no heavytail.

    Copies, too, are left alone. A callback added to a Trainer that exists is taken off after errors of the model.
    """
    file, callback = tmp_path / "model.pt", MonitorCallback(head=True)
    interfering = Interfering(what, file)
    trainer = make_trainer(tmp_path, gpt2(), causal_rows(), callbacks=[] if late else [callback])
    if late:
        trainer.add_callback(callback)
    trainer.add_callback(interfering)
    interfering.trainer = trainer
    if what == "raised in the model":
        trainer.model.lm_head.register_forward_hook(raise_type_error)
        with pytest.raises(TypeError, match="made up"):
            trainer.train()
        trainer.model.lm_head._forward_hooks.clear()
    elif what == "raised":
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    elif what == "evaluated":
        trainer.evaluate()
    else:
        trainer.train()
    assert callback.stopped is None
    assert not [name for name, module in trainer.model.named_modules() if module._forward_hooks]
    if not file.exists():
        torch.save(trainer.model, file)
    callback._armed = True
    for other in (copy.deepcopy(trainer.model), torch.load(file, weights_only=False)):
        other(input_ids=causal_rows()[0]["input_ids"][None])
        assert not callback._hidden
    if what in ("saved", "removed") and not late:
        load = f"import sys, torch; sys.modules['heavytail'] = None; torch.load({str(file)!r}, weights_only=False)"
        subprocess.run([sys.executable, "-c", load], check=True, timeout=300, cwd=tmp_path)


def test_the_trainer_gets_its_methods_back(tmp_path: Path) -> None:
    """After `remove_callback` its methods are its own again, once the first is called; added again, it measures."""
    first, second = MonitorCallback(), MonitorCallback(num_groups=2)
    trainer = make_trainer(tmp_path, gpt2(), causal_rows())
    own = trainer.log = functools.partial(type(trainer).log, trainer)  # set by somebody else
    first.attach(trainer)
    second.attach(trainer)
    trainer.remove_callback(first)
    trainer.train()
    assert not first.readings
    assert second.readings["train"].count.sum() > 0
    trainer.remove_callback(second)
    trainer.evaluate()
    trainer.evaluate()
    names = {"train", "compute_loss", "evaluation_loop", "log", "_save_checkpoint"}
    assert names & set(trainer.__dict__) == {"log"}
    assert trainer.log is own
    trainer.add_callback(first)
    trainer.train()
    assert first.readings["train"].count.sum() > 0


def test_a_journal_that_cannot_be_written_stops_alone(tmp_path: Path, caplog: Any) -> None:
    """Readings of another run in its folder are told once; training and its log go on with every entry."""
    for step in (1, 4):
        Journal(tmp_path / "j").write(step, _reading())
    callback = MonitorCallback(journal=Journal(tmp_path / "j"))
    trainer = make_trainer(tmp_path, gpt2(), causal_rows(), callbacks=[callback])
    trainer.train()
    assert caplog.text.count("the journal stops, training goes on") == 1
    assert "holds readings of another run" in caplog.text
    assert callback.stopped is None
    assert all("loss/group_01" in entry for entry in trainer.state.log_history if "learning_rate" in entry)


def _reading() -> heavytail.Reading:
    monitor = heavytail.Monitor(3, num_groups=1)
    monitor.update(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))
    return monitor.compute()


def test_removed_it_does_nothing(tmp_path: Path) -> None:
    """After `remove_callback` nothing is measured or logged any more."""
    callback = MonitorCallback()
    trainer = make_trainer(tmp_path, gpt2(), causal_rows(), callbacks=[callback])
    trainer.remove_callback(callback)
    trainer.train()
    assert not any("loss/group_01" in entry for entry in trainer.state.log_history)
    assert not callback.readings


@pytest.mark.parametrize("attach", [False, True])
def test_frequency_loss_is_the_callback(tmp_path: Path, attach: bool) -> None:
    """The former name warns, is never the loss function, and logs the same."""
    with pytest.warns(FutureWarning, match="MonitorCallback"):
        callback = FrequencyLoss(CLASSES, num_groups=3)
    trainer = make_trainer(tmp_path, gpt2(), causal_rows(), callbacks=[] if attach else [callback])
    if attach:
        callback.attach(trainer, through="loss")
        with pytest.raises(SpecError, match="through: expected 'loss' or 'hook', got 'both'"):
            callback.attach(trainer, through="both")
    assert trainer.compute_loss_func is None
    trainer.train()
    assert any("eval_loss/group_01" in entry for entry in trainer.state.log_history)


def test_bad_settings_are_refused_at_once() -> None:
    """Wrong arguments, those of the monitor included, are errors before any training."""
    for arguments, message in (
        ({"every": 0}, "every: expected at least 1"),
        ({"num_groups": 0}, "num_groups: expected at least 1"),
        ({"counts": [1, 2], "groups": [0, 1]}, "expected none beside counts"),
    ):
        with pytest.raises(SpecError, match=message):
            MonitorCallback(**arguments)  # type: ignore[arg-type]


def test_trackers_get_it(tmp_path: Path) -> None:
    """What the monitor adds reaches the callbacks that report to trackers, wherever they stand; here TensorBoard's."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    tracker = TensorBoardCallback(SummaryWriter(str(tmp_path / "tb")))
    make_trainer(tmp_path, gpt2(), causal_rows(), callbacks=[tracker, MonitorCallback()]).train()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert {"train/loss/group_01", "eval/loss/group_01"} <= set(events.Tags()["scalars"])
