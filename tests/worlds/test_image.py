"""Scenes, captions and splits of the image world: drawn the same every time, and they show what is said."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from transformers import CLIPTokenizer

from build_image import captions, training_scenes
from image_collect import HELD_OUT
from image_tokenizer import new_tokenizer
from orthotune.errors import DataError
from orthotune.worlds import image
from orthotune.worlds.image_captions import NUMBERS, SUBJECT, WORDS, caption, prompts, sentence
from orthotune.worlds.image_classifiers import colours_seen, mask_seen
from orthotune.worlds.image_data import COLOURS, GROUNDS, Scene, compose, compose_all, mask, random_scene, visible
from orthotune.worlds.image_sources import Sources, read_sources

EVERY = tuple(range(10))


@pytest.fixture(scope="module")
def sources(image_sources) -> Sources:
    return image_sources


def drawn(sources: Sources, count: int, seed: int, textured: float = 0.25) -> list[Scene]:
    chance = random.Random(seed)
    rows = sources.rows(EVERY, held_out=True)
    return [random_scene(rows, chance, textured) for _ in range(count)]


def test_scenes_are_drawn_the_same_every_time(sources):
    first, again, other = (compose_all(drawn(sources, 20, seed), sources) for seed in (0, 0, 1))
    assert first.dtype == torch.uint8 and first.shape == (20, 3, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_drawing_leaves_the_sources_alone(sources):
    before = sources.textures.clone(), sources.digits.clone()
    compose_all(drawn(sources, 30, 3), sources)
    assert torch.equal(before[0], sources.textures) and torch.equal(before[1], sources.digits)


def test_the_rule_sees_the_colours_that_were_drawn(sources):
    scenes = drawn(sources, 400, 5)
    seen = [colours_seen(picture) for picture in compose_all(scenes, sources)]
    # Exact: the rule has to be surer of real scenes than of generated ones, or their score would be its own error.
    assert seen == [(scene.ink, scene.ground) for scene in scenes]


def test_nothing_is_seen_on_an_empty_ground(sources):
    for ground in COLOURS:
        picture = torch.tensor(COLOURS[ground], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
        assert colours_seen(picture) == ("", ground)


def test_the_mask_seen_is_the_mask_drawn(sources):
    for scene in drawn(sources, 40, 7, textured=0.0):
        cover = mask(scene, sources)
        seen = mask_seen(compose(scene, sources), scene.ink, scene.ground)
        # Rounding to whole levels, of at least 127 between two colours, may turn what is covered by half.
        assert ((cover - 0.5).abs()[seen != (cover > 0.5)] < 0.007).all()


def test_the_digit_stays_inside_the_picture(sources):
    scene = Scene(row=sources.rows((8,), True)[0], size=28, down=2, right=-2, ink="red", ground="blue")
    inside = Scene(scene.row, 28, 0, 0, "red", "blue")
    assert torch.equal(mask(scene, sources), mask(inside, sources).roll((2, -2), (0, 1)))


def test_captions_say_nothing_that_is_not_there(sources):
    chance, said = random.Random(0), Counter()
    for scene in drawn(sources, 500, 11):
        label = int(sources.labels[scene.row])
        text = caption(scene, label, chance)
        words = set(text.split())
        body, _, place = text.partition(" on ")
        assert words <= set(WORDS)
        assert (words & {*NUMBERS, "digit"}) <= {NUMBERS[label], "digit"}
        assert set(body.split()) & set(COLOURS) <= {scene.ink}
        assert set(place.split()) & set(GROUNDS) <= {scene.ground}
        said.update(
            [name for name in (NUMBERS[label], scene.ink) if name in body.split()] + ["" if text else "nothing"]
        )
    # A tenth says nothing, for guidance: 500 draws lie within four standard deviations of 50.
    assert 23 <= said["nothing"] <= 77


def test_captions_are_the_same_every_time(sources):
    scenes = drawn(sources, 50, 2)
    assert captions(scenes, sources, 0) == captions(scenes, sources, 0) != captions(scenes, sources, 1)


def test_prompts_ask_for_what_can_be_seen():
    for prompt in prompts(120, seed=1):
        assert visible(prompt.ink, prompt.ground)
        assert prompt.text == sentence(NUMBERS[prompt.digit], prompt.ink, prompt.ground)
        assert prompt.digit != SUBJECT
    assert {prompt.digit for prompt in prompts(9, seed=1)} == set(range(9))
    assert all(prompt.digit is None for prompt in prompts(9, seed=1, word="sks digit"))


def test_no_digit_is_in_both_parts(sources):
    parts = [sources.rows(EVERY, held_out) for held_out in (False, True)]
    assert len(parts[1]) == HELD_OUT and not set(parts[0]) & set(parts[1])
    looks = [{bytes(sources.digits[row].flatten().tolist()) for row in part} for part in parts]
    assert not looks[0] & looks[1]


def test_the_pipeline_is_trained_on_no_nine_and_no_held_out_digit(sources, monkeypatch):
    monkeypatch.setattr("build_image.SCENES", 500)
    rows = {scene.row for scene in training_scenes(sources, 0)}
    assert not any(sources.held_out[list(rows)])
    assert SUBJECT not in sources.labels[list(rows)]


def test_the_subject_is_five_held_out_nines(sources):
    scenes = image.subject_scenes(sources)
    rows = [scene.row for scene in scenes]
    assert scenes == image.subject_scenes(sources)
    assert len(set(rows)) == image.SUBJECT_IMAGES
    assert set(rows) <= set(sources.rows((SUBJECT,), held_out=True))


def test_control_scenes_keep_the_parts_apart(sources):
    training, test = (image.control_scenes(sources, 60, 0, held_out) for held_out in (False, True))
    assert all(scene.ground in COLOURS for scene in training + test)
    assert not any(sources.held_out[scene.row] for scene in training)
    assert all(sources.held_out[scene.row] for scene in test)


def test_sources_come_back_from_their_file(sources, tmp_path):
    sources.save(tmp_path / "data.safetensors")
    again = read_sources(tmp_path / "data.safetensors")
    assert all(torch.equal(value, getattr(again, name)) for name, value in vars(sources).items())
    with pytest.raises(DataError, match=r"no file none\.safetensors"):
        read_sources(tmp_path / "none.safetensors")


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return new_tokenizer(WORDS)


def test_every_word_of_the_captions_is_one_token(tokenizer):
    for word in WORDS:
        assert len(tokenizer(word).input_ids) == 3, word
    longest = "a photo of a purple three on a yellow background"
    assert len(tokenizer(longest).input_ids) == 12 < tokenizer.model_max_length


@pytest.mark.parametrize("text", ["a sks digit", "a photo of a red three on bricks", "hé , 漢 zzz ! #"])
def test_tokenizer_gives_back_every_text(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_new_word_is_spelled(tokenizer):
    assert tokenizer.tokenize("sks") == ["s", "k", "s</w>"]


def test_tokenizer_reads_the_same_from_its_files(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [prompt.text for prompt in prompts(40, seed=2)] + ["", "a sks digit"]
    assert again(texts).input_ids == tokenizer(texts).input_ids
    assert again.model_max_length == tokenizer.model_max_length
