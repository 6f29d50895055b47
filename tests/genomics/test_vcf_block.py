"""What is checked thousands of lines at once comes to what the lines come to one by one: verdict, line and reason."""

import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medflow.errors import InputRejected
from medflow.genomics import stream, vcf, vcf_block
from medflow.genomics.vcf_header import Header, columns_line, first_line, meta_line
from medflow.genomics.vcf_pattern import LinePattern
from medflow.genomics.vcf_record import RecordCheck
from medflow.records import VariantFile

META = (
    '##INFO=<ID=AC,Number=A,Type=Integer,Description="">',
    '##INFO=<ID=AF,Number=A,Type=Float,Description="">',
    '##INFO=<ID=DB,Number=0,Type=Flag,Description="">',
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="">',
    '##INFO=<ID=TWO,Number=2,Type=String,Description="">',
    '##INFO=<ID=ANY,Number=.,Type=String,Description="">',
    '##INFO=<ID=SIGN,Number=1,Type=Character,Description="">',
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="">',
    '##FORMAT=<ID=AD,Number=R,Type=Integer,Description="">',
    '##FORMAT=<ID=GP,Number=G,Type=Float,Description="">',
    '##FORMAT=<ID=PL,Number=G,Type=Integer,Description="">',
    '##FORMAT=<ID=LAA,Number=.,Type=Integer,Description="">',
    '##FORMAT=<ID=PX,Number=1,Type=Integer,Description="">',
    '##FORMAT=<ID=FT,Number=1,Type=String,Description="">',
    '##FORMAT=<ID=RNC,Number=2,Type=Character,Description="">',
    '##FORMAT=<ID=BIAS,Number=1,Type=String,Description="">',
)
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
RIGHT = (
    "1\t{}\trs1;rs2\tA\tC\t50\tPASS\tAC=3;AF=0.1;DP=7\tGT:AD:PL\t0/1:3,4:9,0,9\t1|1",
    "1\t{}\t.\tA\tC,G\t.\t.\tAC=3,1;AF=0.1,.;DB\tGT:AD:PL\t0/2:3,4,5:1,2,3,4,5,6\t./.:0,0,0:.",
    "1\t{}\t.\tAT\tA\t1e3\tq10;s50\tDB;DP=7;TWO=a,b\tGT\t0\t.",
    "1\t{}\t.\tATG\tATC,A\t.5\tPASS\tANY=anything, even this;NEW=1=2\tGP:FT\t0.1,1,.,.,.,.:q\t.:PASS",
    "1\t{}\t.\tA\t.\t0\tPASS\t.\tGT:AD\t0/0:3\t0/0:3,0",
    "1\t{}\t.\tA\t<DEL>\t0\tPASS\tSIGN=x\tGT:AD\t0/0:3,4\t0/0:3,0",
    "1\t{}\t.\tA\tC\t.\t.\tANY=a,,b\tGT:BIAS:RNC\t0/1:a,b:..\t./.:.:I,M",
    "1\t{}\t.\tA\tC,G\t.\t.\t.\tGT:LAA:PX\t0/1:1:7\t0/2:2,1:9",
    "1\t{}\t.\tA\tA[2:20[\t0\tPASS\tDB=1;\tGT:AD\t0/0:3,4\t0/0:3,0",
)
ODD = (
    "", ".", "0", "-1", "+1", "1.5", "1e5", "nan", "1,2", "1,2,3", ",", ";", ":", "=", "/", "|", "0/1", "0/9", "1|.",
    "0|1|1", "A", "N", "R", "*", "<X>", "<X,Y>", "]1:2]A", "A.", "PASS", "PASS;0", "AC=1;AC=1", "DP=3;AC=3", "DB=2",
    'TWO="a,b"', 'TWO="a,b', "CIGAR=3M", "GT:GT", "AD:GT", "GT", "chr1", "<1>", "2", "99999999999", "3000000000",
    "\u00e9", "\x0b", " ", "\r", "\n", "\t", "#",
)  # fmt: skip


def text(lines: list[str], minor: int) -> bytes:
    columns = f"{COLUMNS}\tFORMAT\tone\ttwo"
    return "\n".join([f"##fileformat=VCFv4.{minor}", "##contig=<ID=1,length=500>", *META, columns, *lines, ""]).encode()


def read(data: bytes | Path, *, at_once: bool) -> VariantFile | tuple[str, str]:
    """Of a file, or of its refusal; at once: from the second line on, in blocks of a few lines."""
    sizes = (0, 2, 600) if at_once else (1 << 62, 200, 1 << 20)
    with (
        mock.patch.object(vcf, "SMALL", sizes[0]),
        mock.patch.object(vcf_block, "_TO_LEARN", sizes[1]),
        mock.patch.object(stream, "BLOCK", sizes[2]),
    ):
        try:
            return vcf.read_vcf(data)
        except InputRejected as error:
            return str(error.code), error.message


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Right lines in order, most of them, and up to two wrong or odd cells or characters."""
    steps = draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(RIGHT)), min_size=4, max_size=30))
    position, lines = 1, []
    for step, line in steps:
        position += step
        lines.append(line.format(position))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(lines) - 1))
        if draw(st.booleans()):
            cells = lines[at].split("\t")
            cells[draw(st.integers(0, len(cells) - 1))] = draw(st.sampled_from(ODD))
            lines[at] = "\t".join(cells)
        else:
            start = draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:start] + draw(st.sampled_from(ODD)) + lines[at][start + draw(st.integers(0, 2)) :]
    data = text(lines, draw(st.sampled_from((2, 3, 5))))
    return data[: draw(st.sampled_from((len(data), len(data) - 1)))]


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(files())
def test_blocks_and_single_lines_come_to_the_same(data: bytes) -> None:
    assert read(data, at_once=True) == read(data, at_once=False)


@pytest.mark.parametrize("version", ["4.1", "4.2"])
def test_blocks_and_single_lines_agree_on_the_conformance_set(version: str, realdata: Callable[[str], Path]) -> None:
    for path in sorted((realdata("hts-vcf-4.1-4.2") / "vcf" / version).glob("*/*.vcf")):
        data = path.read_bytes()

        assert read(data, at_once=True) == read(data, at_once=False), path.name


def header_of(samples: int, minor: int) -> Header:
    header = first_line(f"##fileformat=VCFv4.{minor}")
    for number, line in enumerate(META, start=2):
        meta_line(header, number, line)
    names = "".join(f"\ts{number}" for number in range(samples))
    columns_line(header, 99, COLUMNS + ("\tFORMAT" + names if samples else ""))
    return header


def learned(minor: int, samples: int) -> LinePattern:
    pattern = LinePattern(header_of(samples, minor))
    for line in RIGHT:
        pattern.learn(line.format(7).split("\t")[: None if samples else 8])
    pattern.compile()
    return pattern


def matching(tree: Iterable[tuple[object, object]], chance: random.Random) -> str:
    """Some text that an expression, parsed by `re`, matches."""
    text = ""
    for kind, value in tree:
        name = str(kind)
        if name == "LITERAL":
            text += chr(value)
        elif name == "IN":
            one, bounds = chance.choice([item for item in value if str(item[0]) != "NEGATE"])
            text += chr(bounds if str(one) == "LITERAL" else chance.randint(*bounds))
        elif name == "BRANCH":
            text += matching(chance.choice(value[1]), chance)
        elif name == "SUBPATTERN":
            text += matching(value[3], chance)
        else:
            assert name == "MAX_REPEAT"
            least, most, inner = value
            times = min(most, least + chance.choice((0, 0, 1, 1, 2, 3)))
            text += "".join(matching(inner, chance) for _ in range(times))
    return text


@pytest.mark.parametrize(("minor", "samples"), [(2, 2), (3, 2), (3, 0)])
def test_whatever_the_expression_matches_is_right_by_itself(minor: int, samples: int) -> None:
    pattern, chance = learned(minor, samples), random.Random(1)
    tree = re._parser.parse(pattern.expression())  # type: ignore[attr-defined]  # the parser of re

    for _ in range(2000):
        line = matching(tree, chance)
        assert pattern.end_of_match(line.encode(), 0) == len(line)
        columns = line.rstrip("\r\n").split("\t")
        columns[1] = columns[1][-9:]  # how far POS may go is not the expression's business
        check = RecordCheck(header_of(len(columns) - 9 if samples else 0, minor))
        check.check(1, "\t".join(columns))


def test_most_lines_of_a_usual_file_are_matched() -> None:
    pattern = learned(2, 2)
    block = "".join(line.format(7) + "\n" for line in RIGHT[:3] * 50).encode()

    assert pattern.end_of_match(block, 0) == len(block)


def test_keys_that_come_in_an_order_of_their_own_are_left_to_single_lines() -> None:
    pattern, line = learned(2, 0), "1\t7\t.\tA\tC\t.\t.\tDP=7;AC=3"

    assert not pattern.learn(line.split("\t"))
    pattern.compile()
    assert pattern.end_of_match(line.encode() + b"\n", 0) == 0


def test_a_file_in_many_blocks_says_what_it_holds_and_names_the_line_that_is_wrong() -> None:
    lines = [RIGHT[0].format(1 + number // 2).replace("\tC\t", f"\t{'CG'[number % 2]}\t") for number in range(600)]

    whole = read(text(lines, 2), at_once=True)
    assert isinstance(whole, VariantFile)
    assert (whole.records, dict(whole.counts)) == (600, {"passed": 600, "snv": 600})

    lines[431] = lines[430]
    code, message = read(text(lines, 2), at_once=True)  # type: ignore[misc]  # a refusal
    assert code == "bad-vcf-record"
    assert message.startswith(f"line {len(META) + 3 + 432}: an allele of this record was already given")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1\t502\t.\tA\tC\t.\t.\t.\tGT\t0\t0", "beyond the length"),
        ("1\t3000000000\t.\tA\tC\t.\t.\t.\tGT\t0\t0", "POS must be a whole number"),
        ("1\t303\t.\tA\tG\t.\t.\t.\tGT\t0\t0", "already given"),  # as TTA to TTG at 301
        ("1\t200\t.\tA\tG\t.\t.\t.\tGT\t0\t0", "sorted"),
        ("2\t7\t.\tA\tG\t.\t.\t.\tGT\t0\t0\n1\t400\t.\tA\tG\t.\t.\t.\tGT\t0\t0", "stand together"),
    ],
)
def test_what_only_other_lines_or_the_header_tell_is_seen_in_a_block(line: str, reason: str) -> None:
    before = [RIGHT[0].format(number) for number in range(1, 301)]
    spanning = "1\t301\t.\tTTA\tTTG\t.\t.\t.\tGT\t0\t0"
    for between in ([], ["1\t302\t.\tA\tT\t.\t.\t.\tGT\t0\t0"]):
        data = text([*before, spanning, *between, *line.split("\n")], 2)

        refusal = read(data, at_once=True)

        assert refusal == read(data, at_once=False)
        assert isinstance(refusal, tuple) and reason in refusal[1]


def test_an_empty_line_is_seen_though_blocks_of_right_lines_follow() -> None:
    lines = [RIGHT[0].format(number) for number in range(1, 301)]
    lines.insert(20, "")

    refusal = read(text(lines, 2), at_once=True)

    assert refusal == read(text(lines, 2), at_once=False)
    assert refusal == ("bad-vcf-record", f"line {len(META) + 3 + 21}: an empty line")
