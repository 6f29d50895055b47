"""What a model asks of a series, in words and as a test, and which of several series it takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from medflow.plugin import ImagingInput, Measure, ModelSpec, Segment, UnitKind
from medflow.records import Coding, Instant
from medflow.series_rule import (
    SECONDARY_CAPTURES,
    SeriesFacts,
    choose,
    fits,
    preferred,
    problems_of,
    rule_of,
    rules_of,
    unmet,
    why_preferred,
)
from tests.models import CARD

CT_IMAGE, CR_IMAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1"
SEGMENTATION, CAPTURE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7"
CT = ImagingInput(modality=("CT",))
HEAD = Coding(system="urn:x", code="head")


def series(number: int = 1, **changes: Any) -> SeriesFacts:
    fields: dict[str, Any] = {"modality": "CT", "frames": 40, "instances": 40, "content": f"c{number}", "revision": 1}
    fields |= {"sop_class_uid": CT_IMAGE, "moment": Instant(utc_us=number), "contrast": False, "series_number": number}
    return SeriesFacts(**{"id": number, "study_id": 1, "uid": f"1.{number}", **fields, **changes})


def reasons(spec: ImagingInput, **changes: Any) -> list[str]:
    return [reason.words for reason in unmet(spec, series(**changes))]


def spec_of(*inputs: ImagingInput, unit: UnitKind = UnitKind.STUDY, **changes: Any) -> ModelSpec:
    output = Measure(name="m", code=HEAD, unit="1", valid_range=(0, 1))
    fields = {"name": "m", "version": "1", "title": "m", "outputs": (output,), "card": CARD, **changes}
    return ModelSpec(unit=unit, accepts=inputs, **fields)


# --- conditions ------------------------------------------------------------------------------------------------


def test_a_series_that_meets_every_condition_fits() -> None:
    assert unmet(CT, series()) == []
    assert fits(CT, series())


@pytest.mark.parametrize(
    ("asked", "found", "words"),
    [
        ({}, {"modality": "MR"}, "modality MR, not CT"),
        ({"modality": ("CT", "PT")}, {"modality": "MR"}, "modality MR, not CT or PT"),
        ({}, {"sop_class_uid": SEGMENTATION}, "it is no image"),
        ({}, {"sop_class_uid": CAPTURE}, "secondary captures (screenshots and the like) make no volume"),
        ({}, {"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER\\CT_SOM5 TOP"}, "scouts (localizers) are given to no model"),
        ({"dimensions": 4}, {"image_type": "ORIGINAL\\PRIMARY\\SCOUT"}, "scouts (localizers) are given to no model"),
        ({"sop_classes": (CT_IMAGE,)}, {"sop_class_uid": CR_IMAGE}, "another SOP class than the model takes"),
        ({"sop_classes": (CT_IMAGE,)}, {"sop_class_uid": None}, "its objects are of several kinds"),
        ({"body_parts": ("CHEST",)}, {"body_part": "HEAD"}, "another body part than CHEST"),
        ({"descriptions": ("t1",)}, {"description": "T2 ax"}, "neither description nor protocol matches /t1/"),
        ({"descriptions": ("t1", "mpr")}, {}, "neither description nor protocol matches /t1/ or /mpr/"),
        ({"excluded_descriptions": ("mip",)}, {"protocol_name": "a MIP"}, "description or protocol matches /mip/"),
        ({"contrast": True}, {"contrast": False}, "no contrast agent was given"),
        ({"contrast": False}, {"contrast": True}, "a contrast agent was given"),
        ({"slice_thickness_mm": (0.5, 2)}, {"slice_thickness_mm": 5.0}, "slices 5 mm thick, not 0.5 to 2 mm"),
        ({"min_slices": 20}, {"frames": 12}, "12 slices, fewer than 20"),
        ({"min_slices": 2, "dimensions": 2}, {"instances": 1}, "1 image, fewer than 2"),
    ],
)
def test_each_unmet_condition_is_told_in_words(asked: dict[str, Any], found: dict[str, Any], words: str) -> None:
    assert reasons(replace(CT, **asked), **found) == [words]


def test_all_that_is_unmet_is_told() -> None:
    assert len(reasons(replace(CT, min_slices=50, body_parts=("HEAD",)), modality="MR", body_part="FOOT")) == 3


@pytest.mark.parametrize("asked", [{"contrast": False}, {"contrast": True}])
def test_what_is_not_known_of_contrast_fits_no_model_that_asks(asked: dict[str, Any]) -> None:
    (words,) = reasons(replace(CT, **asked), contrast=None)

    assert "not known" in words
    assert fits(CT, series(contrast=None))


def test_an_unknown_slice_thickness_fits_no_model_that_asks() -> None:
    (words,) = reasons(replace(CT, slice_thickness_mm=(1, 3)), slice_thickness_mm=None)

    assert "not known" in words


def test_pictures_may_be_captures_and_volumes_where_the_model_names_them() -> None:
    assert fits(replace(CT, dimensions=2), series(sop_class_uid=CAPTURE))
    for uid in SECONDARY_CAPTURES:
        assert fits(replace(CT, sop_classes=(uid,)), series(sop_class_uid=uid))


def test_the_slices_of_mosaics_are_counted_when_they_are_read() -> None:
    mosaics = series(frames=2, image_type="ORIGINAL\\PRIMARY\\M\\ND\\MOSAIC")

    assert fits(replace(CT, min_slices=20), mosaics)


def test_no_word_of_a_series_is_repeated() -> None:
    """A description may hold a name, and so may whatever else a console lets be typed."""
    asked = replace(CT, descriptions=("t1",), excluded_descriptions=("doe",), body_parts=("HEAD",))
    told = reasons(asked, modality="DOE^JOHN", body_part="Doe John", description="Doe John", protocol_name="Doe John")

    assert len(told) == 4
    assert not any("Doe" in words or "John" in words or "JOHN" in words for words in told)


def test_the_rule_is_told_whole() -> None:
    asked = replace(
        CT,
        body_parts=("HEAD", "NECK"),
        descriptions=("ax",),
        excluded_descriptions=("mip",),
        contrast=True,
        slice_thickness_mm=(0.5, 3),
        min_slices=20,
        prefer="best",
    )

    assert rule_of(asked) == (
        "CT 3D; no scout; body part HEAD or NECK, or none stated; description or protocol matches /ax/; "
        "neither description nor protocol matches /mip/; with a contrast agent; slices 0.5 to 3 mm thick; "
        "20 slices or more; "
        "of several the best: the thinnest slices, else the most, else the newest, else the higher series number"
    )


def test_the_inputs_of_a_study_are_told_by_name() -> None:
    flair = replace(CT, name="flair", prefer="newest", optional=True)

    assert rules_of(spec_of(replace(CT, prefer="best"), flair))[1].startswith("flair (may be missing): CT 3D; ")


# --- which of several ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefer", "better", "worse", "why"),
    [
        ("newest", series(2), series(1, slice_thickness_mm=0.5), "acquired later"),
        ("newest", series(2, moment=Instant(utc_us=1)), series(1), "a higher series number"),
        ("newest", series(1, id=2, uid="1.9"), series(1), "equal in all, and last by its UID"),
        ("best", series(1, slice_thickness_mm=1.0), series(2, slice_thickness_mm=2.0), "thinner slices"),
        ("best", series(1, slice_thickness_mm=5.0), series(2), "thinner slices"),
        ("best", series(1, frames=50), series(2), "more slices"),
        ("best", series(2), series(1), "acquired later"),
        ("best", series(2, moment=Instant(utc_us=1)), series(1), "a higher series number"),
    ],
)
def test_the_better_of_two_is_taken_whatever_their_order(
    prefer: Any, better: SeriesFacts, worse: SeriesFacts, why: str
) -> None:
    spec = replace(CT, prefer=prefer)

    assert [preferred(spec, pair) for pair in permutations((better, worse))] == [better, better]
    assert why_preferred(spec, better, worse) == why


def test_each_input_of_a_study_takes_its_own() -> None:
    plain = replace(CT, name="plain", contrast=False, prefer="newest")
    late = replace(CT, name="late", contrast=True, prefer="newest")
    members = [series(1), series(2), series(3, contrast=True)]

    taken, missing = choose([plain, late], members)

    assert ({name: one.id for name, one in taken.items()}, missing) == ({"plain": 2, "late": 3}, ())
    assert choose([plain, late], members[:2])[1] == ("late",)
    assert choose([plain, replace(late, optional=True)], members[:2])[1] == ()


# --- declarations that cannot be served --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"descriptions": ("(t1",)}, "input image: '(t1' is no regular expression"),
        ({"excluded_descriptions": ("*",)}, "input image: '*' is no regular expression"),
        ({"modality": ()}, "input image: it names no modality"),
        ({"slice_thickness_mm": (3, 1)}, "slice_thickness_mm is the least, then the largest"),
        ({"min_slices": 0}, "min_slices must be 1 or more"),
        ({"take": "first", "dimensions": 4}, "dimensions must be 3"),
        ({"take": "last", "dimensions": 2}, "dimensions must be 3"),
        ({"prefer": "every"}, "prefer must be 'newest' or 'best'"),
        ({"optional": True}, "every input is optional"),
    ],
)
def test_what_cannot_be_served_of_a_study_is_said(changes: dict[str, Any], problem: str) -> None:
    (found,) = problems_of(spec_of(replace(CT, **{"prefer": "best", **changes})))

    assert problem in found


@pytest.mark.parametrize("changes", [{"prefer": "newest"}, {"optional": True}])
def test_a_model_of_series_prefers_none_and_misses_none(changes: dict[str, Any]) -> None:
    (problem,) = problems_of(spec_of(replace(CT, **changes), unit=UnitKind.SERIES))

    assert "prefer must be 'every'" in problem


def test_volumes_of_a_series_may_be_chosen_or_all_taken() -> None:
    for changes in ({"take": "first"}, {"take": "last"}, {"dimensions": 4}):
        assert problems_of(spec_of(replace(CT, **changes), unit=UnitKind.SERIES)) == []


def test_a_segment_is_of_an_image_that_is_always_there() -> None:
    segment = Segment(name="s", body_site=HEAD, valid_ml=(0, 1))
    film = replace(CT, name="film", prefer="best", optional=True)
    plain = replace(CT, name="plain", prefer="best")

    (problem,) = problems_of(spec_of(film, plain, outputs=(segment,)))

    assert "'film', which may be missing" in problem
    assert problems_of(spec_of(film, plain, outputs=(replace(segment, of="plain"),))) == []


def test_a_segment_is_of_an_image_that_has_a_volume() -> None:
    segment = Segment(name="s", body_site=HEAD, valid_ml=(0, 1))

    (problem,) = problems_of(spec_of(replace(CT, dimensions=2), unit=UnitKind.SERIES, outputs=(segment,)))

    assert "has no volume" in problem


def test_a_segment_is_of_an_image_that_there_is() -> None:
    segment = Segment(name="s", body_site=HEAD, valid_ml=(0, 1), of="t2")

    assert problems_of(spec_of(CT, unit=UnitKind.SERIES, outputs=(segment,))) == [
        "output s is of 't2', which is no image"
    ]
