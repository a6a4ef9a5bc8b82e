from __future__ import annotations

import math

import pytest
import torch

from orthotune.metrics import text_loss
from orthotune.metrics.text_loss import TokenRow, mean_loss, nats_per_token, token_rows
from tests.support.tiny_text import make_model, make_tokenizer

TEXTS = ["a short one", "a text that is a good deal longer than the other one", "mid length text"]


def test_every_token_but_the_first_is_predicted_once() -> None:
    tokenizer = make_tokenizer()
    rows = token_rows(tokenizer, TEXTS, max_length=8)
    whole = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    assert max(len(row.input_ids) for row in rows) == 8
    predicted = [token for row in rows for token in row.input_ids[1:]]
    assert predicted == [token for ids in whole for token in ids[1:]]


def test_a_text_without_anything_to_predict_gives_no_row() -> None:
    assert token_rows(make_tokenizer(), [""], max_length=8) == []


def test_mean_over_tokens_equals_a_loop_without_padding() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            loss = model.eval()(ids, labels=ids).loss.item()
        total, count = total + loss * (ids.shape[1] - 1), count + ids.shape[1] - 1
    measured = nats_per_token(model, tokenizer, TEXTS, max_length=64)
    assert measured.tokens == count
    # Batched and padded matrix products round differently: a few float32 roundings of a loss near 5.5.
    assert measured.nats == pytest.approx(total / count, rel=1e-5)


def test_batches_do_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    together = nats_per_token(model, tokenizer, TEXTS, 16)
    monkeypatch.setattr(text_loss, "_batches", lambda rows, vocabulary: [[place] for place in range(len(rows))])
    alone = nats_per_token(model, tokenizer, TEXTS, 16)
    assert together.tokens == alone.tokens
    assert together.nats == pytest.approx(alone.nats, rel=1e-5)


def test_batches_keep_the_logits_small() -> None:
    rows = [TokenRow([0] * length, [0] * length) for length in (100, 200, 300) * 5]
    places = text_loss._batches(rows, vocabulary=text_loss.LOGITS_AT_ONCE // 600)
    batches = [[rows[place] for place in batch] for batch in places]
    assert sorted(len(row.input_ids) for batch in batches for row in batch) == sorted([100, 200, 300] * 5)
    assert all(len(batch) * max(len(row.input_ids) for row in batch) <= 600 for batch in batches)


def test_rows_of_like_length_are_batched_together() -> None:
    rows = [TokenRow([1] * length, [1] * length) for length in (50, 7, 30, 8, 49, 31, 6, 48, 29)]
    batches = list(text_loss._batches(rows, vocabulary=text_loss.LOGITS_AT_ONCE // 256))
    lengths = [[len(rows[place].input_ids) for place in batch] for batch in batches]
    assert lengths == [[50, 49, 48, 31, 30], [29, 8, 7, 6]]


def test_tokens_labelled_out_are_not_counted() -> None:
    model = make_model()
    ids = [5, 6, 7, 8]
    part = mean_loss(model, [TokenRow(ids, [-100, -100, 7, 8])])
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert part.tokens == 2
    assert part.nats == pytest.approx(-(logits[1, 7] + logits[2, 8]).item() / 2, rel=1e-5)
    with pytest.raises(ValueError, match="no token"):
        mean_loss(model, [TokenRow(ids, [-100] * 4)])


def test_training_mode_is_left_as_it_was() -> None:
    model = make_model().train()
    value = nats_per_token(model, make_tokenizer(), TEXTS, 16).nats
    assert model.training
    assert 0 < value < 2 * math.log(258)
