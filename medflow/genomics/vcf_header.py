"""The header of a VCF file, held to what the specification demands and parsers let pass.

Rules are those of the VCF specification, sections 1.2 to 1.5 (meta-information, header line) and 1.6 (reserved
keys), of the version that the file names. Where widely used callers write something that the text forbids but that
cannot be misread, it is taken: a Float GQ, symbolic alleles such as NON_REF.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from medflow.errors import InputRejected, RejectCode

COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
MAX_NAME = 250  # characters of a sample's name: what a database's index takes

_FILEFORMAT = re.compile(r"##fileformat=VCFv4\.([1-5])")
_FIELD = re.compile(r'([^=,<>"]+)=("(?:[^"\\]|\\.)*"|[^,<>"]*)(?:,|$)')
_COUNT = re.compile(r"[0-9]{1,18}")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/@\s]*@)?(?P<host>[^/:\s]+)(?::[0-9]+)?(?:[/?#]\S*)?")
_IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
_ALT_TYPE = re.compile(  # those of the specification, and what callers write (GATK-SV, Sniffles, pbsv, TIDDIT)
    r"(DEL|INS|DUP|INV|CNV|BND|TRA|CN\d+|STR\d*|CTX|ITX|NON_REF|X|\*|[RYSWKMBDHV]"
    r"|CPX|MCNV|INVDUP|TDUP|LOH|ROH|TR|cnv|(?:DEL|INS|DUP|INV|INVDUP)(?:/(?:DEL|INS|DUP|INV|INVDUP))+)(:[^\s,<>]+)*"
)
_GENOME_ID = re.compile(r'[^\s:;,<>="]+')
_TYPES = {"INFO": {"Integer", "Float", "Flag", "Character", "String"}}
_TYPES["FORMAT"] = _TYPES["INFO"] - {"Flag"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """How often a key's value repeats and what it is: Number and Type of an INFO or FORMAT line."""

    number: str
    type: str


def _fields(text: str) -> dict[str, Field]:
    triples = (entry.split() for entry in text.split(","))
    return {key: Field(number=number, type=kind) for key, number, kind in triples}


# Section 1.4.2 (4.1, 4.2) and table 1 and 2 (4.3 and later)
_INFO = _fields(
    "AA 1 String,AC A Integer,AF A Float,AN 1 Integer,BQ 1 Float,CIGAR A String,DB 0 Flag,DP 1 Integer,"
    "END 1 Integer,H2 0 Flag,H3 0 Flag,MQ 1 Float,MQ0 1 Integer,NS 1 Integer,SOMATIC 0 Flag,VALIDATED 0 Flag,"
    "1000G 0 Flag"
)
_FORMAT = _fields(
    "DP 1 Integer,EC A Integer,FT 1 String,GL G Float,GLE G String,GP G Float,GQ 1 Integer,GT 1 String,"
    "HQ 2 Integer,MQ 1 Integer,PL G Integer,PQ 1 Integer,PS 1 Integer"
)
_PER_ALLELE = _fields("AD R Integer,ADF R Integer,ADR R Integer")  # reserved since 4.3
# types that callers write, and that lose nothing
_MAY_BE = {("FORMAT", "GQ"): "Float", ("INFO", "MQ"): "Integer", ("FORMAT", "PS"): "String"}
_COUNTED = frozenset({("FORMAT", "GT"), ("INFO", "AA")})  # reserved keys whose Number may not be left open
NOT_NEGATIVE = frozenset({"AC", "AF", "AN", "DP", "END", "MQ0", "NS"})


def reserved(section: str, minor: int) -> dict[str, Field]:
    """The keys of INFO or FORMAT that version 4.``minor`` defines itself."""
    keys = dict(_INFO if section == "INFO" else _FORMAT)
    if minor >= 3:
        keys.update(_PER_ALLELE)
        keys.pop("GLE", None)
    return keys


@dataclass(kw_only=True, slots=True)
class Header:
    """What the header declares. ``contigs`` maps names to lengths where they are given.

    ``assemblies`` are all its words for the assembly, ``assembly`` the one that counts most.
    """

    minor: int  # of the version: 2 in VCFv4.2
    samples: tuple[str, ...] = ()
    contigs: dict[str, int | None] = field(default_factory=dict)
    info: dict[str, Field] = field(default_factory=dict)
    format: dict[str, Field] = field(default_factory=dict)
    assembly: str | None = None
    assemblies: set[str] = field(default_factory=set)

    @property
    def version(self) -> str:
        """As the file names it, for example VCFv4.2."""
        return f"VCFv4.{self.minor}"


def bad_header(line: int, reason: str) -> InputRejected:
    """The refusal of a header; ``reason`` goes on from "line N: " and quotes no value of the file."""
    return InputRejected(RejectCode.BAD_VCF_HEADER, f"line {line}: {reason}", line=line)


def first_line(text: str) -> Header:
    """Section 1.2.1: the version. Raises InputRejected for anything but VCF 4.1 to 4.5."""
    found = _FILEFORMAT.fullmatch(text)
    if text.startswith("\ufeff"):
        raise bad_header(1, "the file begins with a byte order mark, which VCF does not allow: save it without")
    if not found:
        raise bad_header(1, "the first line must be ##fileformat=VCFv4.1, 4.2, 4.3, 4.4 or 4.5, and nothing else")
    return Header(minor=int(found[1]))


def meta_line(header: Header, line: int, text: str) -> None:
    """Take one ``##`` line into ``header``; raises InputRejected."""
    key, equals, value = text[2:].partition("=")
    if not equals or not key.strip() or not value.strip():
        raise bad_header(line, "a meta-information line must be ##key=value")
    if key == "fileformat":
        raise bad_header(line, "##fileformat must stand once, in the first line")
    if key in _STRUCTURED:
        _STRUCTURED[key](header, line, key, _parts(line, key, value))
    elif key in ("assembly", "pedigreeDB"):
        _address(line, key, value)
    if key in ("assembly", "reference"):
        header.assemblies.add(value.strip())
    if key in ("assembly", "reference") and (header.assembly is None or key == "reference"):
        header.assembly = value.strip()


def columns_line(header: Header, line: int, text: str) -> None:
    """Section 1.5: the column names, and the samples after FORMAT; raises InputRejected."""
    names = text.split("\t")
    if tuple(names[:8]) != COLUMNS:
        raise bad_header(line, f"the columns must be {' '.join(COLUMNS)}, separated by tabs")
    if len(names) > 8 and names[8] != "FORMAT":
        raise bad_header(line, "the ninth column must be FORMAT")
    samples = tuple(names[9:])
    if len(names) > 8 and not samples:
        raise bad_header(line, "a FORMAT column must be followed by samples")
    if not all(name.strip() for name in samples):
        raise bad_header(line, "a sample has an empty name")
    if not all(len(name) <= MAX_NAME and name.isprintable() for name in samples):
        raise bad_header(line, f"a sample name is longer than {MAX_NAME} characters, or holds some that do not print")
    if len(set(samples)) != len(samples):
        raise bad_header(line, "sample names must be unique")
    header.samples = samples


def _parts(line: int, key: str, value: str) -> dict[str, str]:
    """The fields of ``<a=b,c="d">`` in their order, quotes kept."""
    if not (value.startswith("<") and value.endswith(">") and len(value) > 2):
        raise bad_header(line, f"##{key} must be <field=value,...>, with its closing bracket on the same line")
    inside, parts, at = value[1:-1], {}, 0
    while at < len(inside):
        found = _FIELD.match(inside, at)
        if not found:
            raise bad_header(line, f"##{key} is not field=value,...: check quotes, commas and angle brackets")
        name = found[1].strip()
        if name in parts:
            raise bad_header(line, f"##{key} names a field twice")
        parts[name] = found[2]
        at = found.end()
    return parts


def _identified(line: int, key: str, parts: dict[str, str]) -> str:
    name = parts.get("ID", "")
    if not name:
        raise bad_header(line, f"##{key} must have an ID")
    if re.search(r"\s", name):
        raise bad_header(line, f"the ID of ##{key} contains white space")
    return name.strip('"')


def _described(line: int, key: str, parts: dict[str, str]) -> None:
    if not parts.get("Description", "").startswith('"'):
        raise bad_header(line, f"##{key} must have a Description in double quotes")


def _in_order(header: Header, line: int, key: str, parts: dict[str, str]) -> None:
    wanted = [name for name in ("ID", "Number", "Type", "Description") if name in parts]
    if header.minor < 3 and list(parts)[: len(wanted)] != wanted:
        raise bad_header(line, f"the fields of ##{key} must come in the order ID, Number, Type, Description")


def _number_and_type(header: Header, line: int, key: str, parts: dict[str, str]) -> None:
    number = parts.get("Number", "")
    letters = {"A", "G", "."} | ({"R"} if header.minor >= 2 else set())
    if header.minor >= 4 and key == "FORMAT":
        letters |= {"P", "LA", "LR", "LG", "M"}
    if not _COUNT.fullmatch(number) and number not in letters:
        raise bad_header(line, f"the Number of ##{key} must be a count or one of {' '.join(sorted(letters))}")
    if parts.get("Type") not in _TYPES.get(key, _TYPES["INFO"]):
        types = " ".join(sorted(_TYPES.get(key, _TYPES["INFO"])))
        raise bad_header(line, f"the Type of ##{key} must be one of {types}")


def _info_or_format(header: Header, line: int, key: str, parts: dict[str, str]) -> None:
    name = _identified(line, key, parts)
    _number_and_type(header, line, key, parts)
    _described(line, key, parts)
    _in_order(header, line, key, parts)
    found = Field(number=parts["Number"], type=parts["Type"])
    standard = reserved(key, header.minor).get(name)
    if standard is not None:
        if found.type != standard.type and found.type != _MAY_BE.get((key, name)):
            raise bad_header(line, f"{key} {name} is reserved: its Type must be {standard.type}")
        if found.number != standard.number and not _may_be_counted(key, name, found.number, standard.number):
            raise bad_header(line, f"{key} {name} is reserved: its Number must be {standard.number}")
    (header.info if key == "INFO" else header.format)[name] = found


def _may_be_counted(key: str, name: str, number: str, standard: str) -> bool:
    """Whether callers declare that Number of a reserved list, and nothing is lost by it.

    A dot says only that it is not counted (GATK's FT; AC, AD, GL and PL of many); 3 is what a G comes to mostly
    (Minimac's GP).
    """
    left_open = number == "." and (key == "FORMAT" or not standard.isdigit())
    return (key, name) not in _COUNTED and (left_open or (number == "3" and standard == "G"))


def _filter(header: Header, line: int, key: str, parts: dict[str, str]) -> None:
    _identified(line, key, parts)
    _described(line, key, parts)


def _alt(header: Header, line: int, key: str, parts: dict[str, str]) -> None:
    if not _ALT_TYPE.fullmatch(_identified(line, key, parts)):
        raise bad_header(line, "the ID of ##ALT must begin with a known type: DEL, INS, DUP, INV, CNV or BND")
    if "Number" in parts or "Type" in parts:
        _number_and_type(header, line, key, parts)
    _described(line, key, parts)
    _in_order(header, line, key, parts)


def _contig(header: Header, line: int, key: str, parts: dict[str, str]) -> None:
    name = _identified(line, key, parts)
    length = parts.get("length", "").strip('"')
    if length and not _COUNT.fullmatch(length):
        raise bad_header(line, "the length of ##contig must be a whole number")
    header.contigs[name] = int(length) if length else header.contigs.get(name)
    if parts.get("assembly"):
        header.assemblies.add(parts["assembly"].strip('"'))
        header.assembly = header.assembly or parts["assembly"].strip('"')


def _sample(header: Header, line: int, key: str, parts: dict[str, str]) -> None:
    _identified(line, key, parts)
    if header.minor < 3:  # 4.3 made every field but the ID a matter of taste
        if not parts.get("Genomes"):
            raise bad_header(line, "##SAMPLE must name its Genomes")
        if any(value.startswith('"') for name, value in parts.items() if name != "Description"):
            raise bad_header(line, "only the Description of ##SAMPLE stands in quotes")


def _pedigree(header: Header, line: int, key: str, parts: dict[str, str]) -> None:
    if not all(_GENOME_ID.fullmatch(value) for value in parts.values()):
        raise bad_header(line, "##PEDIGREE names a genome with white space or punctuation in it")


_STRUCTURED = {
    "INFO": _info_or_format,
    "FORMAT": _info_or_format,
    "FILTER": _filter,
    "ALT": _alt,
    "contig": _contig,
    "SAMPLE": _sample,
    "PEDIGREE": _pedigree,
}


def _address(line: int, key: str, value: str) -> None:
    address = value.strip().removeprefix("<").removesuffix(">")
    found = _URL.fullmatch(address)
    if not address or ("://" in address and not found):
        raise bad_header(line, f"##{key} must be an address")
    if found and found["host"].rpartition(".")[2].isdigit() and not _IPV4.fullmatch(found["host"]):
        raise bad_header(line, f"the address of ##{key} names no host")
