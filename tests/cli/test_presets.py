from __future__ import annotations

import yaml
from typer.testing import CliRunner

from orthotune.cli.main import app
from orthotune.recipes import preset


def test_all_presets_are_listed_with_their_reason() -> None:
    result = CliRunner().invoke(app, ["presets"])
    assert result.exit_code == 0
    image = [f"{recipe}/{name}" for recipe in preset.recipes()[1:] for name in preset.names(recipe)]
    assert [line.split()[0] for line in result.output.splitlines()] == preset.names() + image
    assert "OFTv2" in result.output


def test_one_preset_is_printed_as_it_is() -> None:
    result = CliRunner().invoke(app, ["presets", "gpt2"])
    assert yaml.safe_load(result.output) == preset.settings_of("gpt2")
    assert result.output.startswith("# ")


def test_an_unknown_preset() -> None:
    result = CliRunner().invoke(app, ["presets", "lama"])
    assert result.exit_code == 2
    assert "Did you mean 'llama'?" in result.output
