# SPDX-License-Identifier: Apache-2.0
"""Compatibility terms beside any loss of `SentenceTransformerTrainer`.

The trainer calls a loss with tokenised columns and labels, and tokenises every column that is no
label. So the numbers of the training rows are taken out before it does, and travel on among the
features of the text column that they belong to; the label column stays free.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fclearn.integrations.terms import CompatTerms

#: Key of the row numbers among the features of a text column.
ROWS = "fcl_rows"
_EMBEDDING = "sentence_embedding"


class CompatLoss(nn.Module):
    """Your own loss and compatibility terms, as one loss of `SentenceTransformerTrainer`.

    Returns its parts by name, which the trainer adds up and logs: those of your loss (``"own"`` if
    it is one number) and ``"compat/NAME"`` for each term, averaged over the columns with rows.

    Embeddings that your loss computes are used again. Where they cannot be (losses that merge
    columns or cache gradients, ``Cached…Loss``) the model runs once more on the columns with rows,
    the whole batch at a time.

    Args:
        model: The `SentenceTransformer` that is trained.
        loss: Your loss over it; None: the terms alone.
        terms: Compatibility terms, over the rows that `pass_rows` makes the trainer pass on.

    Raises:
        ValueError: In training, a batch without row numbers. Evaluation on data without them gives
            your own loss alone, if there is one.

    Note:
        The trainer saves the model and not its losses: what terms *train* or remember starts anew
        when it resumes, and is not averaged over processes. The terms of ``l2``, ``ni-fcl`` and
        ``bct`` have nothing of the kind.

    Example:
        >>> import torch
        >>> from fclearn.losses import L2CompatLoss, LossTerm
        >>> class Model(nn.Module):  # stands for a SentenceTransformer
        ...     def forward(self, features):
        ...         return {"sentence_embedding": features["input_ids"].float()}
        >>> terms = CompatTerms([LossTerm("own", 1.0, L2CompatLoss(torch.eye(3)))], torch.arange(3))
        >>> loss = CompatLoss(Model(), None, terms)
        >>> text = {"input_ids": torch.tensor([[1, 0, 0, 7]]), "fcl_rows": torch.tensor([0])}
        >>> loss([text])
        {'compat/own': tensor(0.)}
    """

    def __init__(self, model: nn.Module, loss: nn.Module | None, terms: CompatTerms) -> None:
        super().__init__()
        # The trainer puts its wrapped model in place of what has this name, here and in `loss`.
        self.model = model
        self.loss = loss
        self.terms = terms

    def forward(
        self, sentence_features: Iterable[Mapping[str, Any]], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Parts of the loss by name, scalars."""
        columns = [dict(features) for features in sentence_features]
        rows = {n: column.pop(ROWS) for n, column in enumerate(columns) if ROWS in column}
        if not rows and (torch.is_grad_enabled() or self.loss is None):
            raise ValueError(
                "rows: expected the numbers of the training rows beside a text column, got none; "
                "call pass_rows(trainer, COLUMN) before trainer.train()"
            )
        untouched = [dict(column) for column in columns]  # models write into what they are given
        values, embedded = self._own(columns, labels)
        for number, numbers in rows.items():
            embeddings = embedded.get(number)
            if embeddings is None:
                embeddings = self.model(untouched[number])[_EMBEDDING]
            for name, value in self.terms.values(embeddings, numbers).items():
                key = f"compat/{name}"
                share = value / len(rows)
                values[key] = values[key] + share if key in values else share
        return values

    def _own(
        self, columns: list[dict[str, Any]], labels: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """The parts of one's own loss, and the embeddings it made, by number of the column."""
        if self.loss is None:
            return {}, {}
        embedded: dict[int, Tensor] = {}
        training = torch.is_grad_enabled()

        def note(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            for number, column in enumerate(columns):
                if not inputs or inputs[0] is not column:
                    continue
                found = output[_EMBEDDING]
                # Losses over several widths (Matryoshka) pass the whole one first.
                narrower = number in embedded and found.shape[1] <= embedded[number].shape[1]
                if not narrower and (found.requires_grad or not training):
                    embedded[number] = found

        hook = self.model.register_forward_hook(note)
        try:
            own = self.loss(columns, labels)
        finally:
            hook.remove()
        return dict(own) if isinstance(own, Mapping) else {"own": own}, embedded


class RowCollator:
    """A data collator that passes on row numbers, around the trainer's own; see `pass_rows`.

    Args:
        collator: The trainer's own.
        rows: Column with row numbers of the first text column; or by name of the text column.

    Raises:
        TypeError: Row numbers that are no integers.
        ValueError: A text column that the data set lacks.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        rows: str | Mapping[str, str],
    ) -> None:
        self.collator = collator
        self.rows = rows if isinstance(rows, str) else dict(rows)

    @property
    def valid_label_columns(self) -> Sequence[str]:
        """Which columns are labels: the trainer asks for it."""
        found: Sequence[str] = getattr(self.collator, "valid_label_columns", ())
        return found

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch."""
        taken = _columns(self.rows)
        batch = self.collator(
            [{key: x for key, x in one.items() if key not in taken} for one in features]
        )
        if not features:
            return batch
        names = [key for key in features[0] if key not in taken and key != "dataset_name"]
        texts = [key for key in names if key not in self.valid_label_columns]
        pairs = dict.fromkeys(texts[:1], self.rows) if isinstance(self.rows, str) else self.rows
        for text, column in pairs.items():
            if column not in features[0]:
                continue  # of another data set: whether it needs rows, the loss knows
            if text not in texts:
                raise ValueError(f"rows: expected a text column among {texts}, got {text!r}")
            batch[f"{text}_{ROWS}"] = torch.tensor(
                [_number(one[column], column) for one in features]
            )
        return batch


def pass_rows(trainer: Any, rows: str | Mapping[str, str] = "row") -> None:
    """Make a trainer pass row numbers of its data set on to `CompatLoss`; call it before training.

    Args:
        trainer: A `SentenceTransformerTrainer`, whose loss, or some of whose losses, are
            `CompatLoss`.
        rows: Column of the data set that says which old feature is that of the first text column;
            or, for other text columns, row column by text column:
            ``{"anchor": "anchor_row", "positive": "positive_row"}``.

    Raises:
        ValueError: No `CompatLoss`, or a training set without the column.
    """
    losses = trainer.loss if isinstance(trainer.loss, dict) else {"": trainer.loss}
    compat = {name: loss for name, loss in losses.items() if isinstance(loss, CompatLoss)}
    if not compat:
        raise ValueError(
            f"trainer: expected a CompatLoss as its loss, got {type(trainer.loss).__name__}"
        )
    data = trainer.train_dataset
    for name, columns in _column_names(data).items():
        missing = sorted(_columns(rows) - set(columns))
        if missing and ("" in compat or name in compat):
            raise ValueError(
                f"train_dataset: expected a column {missing[0]!r} with row numbers among the old "
                f"features, got columns {list(columns)}"
            )
    trainer.data_collator = RowCollator(trainer.data_collator, rows)
    following = [loss.terms for loss in compat.values() if loss.terms.follows_epochs]
    if following:
        trainer.add_callback(_epoch_callback(following))


def _columns(rows: str | Mapping[str, str]) -> set[str]:
    return {rows} if isinstance(rows, str) else set(rows.values())


def _column_names(data: Any) -> dict[str, Sequence[str]]:
    """Columns by name of the data set; streams may not know theirs."""
    found = getattr(data, "column_names", None)
    if isinstance(found, dict):
        return {name: columns for name, columns in found.items() if columns is not None}
    return {} if found is None else {"": found}


def _number(value: Any, column: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"rows: expected integers in column {column!r}, got {value!r}") from None


def _epoch_callback(following: Sequence[CompatTerms]) -> Any:
    # Here, not above: the loss itself needs nothing but torch.
    from transformers import TrainerCallback  # noqa: PLC0415

    class EpochCallback(TrainerCallback):  # type: ignore[misc]
        """Tells terms that change between epochs which one begins."""

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **_more: Any) -> None:  # noqa: ARG002
            for terms in following:
                terms.begin_epoch(int(state.epoch) + 1, max(1, round(args.num_train_epochs)))

    return EpochCallback()
