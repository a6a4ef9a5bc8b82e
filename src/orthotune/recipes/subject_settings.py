"""The settings of the subject recipe, and warnings about likely mistakes in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from orthotune.recipes.concepts import OWN, Concept, first_of
from orthotune.recipes.image_settings import ImageSettings
from orthotune.recipes.method_settings import Positive, SettingError

#: Words of a prompt that cannot name the subject.
_PLAIN = {"a", "an", "the", "of", "photo", "picture", "image"}


class SubjectSettings(ImageSettings):
    """The settings of the training of a subject; without arguments, a nine of the image world.

    Example:
        >>> SubjectSettings().instance_prompt
        'a sks digit'
    """

    recipe: ClassVar[str] = "subject"
    # Full finetuning has no frozen base to compute targets.
    only_for: ClassVar[dict[str, tuple[str, ...]]] = {**ImageSettings.only_for, "prior_target": ("oft", "coft", "lora")}
    newer: ClassVar[tuple[str, ...]] = (*ImageSettings.newer, "prior_target", "concepts")

    instance_images: str = Field(description="Folder with images of the subject, or image-world.")
    instance_prompt: str = Field(description="Name of the subject: a rare word and its class, as 'a sks dog'.")
    instance_captions: bool = Field(
        True, description="Use the .txt file of an image as its caption; images without one get instance_prompt."
    )
    class_prompt: str | list[str] | None = Field(
        None, description="The class, as 'a dog', or several prompts about it; without it no class images are used."
    )
    class_images: Path | None = Field(
        None, description="Folder of class images; missing ones are generated there. Default: in the output."
    )
    class_count: Positive = Field(200, description="Number of class images, of all prompts together.")
    class_steps: Positive = Field(50, description="Sampler steps of a generated class image.")
    prior_weight: float = Field(1.0, ge=0, description="Of class images in the loss; 0 uses none.")
    prior_target: Literal["pictures", "base"] = Field(
        "pictures", description="Training target on class images: the images, or the predictions of the base."
    )
    token: str | None = Field(
        None, description="Word for the subject; default: the first word that class_prompt does not contain."
    )

    concepts: list[Concept] = Field(
        [],
        description="Several concepts instead of one, each with images, prompt and perhaps repeats, class_prompt, "
        "class_images, class_count, prior_weight, token: [{images: dog/, prompt: a sks dog, repeats: 2}, ...].",
    )

    @classmethod
    def _filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        return super()._filled(first_of(values) if values.get("concepts") else values)

    def record(self) -> dict[str, Any]:
        """The settings as JSON types; of several concepts, those of the first one alone are not repeated."""
        return {key: value for key, value in super().record().items() if not (self.concepts and key in OWN)}

    @model_validator(mode="after")
    def _prior(self) -> SubjectSettings:
        if self.buckets and self.prior:
            raise SettingError(
                "buckets", "class images need images of one size, without buckets", "Keep buckets or class_prompt"
            )
        if self.frames > 1 and self.prior:
            fault = "class images are images, and share their batches with the subject, which has clips"
            raise SettingError("frames", fault, "Leave class_prompt out (prior_weight=0), or frames")
        if self.prior_target == "base":
            self._keeps_predictions()
        return self

    def _keeps_predictions(self) -> None:
        if not self.prior:
            contradiction = "prior_target is the target on class images, and there are none"
            raise SettingError("prior_target", contradiction, "Add class_prompt, or leave prior_target out")
        if self.train_text_encoder:
            contradiction = "prior_target=base needs the frozen base, whose text encoder train_text_encoder changes"
            raise SettingError("prior_target", contradiction, "Leave out one of them")
        options = "lora" if self.method == "lora" else "rotation"
        if (bias := getattr(self, options).get("bias", "none")) != "none":
            contradiction = f"prior_target=base needs the frozen base, a part of which {options}.bias={bias} trains"
            raise SettingError("prior_target", contradiction, "Leave out one of them")

    @property
    def prior(self) -> bool:
        """Whether the run trains on class images."""
        return any(one.class_prompts and one.prior_weight for one in self.all_concepts)

    @property
    def all_concepts(self) -> list[Concept]:
        """The concepts, of a run with one, too; each with its number of class images and their weight."""
        single = Concept.model_validate({own: getattr(self, key) for key, own in OWN.items()})
        return [
            one.model_copy(
                update={
                    "class_count": one.class_count or self.class_count,
                    "prior_weight": self.prior_weight if one.prior_weight is None else one.prior_weight,
                }
            )
            for one in self.concepts or [single]
        ]

    @property
    def class_prompts(self) -> list[str]:
        """The prompts about the class; may be empty."""
        prompts = self.class_prompt or []
        return [prompts] if isinstance(prompts, str) else prompts

    @property
    def subject(self) -> str:
        """The word for the subject: ``token``, or the first word of instance_prompt that is not in class_prompt."""
        return word_for(self.all_concepts[0])


def word_for(concept: Concept) -> str:
    """The word for a concept: ``token``, or the first word of its prompt that is not in its class prompts.

    Args:
        concept: of a run.

    Example:
        >>> word_for(Concept.model_validate({"images": "x", "prompt": "a photo of sks dog", "class_prompt": "a dog"}))
        'sks'
    """
    if concept.token:
        return concept.token
    known = _PLAIN | set(" ".join(concept.class_prompts).split())
    words = concept.prompt.split()
    return next((word for word in words if word not in known), words[-1] if words else "")


def warnings(settings: SubjectSettings) -> list[str]:
    """Warnings about likely mistakes: prompts without the word for the subject.

    Example:
        >>> warnings(SubjectSettings(sample_prompts=["a red digit"]))
        ["sample_prompts: 'a red digit' does not hold 'sks', so it will not show the subject."]
    """
    found = []
    words = [word_for(concept) for concept in settings.all_concepts]
    for concept, word in zip(settings.all_concepts, words, strict=True):
        if word not in concept.prompt.split():
            found.append(f"instance_prompt {concept.prompt!r} does not hold {word!r}.")
        for prompt in concept.class_prompts if concept.prior_weight else []:
            if word in prompt.split():
                found.append(f"class_prompt {prompt!r} holds {word!r}, the word for the subject.")
    if repeated := sorted({word for word in words if words.count(word) > 1}):
        shared = ", ".join(map(repr, repeated))
        found.append(f"Several concepts have the word {shared}, and the model cannot distinguish them.")
    named = " or ".join(map(repr, dict.fromkeys(words)))
    for prompt in settings.sample_prompts:
        if not set(words) & set(prompt.replace(",", " ").split()):
            found.append(f"sample_prompts: {prompt!r} does not hold {named}, so it will not show the subject.")
    return found
