"""The user's file for a bundle, ``--map labels.json``: what a bundle's own metadata does not say, or says wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from medflow.errors import ConfigurationError
from medflow.plugin import SNOMED, Coding


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(_Part):
    """A code; SNOMED CT unless ``system`` says otherwise."""

    code: str = Field(min_length=1)
    display: str | None = None
    system: str = SNOMED

    def coding(self, name: str) -> Coding:
        """It as a Coding that is shown as ``name`` where it says nothing of itself."""
        return Coding(system=self.system, code=self.code, display=self.display or name)


def _code(value: object) -> object:
    return {"code": value} if isinstance(value, str) else value


AnyCode = Annotated[Code, BeforeValidator(_code)]
NAME = r"[a-z0-9][a-z0-9-]{0,62}"  # of a model


class Label(Code):
    """What a channel or class means.

    ``site`` is the body site where ``code`` is not one itself (a tumour, say), ``category`` that of the segmented
    property (PS3.3 C.8.20.2). A mask outside ``valid_ml`` is an error, not a result.
    """

    site: AnyCode | None = None
    category: AnyCode | None = None
    valid_ml: tuple[float, float] | None = None


class Selection(_Part):
    """Which series are taken: the fields of `medflow.plugin.ImagingInput`."""

    modality: tuple[str, ...] | None = None
    body_parts: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    excluded_descriptions: tuple[str, ...] = ()
    contrast: bool | None = None
    slice_thickness_mm: tuple[float, float] | None = None
    min_slices: int | None = Field(None, ge=1)
    take: Literal["only", "first", "last"] = "only"
    prefer: Literal["newest", "best"] = "newest"


class Card(_Part):
    """The model card's texts, where they are to differ from what the metadata says."""

    intended_use: str | None = None
    training_data: str | None = None
    licence: str | None = None
    limits: str | None = None
    metrics: dict[str, str] | None = None


class LabelMap(Selection):
    """Everything that the file may say; docs/users/bundles.md explains each field."""

    name: str | None = Field(None, pattern=f"^{NAME}$")
    title: str | None = None
    labels: dict[str, Annotated[Label, BeforeValidator(_code)] | None] = Field(default_factory=dict)
    channel_def: dict[int, str] | None = None
    task: Literal["segmentation", "classification"] | None = None
    activation: Literal["softmax", "sigmoid"] | None = None
    code: AnyCode | None = None
    positive: str | None = None
    threshold: float = Field(0.5, gt=0, lt=1)
    indeterminate: float = Field(0.0, ge=0, lt=0.5)
    inputs: dict[str, Selection] = Field(default_factory=dict)
    repeat_channels: bool = False
    memory_mib: int | None = Field(None, ge=1)
    config: tuple[str, ...] = ()
    override: dict[str, Any] = Field(default_factory=dict)
    card: Card = Card()


def read_map(path: Path | None) -> LabelMap:
    """The file's content; an empty map without one.

    Raises
    ------
    ConfigurationError
        It cannot be read, is not JSON, or has a field that is unknown or wrong; the message names it.
    """
    if path is None:
        return LabelMap.model_validate({})
    try:
        return LabelMap.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"the map {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors())
        raise ConfigurationError(f"the map {path} is not usable: {wrong}") from None
