"""The settings of a subject's training, and what in them is likely to be a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from orthotune.recipes.image_settings import ImageSettings
from orthotune.recipes.method_settings import ONLY_FOR, Positive, SettingError

#: Words of a prompt that name no subject.
_PLAIN = {"a", "an", "the", "of", "photo", "picture", "image"}


class SubjectSettings(ImageSettings):
    """Everything that decides the training of a subject; without arguments the image world's nine.

    Example:
        >>> SubjectSettings().instance_prompt
        'a sks digit'
    """

    recipe: ClassVar[str] = "subject"
    # Full finetuning has no frozen base beside it.
    only_for: ClassVar[dict[str, tuple[str, ...]]] = {**ONLY_FOR, "prior_target": ("oft", "coft", "lora")}
    newer: ClassVar[tuple[str, ...]] = (*ImageSettings.newer, "prior_target")

    instance_images: str = Field(description="Folder with pictures of the subject, or image-world.")
    instance_prompt: str = Field(description="Its name: a rare word and its class, as 'a sks dog'.")
    instance_captions: bool = Field(
        True, description="A picture with a .txt file beside it is called what that says, the others instance_prompt."
    )
    class_prompt: str | list[str] | None = Field(
        None, description="Its class, as 'a dog', or several prompts about it; without it no class pictures are used."
    )
    class_images: Path | None = Field(
        None, description="Folder of the class pictures; missing ones are drawn into it. Default: in the output."
    )
    class_count: Positive = Field(200, description="Class pictures to draw, of all prompts together.")
    class_steps: Positive = Field(50, description="Steps with which each is drawn.")
    prior_weight: float = Field(1.0, ge=0, description="Of the class pictures in the loss; 0 uses none.")
    prior_target: Literal["pictures", "base"] = Field(
        "pictures", description="What class pictures teach: themselves, or base: what the base predicts of them."
    )
    token: str | None = Field(None, description="Word that means the subject; default: the first unusual one.")

    @model_validator(mode="after")
    def _prior(self) -> SubjectSettings:
        if self.buckets and self.prior:
            raise SettingError(
                "buckets", "buckets and class pictures need pictures of one size", "Keep buckets or class_prompt"
            )
        if self.prior_target == "base":
            self._keeps_predictions()
        return self

    def _keeps_predictions(self) -> None:
        if not self.prior:
            said = "prior_target says what class pictures teach, and there are none"
            raise SettingError("prior_target", said, "Add class_prompt, or leave prior_target out")
        if self.train_text_encoder:
            said = "prior_target=base asks the base, whose words train_text_encoder changes"
            raise SettingError("prior_target", said, "Leave out one of them")
        options = "lora" if self.method == "lora" else "rotation"
        if (bias := getattr(self, options).get("bias", "none")) != "none":
            said = f"prior_target=base asks the base, of which {options}.bias={bias} trains a part"
            raise SettingError("prior_target", said, "Leave out one of them")

    @property
    def prior(self) -> bool:
        """Whether class pictures are trained on, too."""
        return bool(self.class_prompts) and self.prior_weight > 0

    @property
    def class_prompts(self) -> list[str]:
        """The prompts about the class, none or more."""
        said = self.class_prompt or []
        return [said] if isinstance(said, str) else said

    @property
    def subject(self) -> str:
        """The word that means the subject: ``token``, or the instance prompt's first that the class's has not."""
        if self.token:
            return self.token
        beside = _PLAIN | set(" ".join(self.class_prompts).split())
        words = self.instance_prompt.split()
        return next((word for word in words if word not in beside), words[-1] if words else "")


def warnings(settings: SubjectSettings) -> list[str]:
    """What is likely to be a mistake: prompts in which the subject does not appear.

    Example:
        >>> warnings(SubjectSettings(sample_prompts=["a red digit"]))
        ["sample_prompts: 'a red digit' does not hold 'sks', so it will not show the subject."]
    """
    found = []
    if settings.subject not in settings.instance_prompt.split():
        found.append(f"instance_prompt {settings.instance_prompt!r} does not hold {settings.subject!r}.")
    for prompt in settings.class_prompts if settings.prior else []:
        if settings.subject in prompt.split():
            found.append(f"class_prompt {prompt!r} holds {settings.subject!r}, the word for the subject.")
    for prompt in settings.sample_prompts:
        if settings.subject not in prompt.replace(",", " ").split():
            found.append(
                f"sample_prompts: {prompt!r} does not hold {settings.subject!r}, so it will not show the subject."
            )
    return found
