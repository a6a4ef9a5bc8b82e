from __future__ import annotations

from pathlib import Path

import pytest

from orthotune.errors import DataError
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.sft_data import examples_for, source_domain_notes


def test_the_text_world_is_found() -> None:
    examples, domains = examples_for(SFTSettings())
    assert examples.format == "text" and sorted(domains) == ["new", "old"]
    known = {row["text"] for row in examples.rows}
    assert not any(row["text"] in known for row in domains["new"].rows)
    with pytest.raises(DataError, match="Did you mean 'new_train'"):
        examples_for(SFTSettings(data="text-world/new_tarin"))


def test_own_data_is_held_out_from(text_path: Path, old_path: Path) -> None:
    examples, domains = examples_for(SFTSettings(model="m", data=str(text_path), old_data="none"))
    assert (len(examples.rows), list(domains), len(domains["new"].rows)) == (23, ["new"], 1)
    given = SFTSettings(model="m", data=str(text_path), eval_data=str(old_path), old_data=str(old_path))
    examples, domains = examples_for(given)
    assert (len(examples.rows), len(domains["new"].rows), len(domains["old"].rows)) == (24, 4, 4)


def test_too_little_data_is_not_held_out_from(old_path: Path) -> None:
    examples, domains = examples_for(SFTSettings(model="m", data=str(old_path), old_data="none"))
    assert (len(examples.rows), domains) == (4, {})


def test_forgetting_is_measured_on_general_texts_when_nobody_names_others(text_path: Path) -> None:
    settings = SFTSettings(model="m", data=str(text_path))
    _, domains = examples_for(settings)
    assert len(domains["old"].rows) == 12 and domains["old"].format == "text"
    assert max(len(row["text"]) for row in domains["old"].rows) <= 1000
    (said,) = source_domain_notes(settings)
    assert "Python sources" in said and "old_data=none" in said
    (said,) = source_domain_notes(SFTSettings(model="m", data=str(text_path), old_data="none"))
    assert "not measured" in said
    assert source_domain_notes(SFTSettings()) == []  # the text world names its own
