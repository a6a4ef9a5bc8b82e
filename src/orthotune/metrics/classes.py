"""Scores of predicted classes, by scikit-learn: accuracy, F1 averaged over the classes, errors of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from orthotune.errors import RecipeError


def need_scikit_learn() -> Any:
    """``sklearn.metrics``.

    Raises:
        RecipeError: scikit-learn is not installed.
    """
    try:
        from sklearn import metrics
    except ModuleNotFoundError as missing:
        raise RecipeError(
            "scores of classes", got="no scikit-learn in this environment", do='Run pip install "orthotune[classify]"'
        ) from missing
    return metrics


def class_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of one class per example.

    Args:
        logits: [n, classes].
        labels: [n], int64.

    Returns:
        ``accuracy``; ``macro_f1``, the mean over the classes that occur; ``loss``, cross-entropy in nats per example.

    Example:
        >>> class_scores(torch.eye(2) * 20, torch.tensor([0, 1]))["accuracy"]
        1.0
    """
    metrics = need_scikit_learn()
    known, found = labels.tolist(), logits.argmax(-1).tolist()
    return {
        "accuracy": float(metrics.accuracy_score(known, found)),
        "macro_f1": float(metrics.f1_score(known, found, average="macro", zero_division=0.0)),
        "loss": functional.cross_entropy(logits.float(), labels).item(),
    }


def multi_label_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of any number of labels per example; a label is predicted where its probability is at least one half.

    Args:
        logits: [n, labels].
        labels: [n, labels] of 0 and 1.

    Returns:
        ``exact_match``, the share of examples with all labels right; ``macro_f1`` and ``micro_f1`` over the labels;
        ``loss``, binary cross-entropy in nats per label.

    Example:
        >>> multi_label_scores(torch.tensor([[9.0, -9.0]]), torch.tensor([[1.0, 0.0]]))["micro_f1"]
        1.0
    """
    metrics = need_scikit_learn()
    known, found = labels.int().numpy(), (logits >= 0).int().numpy()
    f1 = {
        f"{average}_f1": float(metrics.f1_score(known, found, average=average, zero_division=0.0))
        for average in ("macro", "micro")
    }
    loss = functional.binary_cross_entropy_with_logits(logits.float(), labels.float()).item()
    return {"exact_match": float((known == found).all(-1).mean()), **f1, "loss": loss}


def regression_scores(predicted: Tensor, wanted: Tensor) -> dict[str, float]:
    """Scores of predicted numbers.

    Args:
        predicted: [n].
        wanted: [n].

    Returns:
        ``loss``, the mean squared error; ``mean_absolute_error``; ``pearson``, the correlation, 0 where one side is
        constant or there is only one number.

    Example:
        >>> regression_scores(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.5]))["mean_absolute_error"]
        0.5
    """
    pair = torch.stack([predicted.double(), wanted.double()])
    varies = pair.shape[1] > 1 and bool((pair.std(1) > 0).all())
    return {
        "loss": functional.mse_loss(pair[0], pair[1]).item(),
        "mean_absolute_error": functional.l1_loss(pair[0], pair[1]).item(),
        "pearson": torch.corrcoef(pair)[0, 1].item() if varies else 0.0,
    }
