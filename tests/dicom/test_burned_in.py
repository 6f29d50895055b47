from dataclasses import replace

import pytest

from medflow.dicom.burned_in import may_have_burned_in_text
from tests.factories_dicom import instance_of, slice_of, write_series

CT, US, CAPTURE = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "6.1", "7"))


class NoObjects:
    def get(self, digest: str) -> bytes:
        raise KeyError(digest)


def ask(tmp_path, sop_class=CT, **elements):
    (path,) = write_series(tmp_path, [slice_of(**elements)])
    return may_have_burned_in_text([instance_of(path, sop_class_uid=sop_class)], NoObjects())


@pytest.mark.parametrize(
    ("said", "sop_class", "may"),
    [
        ("YES", CT, True),
        ("NO", CT, False),
        (None, CT, False),
        ("NO", US, False),
        (None, US, True),
        (None, CAPTURE, True),
        ("PERHAPS", CT, True),
    ],
)
def test_what_is_marked_or_of_a_kind_that_has_text_may_have_it(tmp_path, said, sop_class, may):
    assert ask(tmp_path, sop_class, **({"BurnedInAnnotation": said} if said else {})) is may


def test_one_marked_instance_is_enough(tmp_path):
    paths = write_series(tmp_path, [slice_of(), slice_of(1, BurnedInAnnotation="YES")])

    assert may_have_burned_in_text([instance_of(path) for path in paths], NoObjects())


def test_an_instance_that_cannot_be_read_may_have_anything(tmp_path):
    (path,) = write_series(tmp_path, [slice_of()])

    assert may_have_burned_in_text([replace(instance_of(path), path=None)], NoObjects())
