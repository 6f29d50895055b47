import gzip
from pathlib import Path

import pysam
import pytest

from medflow.errors import InputRejected, RejectCode
from medflow.genomics.index import build_index

POSITIONS = range(1, 600_000_000, 99_999)
TEXT = (
    "##fileformat=VCFv4.2\n##contig=<ID=1>\n##contig=<ID=2>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    + "".join(f"{contig}\t{position}\t.\tA\tC\t.\t.\t.\n" for contig in "12" for position in POSITIONS)
).encode()


def bgzip(path: Path, data: bytes) -> Path:
    with pysam.BGZFile(str(path), "wb", None) as file:
        file.write(data)
    return path


def test_a_region_is_found_by_the_index_beyond_what_tbi_reaches(tmp_path: Path) -> None:
    path = bgzip(tmp_path / "some.vcf.gz", TEXT)

    index = build_index(path)

    assert index is not None
    assert [file.name for file in tmp_path.iterdir()] == ["some.vcf.gz"]
    (tmp_path / "some.vcf.gz.csi").write_bytes(index)
    with pysam.TabixFile(str(path), index=str(tmp_path / "some.vcf.gz.csi")) as file:
        found = [line.split("\t")[:2] for line in file.fetch("2", 599_500_000, 599_900_000)]
    assert found == [["2", str(position)] for position in POSITIONS if 599_500_000 < position <= 599_900_000]
    assert len(found) == 4


@pytest.mark.parametrize("data", [TEXT[:200], gzip.compress(TEXT[:200]), b""])
def test_a_file_that_is_not_bgzip_has_none(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.vcf"
    path.write_bytes(data)

    assert build_index(path) is None
    assert path.read_bytes() == data


def test_what_cannot_be_indexed_is_refused(tmp_path: Path) -> None:
    unsorted = bgzip(tmp_path / "some.vcf.gz", TEXT + b"1\t1\t.\tA\tC\t.\t.\t.\n")

    with pytest.raises(InputRejected) as caught:
        build_index(unsorted)
    assert caught.value.code == RejectCode.UNSUPPORTED_TYPE
    with pytest.raises(InputRejected, match="no longer there"):
        build_index(tmp_path / "gone.vcf.gz")
