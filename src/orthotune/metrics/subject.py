"""Subject-driven generation: fidelity to the subject (DINO, CLIP-I) and the prompt (CLIP-T), and LPIPS diversity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import ConfigError, DataError
from orthotune.metrics.diversity import Perceptual, summed_distance
from orthotune.metrics.image_files import find_images, read_rgb
from orthotune.metrics.image_pairs import Entry, entries
from orthotune.metrics.measured import SHEET_ROWS, Measured, noted, readable
from orthotune.metrics.vision_model import CLIP, DINO, image_embeddings, load, prompt_embeddings, tokenizer_of

MEASURES = ("dino", "clip-i", "clip-t", "lpips")
#: The manifest entry of a result, and its file; images are read one batch at a time.
Generated = tuple[Entry, Path]


def mean_similarity(results: Tensor, references: Tensor) -> Tensor:
    """The mean cosine similarity of each result with all references.

    Args:
        results: unit vectors.
        references: unit vectors.

    Shapes: unit vectors ``(results, features)`` and ``(references, features)`` -> ``(results,)``.

    Example:
        >>> mean_similarity(torch.eye(2), torch.eye(2))
        tensor([0.5000, 0.5000])
    """
    return (results @ references.mT).mean(1)


def among_themselves(references: Tensor) -> float | None:
    """The mean cosine similarity between different references, the row "real images" of published tables.

    Args:
        references: unit vectors ``(references, features)``.

    Returns:
        The mean over all pairs; None for one image.

    Example:
        >>> among_themselves(torch.eye(3))
        0.0
    """
    count = len(references)
    if count < 2:
        return None
    return float((references @ references.mT).fill_diagonal_(0).sum() / (count * (count - 1)))


def measure_subject(
    results: Path,
    references: Path,
    manifest: Path | None = None,
    *,
    prompt: str | None = None,
    measures: Sequence[str] = MEASURES,
    dino: str = DINO,
    clip: str = CLIP,
    lpips: str = "alex",
    batch_size: int = 16,
    device: str = "cpu",
    strict: bool = False,
) -> Measured:
    """Compare results with photographs of their subject and with their prompts; scores are means over the results.

    Args:
        results: folder of generated images.
        references: folder with photographs of the subject, or with one folder per ``subject`` of the manifest.
        manifest: prompt, subject and name of each result.
        prompt: of each result for which the manifest has none.
        measures: ``dino``, ``clip-i``, ``clip-t``, ``lpips``. LPIPS is the mean over pairs of results of one subject
            and one prompt: higher is more diverse.
        dino: path or hub name of the vision model.
        clip: path or hub name of the CLIP model.
        lpips: ``alex``, ``vgg`` or ``squeeze``.
        batch_size: images per forward of a model.
        device: where the models run.
        strict: refuse missing or unreadable images, instead of skipping them.

    Raises:
        ConfigError: an unknown measure.
        DataError: no images, ``clip-t`` without prompts, ``lpips`` with no two results of one prompt; with ``strict``
            also anything missing or unreadable.

    Source: DreamBooth, arXiv 2208.12242, section 4; OFT, arXiv 2306.07280, table 1.

    Example:
        >>> measure_subject(Path("results"), Path("photos"), prompt="a dog").summary["dino"]  # doctest: +SKIP
        0.63
    """
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise ConfigError(f"measures={','.join(measures)}", needed=f"some of {', '.join(MEASURES)}")
    models = {"dino": dino, "clip-i": clip, "clip-t": clip, "lpips": lpips}
    measured = Measured("subject", settings={name: models[name] for name in measures}, columns=("reference", "result"))
    listed = entries(results, manifest)
    absent = [one for one in listed if not (results / one.result).is_file()]
    noted([f"result {one.result} is not there" for one in absent], measured, strict)
    known = [(one, results / one.result) for one in listed if one not in absent]
    images = [image for image, _ in readable(known, lambda image: _check_image(image[1]), measured, strict)]
    photos = {
        subject: [
            path for path, _ in readable(find_images(references / subject).values(), _check_image, measured, strict)
        ]
        for subject in sorted({one.subject for one, _ in images})
    }
    bare = [subject for subject, paths in photos.items() if not paths]
    if bare:
        raise DataError(f"references in {references / bare[0]}", got="not one image that can be read")
    measured.rows = [{"name": Path(one.result).with_suffix("").as_posix()} for one, _ in images]
    for row, (one, path) in list(zip(measured.rows, images, strict=True))[:SHEET_ROWS]:
        measured.show(row["name"], read_rgb(photos[one.subject][0]), read_rgb(path))
    measured.mean_of_rows()
    if "dino" in measures:
        _fidelity("dino", measured, images, photos, *load(dino, device), batch_size)
    if "clip-i" in measures or "clip-t" in measures:
        model, processor = load(clip, device)
        if "clip-i" in measures:
            _fidelity("clip_i", measured, images, photos, model, processor, batch_size)
        if "clip-t" in measures:
            _prompts(measured, images, prompt, clip, model, processor, batch_size)
    measured.mean_of_rows(*[key for key in ("dino", "clip_i", "clip_t") if key.replace("_", "-") in measures])
    if "lpips" in measures:
        measured.summary["lpips"] = _diversity(images, prompt, Perceptual(lpips, device))
    return measured


def _check_image(path: Path) -> None:
    read_rgb(path)


def _fidelity(
    key: str, measured: Measured, images: list[Generated], photos: dict[str, list[Path]], model: Any, processor: Any,
    batch_size: int,
) -> None:  # fmt: skip
    vectors = {
        subject: image_embeddings(map(read_rgb, paths), model, processor, batch_size)
        for subject, paths in photos.items()
    }
    found = image_embeddings((read_rgb(path) for _, path in images), model, processor, batch_size)
    for row, (one, _), vector in zip(measured.rows, images, found, strict=True):
        row[key] = float(mean_similarity(vector[None], vectors[one.subject]))
    real = [value for value in map(among_themselves, vectors.values()) if value is not None]
    if real:
        measured.summary[f"{key}_of_real_images"] = sum(real) / len(real)


def _prompts(
    measured: Measured, images: list[Generated], prompt: str | None, clip: str, model: Any, processor: Any,
    batch_size: int,
) -> None:  # fmt: skip
    given = [one.prompt or prompt for one, _ in images]
    for (one, _), words in zip(images, given, strict=True):
        if words is None:
            raise DataError(
                f"the prompt of {one.result}", got="none",
                do="Pass --prompt, name it in the manifest, or leave clip-t out of --measures",
            )  # fmt: skip
    distinct = sorted({words for words in given if words is not None})
    tokenizer = tokenizer_of(clip, model)
    length = model.config.text_config.max_position_embeddings
    measured.settings["prompts_cut"] = sum(len(tokenizer(words)["input_ids"]) > length for words in distinct)
    texts = dict(zip(distinct, prompt_embeddings(distinct, model, tokenizer), strict=True))
    vectors = image_embeddings((read_rgb(path) for _, path in images), model, processor, batch_size)
    for row, words, vector in zip(measured.rows, given, vectors, strict=True):
        row["clip_t"] = float(torch.dot(vector, texts[str(words)]))


def _diversity(images: list[Generated], prompt: str | None, perceptual: Perceptual) -> float:
    groups: dict[tuple[str, str | None], list[Path]] = defaultdict(list)
    for one, path in images:
        groups[one.subject, one.prompt or prompt].append(path)
    sums = [summed_distance([read_rgb(path) for path in paths], perceptual) for paths in groups.values()]
    pairs = sum(count for _, count in sums)
    if not pairs:
        raise DataError("lpips", got="one result per prompt", needed="two", do="Leave lpips out of --measures")
    return sum(total for total, _ in sums) / pairs
