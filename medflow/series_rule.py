"""What an `ImagingInput` asks of a series: in words, as a test, and which of several that fit it takes.

Selecting, explaining (`medflow select --explain`) and showing (`medflow models`) share it, so that none says other than
what is done. Words quote what a model declares, never what a series says of itself: a description may hold a name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from medflow.plugin import ImagingInput, ModelSpec, Segment
from medflow.records import Instant, UnitKind

STORAGE = "1.2.840.10008.5.1.4.1.1."
SECONDARY_CAPTURES = frozenset(STORAGE + end for end in ("7", "7.1", "7.2", "7.3", "7.4"))
IMAGE_CLASSES = SECONDARY_CAPTURES | frozenset(  # pixel data that are a picture of a patient's inside (PS3.4 B.5)
    STORAGE + end
    for ends in (
        ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1"),  # CR, DX, MG, IO
        ("2", "2.1", "2.2", "4", "4.1", "4.4", "128", "130", "128.1"),  # CT, MR, PET: plain, enhanced, converted
        ("6.1", "12.1", "12.2", "13.1.1", "13.1.2", "13.1.3", "20", "481.1"),  # US XA RF 3D NM RT
    )
    for end in ends
)
SCOUTS = frozenset(("LOCALIZER", "SCOUT", "TOPOGRAM"))  # values of ImageType (PS3.3 C.8.2.1.1.1, C.8.15.2.1.1)
MOSAIC = "MOSAIC"  # a value of ImageType: one picture holds many slices
LONGER_MODALITIES = frozenset(  # beside those of two letters (PS3.3 C.7.3.1.1.1); anything else may have been typed
    (
        *("ANN", "ASMT", "BDUS", "CTPROTOCOL", "DOC", "ECG", "EEG", "EMG", "EOG", "EPS", "FID"),
        *("IVOCT", "IVUS", "KER", "LEN", "M3D", "OAM", "OCT", "OPM", "OPT", "OPTBSV", "OPTENF"),
        *("OPV", "OSS", "PLAN", "POS", "REG", "RESP", "RTDOSE", "RTIMAGE", "RTINTENT", "RTPLAN", "RTRAD"),
        *("RTRECORD", "RTSEGANN", "RTSTRUCT", "RWV", "SEG", "SMR", "SRF", "STAIN", "TEXTUREMAP", "XAPROTOCOL"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesFacts:
    """What the store knows of a series, as far as a model may ask for it.

    ``moment`` is its acquisition, else the study's start, else when its first instance was received. ``frames`` are the
    slices of all its instances together. ``contrast`` is None where it is not known.
    """

    id: int
    study_id: int
    uid: str
    modality: str
    frames: int
    instances: int
    content: str
    revision: int
    moment: Instant
    has_patient: bool = True
    sop_class_uid: str | None = None
    body_part: str | None = None
    description: str | None = None
    protocol_name: str | None = None
    image_type: str | None = None
    contrast: bool | None = None
    slice_thickness_mm: float | None = None
    series_number: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why a series or study was not taken, or what became of it: a kebab-case code and words; nothing of a patient."""

    code: str
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """One thing that a model asks of a series. ``unmet`` says why a series is not so; None where it is."""

    code: str
    words: str
    unmet: Callable[[SeriesFacts], str | None]


def is_scout(image_type: str | None) -> bool:
    """Whether an ImageType (values between backslashes) is that of a localizer."""
    return image_type is not None and not SCOUTS.isdisjoint(image_type.upper().split("\\"))


def excluded_classes(spec: ImagingInput) -> frozenset[str]:
    """SOP classes of images that the input does not take unless it names them: secondary captures as volumes."""
    return frozenset() if spec.dimensions == 2 else SECONDARY_CAPTURES - frozenset(spec.sop_classes)


@lru_cache(maxsize=256)
def conditions_of(spec: ImagingInput) -> tuple[Condition, ...]:
    """What the input asks of a series, all of which must be met."""
    found = [_modality(spec), _image(), _no_scout(spec)]
    if spec.dimensions != 2:
        found.append(_no_capture(spec))
    if spec.sop_classes:
        found.append(_sop_class(spec))
    if spec.body_parts:
        found.append(_body_part(spec))
    if spec.descriptions:
        found.append(_described(spec.descriptions))
    if spec.excluded_descriptions:
        found.append(_not_described(spec.excluded_descriptions))
    if spec.contrast is not None:
        found.append(_contrast(spec.contrast))
    if spec.slice_thickness_mm is not None:
        found.append(_thickness(*spec.slice_thickness_mm))
    found.append(_slices(spec))
    return tuple(found)


def unmet(spec: ImagingInput, series: SeriesFacts) -> list[Reason]:
    """Every condition that a series does not meet; none where it fits."""
    found = ((condition, condition.unmet(series)) for condition in conditions_of(spec))
    return [Reason(code=condition.code, words=why) for condition, why in found if why is not None]


def fits(spec: ImagingInput, series: SeriesFacts) -> bool:
    """Whether a series meets every condition."""
    return all(condition.unmet(series) is None for condition in conditions_of(spec))


# --- which of several ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Merit:
    """One point of comparison: more counts more; ``words`` say how the better one is better."""

    words: str
    of: Callable[[SeriesFacts], float | str]


_LATER = _Merit(words="acquired later", of=lambda series: series.moment.utc_us)
_THINNER = _Merit(words="thinner slices", of=lambda series: -(series.slice_thickness_mm or float("inf")))
_MORE = _Merit(words="more slices", of=lambda series: series.frames)
_NUMBER = _Merit(words="a higher series number", of=lambda series: series.series_number or 0)
_UID = _Merit(words="equal in all, and last by its UID", of=lambda series: series.uid)
MERITS: Mapping[str, tuple[_Merit, ...]] = {
    "newest": (_LATER, _NUMBER, _UID),
    "best": (_THINNER, _MORE, _LATER, _NUMBER, _UID),
}
PREFERENCE = {
    "every": "every series that fits",
    "newest": "of several the newest: acquired last, else the higher series number",
    "best": "of several the best: the thinnest slices, else the most, else the newest, else the higher series number",
}


def preferred(spec: ImagingInput, fitting: Iterable[SeriesFacts]) -> SeriesFacts | None:
    """The one series that the input takes of those that fit, the same whatever their order; None of none."""
    merits = MERITS[spec.prefer]
    return max(fitting, key=lambda series: tuple(merit.of(series) for merit in merits), default=None)


def why_preferred(spec: ImagingInput, taken: SeriesFacts, other: SeriesFacts) -> str:
    """In what the series taken is better than another that fits."""
    return next(merit.words for merit in MERITS[spec.prefer] if merit.of(taken) != merit.of(other))


def choose(
    inputs: Sequence[ImagingInput], series: Sequence[SeriesFacts]
) -> tuple[dict[str, SeriesFacts], tuple[str, ...]]:
    """The series of a study that each input takes, by the input's name; and the inputs that miss one they must have.

    Inputs choose independently: a series that fits two inputs may serve both.
    """
    taken: dict[str, SeriesFacts] = {}
    missing: list[str] = []
    for item in inputs:
        chosen = preferred(item, (one for one in series if fits(item, one)))
        if chosen is not None:
            taken[item.name] = chosen
        elif not item.optional:
            missing.append(item.name)
    return taken, tuple(missing)


# --- in words --------------------------------------------------------------------------------------------------


def rule_of(spec: ImagingInput) -> str:
    """What the input takes, in one line."""
    asked = "; ".join(condition.words for condition in conditions_of(spec) if condition.words)
    return f"{asked}; {PREFERENCE[spec.prefer]}"


def imaging_inputs(spec: ModelSpec) -> tuple[ImagingInput, ...]:
    """The inputs of a model that are images."""
    return tuple(item for item in spec.accepts if isinstance(item, ImagingInput))


def rules_of(spec: ModelSpec) -> list[str]:
    """What each image of a model is, in one line each: named, where a study gives several."""
    if spec.unit is not UnitKind.STUDY:
        return [rule_of(item) for item in imaging_inputs(spec)]
    return [
        f"{item.name}{' (may be missing)' if item.optional else ''}: {rule_of(item)}" for item in imaging_inputs(spec)
    ]


def problems_of(spec: ModelSpec) -> list[str]:
    """What of a model's images cannot be served as declared, in words; nothing where all can."""
    inputs = imaging_inputs(spec)
    found = [problem for item in inputs for problem in _problems(item, spec.unit)]
    if inputs and spec.unit is UnitKind.STUDY and all(item.optional for item in inputs):
        found.append("every input is optional: one of a study's must be there")
    return found + [
        problem for item in spec.outputs if isinstance(item, Segment) for problem in _ungrounded(item, inputs)
    ]


def _ungrounded(output: Segment, inputs: Sequence[ImagingInput]) -> list[str]:
    """What is wrong with the image that a segment is of."""
    images = {item.name: item for item in inputs}
    name = output.of if output.of is not None else next(iter(images), None)
    if name not in images:
        return [f"output {output.name} is of {name!r}, which is no image"] if output.of is not None else []
    if images[name].optional:
        return [f"output {output.name} is of {name!r}, which may be missing: name an image (of) that is always there"]
    if images[name].dimensions == 2:
        return [f"output {output.name} is of {name!r}, a single picture, which has no volume in mL"]
    return []


def _problems(item: ImagingInput, unit: UnitKind) -> list[str]:
    found = [f"{pattern!r} is no regular expression" for pattern in item.descriptions if not _compiles(pattern)]
    found += [
        f"{pattern!r} is no regular expression" for pattern in item.excluded_descriptions if not _compiles(pattern)
    ]
    if not item.modality:
        found.append("it names no modality")
    if item.slice_thickness_mm is not None and not 0 <= item.slice_thickness_mm[0] <= item.slice_thickness_mm[1]:
        found.append("slice_thickness_mm is the least, then the largest")
    if item.min_slices < 1:
        found.append("min_slices must be 1 or more")
    if item.take != "only" and item.dimensions != 3:
        found.append(f"take {item.take!r} chooses one volume of several: dimensions must be 3")
    if unit is UnitKind.STUDY and item.prefer == "every":
        found.append("a study has one series for each input: prefer must be 'newest' or 'best'")
    if unit is UnitKind.SERIES and (item.prefer != "every" or item.optional):
        found.append("a model of series is given every series that fits: prefer must be 'every', and none is optional")
    return [f"input {item.name}: {problem}" for problem in found]


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _or(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


# --- the conditions --------------------------------------------------------------------------------------------


def _modality(spec: ImagingInput) -> Condition:
    asked = _or(spec.modality)

    def why(series: SeriesFacts) -> str | None:
        if series.modality in spec.modality:
            return None
        known = re.fullmatch(r"[A-Z]{2}", series.modality) or series.modality in LONGER_MODALITIES
        return f"modality {series.modality}, not {asked}" if known else f"another modality than {asked}"

    return Condition(code="modality", words=f"{asked} {spec.dimensions}D", unmet=why)


def _image() -> Condition:
    def why(series: SeriesFacts) -> str | None:
        # several classes in one series: which objects are images is seen when they are read
        return None if series.sop_class_uid is None or series.sop_class_uid in IMAGE_CLASSES else "it is no image"

    return Condition(code="not-an-image", words="", unmet=why)


def _no_capture(spec: ImagingInput) -> Condition:
    classes = excluded_classes(spec)

    def why(series: SeriesFacts) -> str | None:
        return (
            "secondary captures (screenshots and the like) make no volume" if series.sop_class_uid in classes else None
        )

    return Condition(code="secondary-capture", words="", unmet=why)


def _no_scout(spec: ImagingInput) -> Condition:
    def why(series: SeriesFacts) -> str | None:
        return "scouts (localizers) are given to no model" if is_scout(series.image_type) else None

    return Condition(code="localizer", words="" if spec.dimensions == 2 else "no scout", unmet=why)


def _sop_class(spec: ImagingInput) -> Condition:
    def why(series: SeriesFacts) -> str | None:
        if series.sop_class_uid in spec.sop_classes:
            return None
        return "another SOP class than the model takes" if series.sop_class_uid else "its objects are of several kinds"

    return Condition(code="sop-class", words=f"SOP class {_or(spec.sop_classes)}", unmet=why)


def _body_part(spec: ImagingInput) -> Condition:
    parts, asked = {part.lower() for part in spec.body_parts}, _or(spec.body_parts)

    def why(series: SeriesFacts) -> str | None:
        fitting = series.body_part is None or series.body_part.lower() in parts
        return None if fitting else f"another body part than {asked}"

    return Condition(code="body-part", words=f"body part {asked}, or none stated", unmet=why)


def _described(patterns: Sequence[str]) -> Condition:
    asked = _or(f"/{pattern}/" for pattern in patterns)

    def why(series: SeriesFacts) -> str | None:
        return None if _found(patterns, series) else f"neither description nor protocol matches {asked}"

    return Condition(code="description", words=f"description or protocol matches {asked}", unmet=why)


def _not_described(patterns: Sequence[str]) -> Condition:
    def why(series: SeriesFacts) -> str | None:
        found = [pattern for pattern in patterns if _found([pattern], series)]
        return f"description or protocol matches {_or(f'/{one}/' for one in found)}" if found else None

    asked = _or(f"/{pattern}/" for pattern in patterns)
    return Condition(code="excluded-description", words=f"neither description nor protocol matches {asked}", unmet=why)


def _found(patterns: Sequence[str], series: SeriesFacts) -> bool:
    texts = [text for text in (series.description, series.protocol_name) if text]
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns for text in texts)


def _contrast(wanted: bool) -> Condition:
    def why(series: SeriesFacts) -> str | None:
        if series.contrast is None:
            return "whether a contrast agent was given is not known: it was taken in before that was kept"
        given = "a contrast agent was given" if series.contrast else "no contrast agent was given"
        return None if series.contrast is wanted else given

    return Condition(code="contrast", words="with a contrast agent" if wanted else "without contrast agent", unmet=why)


def _thickness(least: float, largest: float) -> Condition:
    asked = f"{least:g} to {largest:g} mm"

    def why(series: SeriesFacts) -> str | None:
        thickness = series.slice_thickness_mm
        if thickness is None:
            return f"its slice thickness is not known; {asked} are asked for"
        return None if least <= thickness <= largest else f"slices {thickness:g} mm thick, not {asked}"

    return Condition(code="slice-thickness", words=f"slices {asked} thick", unmet=why)


def _slices(spec: ImagingInput) -> Condition:
    least = max(spec.min_slices, 1)
    what = "image" if spec.dimensions == 2 else "slice"

    def why(series: SeriesFacts) -> str | None:
        found = series.instances if spec.dimensions == 2 else series.frames
        if spec.dimensions != 2 and series.image_type is not None and MOSAIC in series.image_type.upper().split("\\"):
            return None  # they are counted when it is read
        return None if found >= least else f"{found} {what}{'' if found == 1 else 's'}, fewer than {least}"

    several = " in each volume" if spec.dimensions == 4 else ""
    return Condition(code="too-few-slices", words=f"{least} {what}s or more{several}" if least > 1 else "", unmet=why)
