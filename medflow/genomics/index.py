"""The index of a VCF file: where in a bgzip file the records of a region are.

CSI, not TBI: TBI ends at 512 Mb of a contig. htslib builds it, as it is htslib that reads by it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from medflow.errors import InputRejected, RejectCode

_BGZIP = b"\x1f\x8b\x08\x04"


def build_index(path: Path) -> bytes | None:
    """The CSI index (SAM specifications, CSIv1) of a bgzip VCF file; None for one in another format, which has none.

    The file is read once, and must be sorted as `read_vcf` demands.

    Raises
    ------
    InputRejected
        VANISHED or UNREADABLE; UNSUPPORTED_TYPE when htslib finds no order in it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(18)
    except FileNotFoundError:
        raise InputRejected(RejectCode.VANISHED, "the file is no longer there") from None
    except OSError as error:
        raise InputRejected(RejectCode.UNREADABLE, f"the file cannot be read: {error.strerror}") from None
    if head[:4] != _BGZIP or head[12:14] != b"BC":
        return None
    import pysam  # loads htslib

    with tempfile.TemporaryDirectory(prefix="medflow-index-") as folder:
        index = Path(folder, "index.csi")
        try:
            pysam.tabix_index(str(path), preset="vcf", csi=True, index=str(index), force=True, keep_original=True)
            return index.read_bytes()
        except (OSError, ValueError):
            raise InputRejected(RejectCode.UNSUPPORTED_TYPE, "no index can be made of it: is it a VCF file?") from None
