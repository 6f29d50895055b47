import copy
import pickle

import pytest

from medflow import errors
from medflow.errors import CaseError, InputRejected, MedflowError, RejectCode, ServerUnavailable

EVERY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MedflowError)]


def made(kind: type[MedflowError]) -> MedflowError:
    if issubclass(kind, InputRejected):
        return kind(RejectCode.EMPTY, "no bytes", input_id=3)
    if issubclass(kind, CaseError):
        return kind("no-data", "nothing measured", job_id=3)
    if issubclass(kind, ServerUnavailable):
        return kind("busy", retry_after_s=2.5)
    return kind("a sentence", job_id=3)


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_survives_pickling_and_copying_with_its_fields(kind):
    error = made(kind)

    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert again.message == str(error) == error.message
        assert again.fields == error.fields


def test_fields_read_as_attributes_and_unknown_ones_do_not():
    error = InputRejected(RejectCode.EMPTY, "no bytes", input_id=3)

    assert (error.code, error.input_id) == (RejectCode.EMPTY, 3)
    with pytest.raises(AttributeError):
        _ = error.no_such_field
