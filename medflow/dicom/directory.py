"""DICOMDIR: the file IDs that a media directory's records name (PS3.3 F.3, PS3.10 8.6)."""

from __future__ import annotations

from io import BytesIO

from pydicom import dcmread
from pydicom.multival import MultiValue

from medflow.dicom.elements import first_of, items_of, number_of, quiet, value_of
from medflow.errors import InputRejected, RejectCode

MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


def read_directory(data: bytes) -> list[tuple[str, ...]] | None:
    """The file IDs of all records in use, in their order; None when it is another kind of object.

    Raises
    ------
    InputRejected
        NOT_DICOM: it cannot be read.
    """
    quiet()
    try:
        dataset = dcmread(BytesIO(data))
        kind = first_of(dataset.file_meta, "MediaStorageSOPClassUID")
        if kind != MEDIA_DIRECTORY and "DirectoryRecordSequence" not in dataset:
            return None
        file_ids = []
        for record in items_of(dataset, "DirectoryRecordSequence"):
            value = value_of(record, "ReferencedFileID")
            if value is not None and number_of(record, "RecordInUseFlag") != 0:
                parts = value if isinstance(value, MultiValue | list) else [value]
                file_ids.append(tuple(str(part) for part in parts))
        return file_ids
    except Exception as error:  # whatever pydicom's converters raise on damaged bytes
        reason = f"the DICOMDIR cannot be read ({type(error).__name__})"
        raise InputRejected(RejectCode.NOT_DICOM, reason) from None
