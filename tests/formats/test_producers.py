"""What a program wrote means here what it meant to that program."""

from __future__ import annotations

import pytest
import torch

from tests.support.producers import Produced, comparisons, produced


@pytest.mark.parametrize("case", produced(), ids=str)
def test_the_output_is_the_producers(case: Produced) -> None:
    compared = list(comparisons(case))
    assert compared
    for key, found, expected in compared:
        # float32 on both sides, outputs of about 5 that sum up to 72 products; the next wrong reading is 1e-3 away
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
