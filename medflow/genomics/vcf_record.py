"""The records of a VCF file, held line by line to the specification and to what its header declares.

Nothing here quotes a value of the file: a reason names the line, the column and the key, never a genotype or a name.
Section numbers are those of VCF 4.3 (1.6 data lines, 5 structural variants and breakends).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import comb

from medflow.errors import InputRejected, RejectCode
from medflow.genomics.vcf_header import NOT_NEGATIVE, Field, Header, reserved
from medflow.records import Variant

MAX_POSITION = 2**31 - 1
LOCAL = frozenset({"LA", "LR", "LG"})  # a Number that counts local alleles: those that LAA names (4.5)
_MEMO = 100_000  # sample texts remembered as right: most columns of a cohort repeat a few
_SAID = 1_000_000  # genotypes of many alleles and a high ploidy are numbers of thousands of digits
_MEMO_TEXT = 256  # characters of a text that is remembered

_CHROM_OLD = re.compile(r"<[^\s:,<>]+>|[^\s:,<>]+")  # 4.1 and 4.2: no colon
_CHROM = re.compile(r"<[^\s,<>]+>|[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")
_POSITION = re.compile(r"[0-9]{1,10}")
_ID = re.compile(r"[^\s;]+(;[^\s;]+)*")
_REF = re.compile(r"[ACGTNacgtn]+")
_BASES = re.compile(r"[ACGTNacgtn]+")
_SINGLE_BREAKEND = re.compile(r"\.[ACGTNacgtn]+|[ACGTNacgtn]+\.")
_SYMBOLIC = re.compile(r"<[^\s,<>]+>")
_MATE = r"(?:\[[^\s\[\],]+:\d+\[|\][^\s\[\],]+:\d+\])"
_BREAKEND = re.compile(rf"(?:[ACGTNacgtn]+|\.){_MATE}|{_MATE}(?:[ACGTNacgtn]+|\.)")
_FILTER = re.compile(r"[^\s;]+(;[^\s;]+)*")
_INFO_KEY = re.compile(r"[^\s;=,]+")
_FORMAT_KEY = re.compile(r"[A-Za-z0-9]+")
_FORMAT_KEY_DECLARED = re.compile(r"[A-Za-z_0-9][0-9A-Za-z_.]*")
_GENOTYPE = re.compile(r"[/|]?(?:\.|[0-9]{1,9})(?:[/|](?:\.|[0-9]{1,9}))*")
_ALLELE = re.compile(r"\.|[0-9]+")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf|infinity|nan)", re.IGNORECASE)
_CIGAR = re.compile(r"(?:[0-9]+[MIDNSHPX=])+")


_DEFINED = frozenset(reserved("INFO", 2)) | frozenset(reserved("FORMAT", 2))


def bad_record(line: int, reason: str) -> InputRejected:
    """The refusal of a data line; ``reason`` goes on from "line N: " and quotes no value of the file."""
    return InputRejected(RejectCode.BAD_VCF_RECORD, f"line {line}: {reason}", line=line)


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """Where a record lies and what it says of the reference."""

    contig: str
    position: int
    ref: str
    alts: tuple[str, ...]

    def variants(self) -> list[Variant]:
        """Its alleles of plain bases, trimmed of what they share with the reference, so that equal ones are equal."""
        plain = [trimmed(self.position, self.ref, alt) for alt in self.alts if _BASES.fullmatch(alt)]
        return [Variant(contig=self.contig, position=at, ref=ref, alt=alt) for at, ref, alt in plain]


def trimmed(position: int, ref: str, alt: str) -> tuple[int, str, str]:
    """POS, REF and ALT of plain bases in upper case, without what the alleles share; each keeps one base."""
    ref, alt = ref.upper(), alt.upper()
    if len(ref) > 1 and len(alt) > 1:  # cut once: alleles may be megabases
        most = min(len(ref), len(alt)) - 1
        last = next((n for n in range(most) if ref[-1 - n] != alt[-1 - n]), most)
        ref, alt = ref[: len(ref) - last], alt[: len(alt) - last]
        most -= last
        first = next((n for n in range(most) if ref[n] != alt[n]), most)
        ref, alt, position = ref[first:], alt[first:], position + first
    return position, ref, alt


class RecordCheck:
    """Checks the data lines of one file; holds what its header says and what was already seen to be right."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._chrom = _CHROM_OLD if header.minor < 3 else _CHROM
        self._declared = {name for name in header.contigs if _CHROM.fullmatch(name)}  # HLA-A*01:01 in a file of 4.2
        self._info = {**reserved("INFO", header.minor), **header.info}
        self._format = {**reserved("FORMAT", header.minor), **header.format}
        self._columns = 9 + len(header.samples) if header.samples else 8
        self._formats: dict[str, list[tuple[str, Field | None]]] = {}
        self._seen: set[tuple[str, int, str]] = set()

    def check(self, line: int, text: str) -> Site:
        """The site of one data line; raises InputRejected."""
        found = text.count("\t") + 1
        if found != self._columns:
            raise bad_record(line, f"{found} columns separated by tabs, the header has {self._columns}")
        columns = text.split("\t")
        site = self._site(line, columns)
        self._quality(line, columns[5])
        self._filters(line, columns[6])
        self._infos(line, columns[7], len(site.alts), site.alts == (".",))
        if self._header.samples:
            self._samples(line, columns[8], columns[9:], len(site.alts), site.alts == (".",))
        return site

    def _site(self, line: int, columns: list[str]) -> Site:
        chrom, pos, identifier, ref, alt = columns[:5]
        if not self._chrom.fullmatch(chrom) and chrom not in self._declared:
            raise bad_record(line, "CHROM has a character that VCF does not allow there")
        if not _POSITION.fullmatch(pos) or int(pos) > MAX_POSITION:
            raise bad_record(line, f"POS must be a whole number from 0 to {MAX_POSITION}")
        contig = chrom.strip("<>")  # brackets say that the contig stands in the assembly file (section 1.6.1)
        length = self._header.contigs.get(contig)
        if length is not None and int(pos) > length + 1:
            raise bad_record(line, "POS lies beyond the length that the header gives for the contig")
        if not _ID.fullmatch(identifier):
            raise bad_record(line, "ID must be identifiers separated by semicolons, without white space")
        if not _REF.fullmatch(ref):
            raise bad_record(line, "REF must be one allele of the letters A, C, G, T and N")
        alts = tuple(alt.split(","))
        if alts != (".",) and not all(_is_allele(item) for item in alts):
            raise bad_record(line, "ALT must be bases, *, <symbol> or a breakend, separated by single commas")
        return Site(contig=contig, position=int(pos), ref=ref, alts=alts)

    def _quality(self, line: int, text: str) -> None:
        if text != "." and not (_FLOAT.fullmatch(text) and not text.startswith("-")):
            raise bad_record(line, "QUAL must be a number that is not negative, or a dot")

    def _filters(self, line: int, text: str) -> None:
        if not _FILTER.fullmatch(text):
            raise bad_record(line, "FILTER must be PASS, a dot, or filters separated by semicolons")
        names = text.split(";")
        if "0" in names or ("." in names and len(names) > 1):
            raise bad_record(line, "FILTER may neither hold 0 nor a dot beside a filter")

    def _infos(self, line: int, text: str, alts: int, no_alt: bool) -> None:
        if text == ".":
            return
        keys: set[str] = set()
        for entry in text.removesuffix(";").split(";"):
            key, equals, value = entry.partition("=")
            if not _INFO_KEY.fullmatch(key):
                raise bad_record(line, "INFO has a key that is empty or contains white space or a comma")
            if key in keys:
                raise bad_record(line, "INFO has the same key twice")
            keys.add(key)
            field = self._info.get(key)
            if field is not None:
                self._info_value(line, key, field, value if equals else None, alts, no_alt)

    def _info_value(self, line: int, key: str, field: Field, value: str | None, alts: int, no_alt: bool) -> None:
        if field.type == "Flag":
            if value not in (None, "0", "1"):
                raise bad_record(line, f"INFO {key} is a Flag and takes no value")
            return
        if value is None or value == "":
            raise bad_record(line, f"INFO {key} must have a value")
        if value == ".":
            return
        values = [value] if _is_quoted(field, value) else value.split(",")
        right = None if is_free_text(key, field) else _counts(field.number, alts, no_alt, (), None)
        if right is not None and len(values) not in right:
            raise bad_record(line, f"INFO {key} {_miscounted(field.number, len(values), right)}")
        if not all(_is_a(field.type, item) for item in values):
            raise bad_record(line, f"INFO {key} must be of Type {field.type}")
        if key in NOT_NEGATIVE and any(item.startswith("-") for item in values):
            raise bad_record(line, f"INFO {key} may not be negative")
        if key == "CIGAR" and not all(item == "." or _CIGAR.fullmatch(item) for item in values):
            raise bad_record(line, "INFO CIGAR must be counts and operations")

    def _samples(self, line: int, text: str, samples: list[str], alts: int, no_alt: bool) -> None:
        keys = self._formats.get(text)
        if keys is None:
            keys = self._formats[text] = self._keys(line, text)
        for number, sample in enumerate(samples, start=1):
            memo = (text, alts if not no_alt else 0, sample)
            if memo in self._seen:
                continue
            self._sample(line, number, keys, sample, alts, no_alt)
            if len(sample) > _MEMO_TEXT:
                continue
            if len(self._seen) >= _MEMO:
                self._seen.clear()
            self._seen.add(memo)

    def _keys(self, line: int, text: str) -> list[tuple[str, Field | None]]:
        keys = text.split(":")
        for key in keys:
            pattern = _FORMAT_KEY_DECLARED if key in self._header.format else _FORMAT_KEY
            if text != "." and not pattern.fullmatch(key):
                raise bad_record(line, "FORMAT must be alphanumeric keys separated by single colons")
        if len(set(keys)) != len(keys):
            raise bad_record(line, "FORMAT has the same key twice")
        if "GT" in keys[1:]:
            raise bad_record(line, "GT must be the first key of FORMAT")
        return [(key, self._format.get(key)) for key in keys]

    def _sample(
        self, line: int, number: int, keys: list[tuple[str, Field | None]], text: str, alts: int, no_alt: bool
    ) -> None:
        where = f"sample column {number}"
        values = text.split(":")
        if len(values) > len(keys):
            raise bad_record(line, f"{where} has more fields than FORMAT")
        ploidies: tuple[int, ...] = (1, 2)
        local = self._local_alleles(line, where, keys, values, alts)
        for (key, field), value in zip(keys, values, strict=False):
            if value == "":
                raise bad_record(line, f"{where} has an empty field")
            if key == "GT":
                ploidies = _ploidies(line, where, value, alts)
            elif field is not None and value != ".":
                if is_free_text(key, field) and field.number == "1":
                    items = [value]
                else:
                    items = list(value) if _are_letters(field, value) else value.split(",")
                right = _counts(field.number, alts, no_alt, ploidies, local)
                if right is not None and len(items) not in right:
                    raise bad_record(line, f"{where}: {key} {_miscounted(field.number, len(items), right)}")
                if not all(_is_a(field.type, item) for item in items):
                    raise bad_record(line, f"{where}: {key} must be of Type {field.type}")

    def _local_alleles(
        self, line: int, where: str, keys: list[tuple[str, Field | None]], values: list[str], alts: int
    ) -> int | None:
        """How many alternate alleles LAA names for this sample (4.5); None without it."""
        named = next((value for (key, _), value in zip(keys, values, strict=False) if key == "LAA"), ".")
        if self._header.minor < 5 or named == ".":
            return None
        indices = named.split(",")
        if len(set(indices)) != len(indices) or not all(
            _POSITION.fullmatch(index) and 1 <= int(index) <= alts for index in indices
        ):
            raise bad_record(line, f"{where}: LAA must be numbers of the record's ALT alleles, none of them twice")
        return len(indices)


def is_free_text(key: str, field: Field) -> bool:
    """Whether commas in a value need not part several: a String that the specification does not define itself.

    Callers write texts with commas whatever Number they declare (AS_FilterStatus of GATK, DP4 of VarScan); none of
    them is read by its count.
    """
    return field.type == "String" and key not in _DEFINED


def _is_quoted(field: Field, value: str) -> bool:
    return field.type == "String" and len(value) > 1 and value[0] == value[-1] == '"'


def _are_letters(field: Field, value: str) -> bool:
    """Whether Characters stand one after the other, without commas, as htslib writes them (RNC of GLnexus)."""
    return field.type == "Character" and "," not in value and field.number == str(len(value))


@lru_cache(maxsize=4096)
def _counts(
    number: str, alts: int, no_alt: bool, ploidies: tuple[int, ...], local: int | None
) -> frozenset[int] | None:
    """How many values a Number allows for this many ALT alleles; None where any.

    Without an ALT both readings of "per allele" are allowed. ``ploidies`` are those that the genotype may have, none in
    INFO; ``local`` is how many of the alleles the sample's LAA names (LA, LR and LG of 4.5), P is of 4.4.
    """
    if number.isdigit():
        return frozenset({int(number)})
    if number == "P":
        return frozenset(ploidies) if len(ploidies) == 1 else None
    if number in LOCAL:
        return None if local is None else _per_allele(number[1], (local,), ploidies)
    return _per_allele(number, (alts, 0) if no_alt else (alts,), ploidies, least=1)


def _per_allele(
    number: str, alternates: Iterable[int], ploidies: tuple[int, ...], *, least: int = 0
) -> frozenset[int] | None:
    if number == "A":
        return frozenset(max(count, least) for count in alternates)
    if number == "R":
        return frozenset(count + 1 for count in alternates)
    if number == "G" and ploidies:
        return frozenset(comb(count + ploidy, ploidy) for count in alternates for ploidy in ploidies)
    return None


def _miscounted(number: str, found: int, right: frozenset[int]) -> str:
    values = "1 value" if found == 1 else f"{found} values"
    wanted = (str(count) if count <= _SAID else f"more than {_SAID}" for count in sorted(right))
    return f"has {values} instead of {' or '.join(dict.fromkeys(wanted))} (its Number is {number})"


def _is_allele(text: str) -> bool:
    return bool(
        _BASES.fullmatch(text)
        or text == "*"
        or _SYMBOLIC.fullmatch(text)
        or _BREAKEND.fullmatch(text)
        or _SINGLE_BREAKEND.fullmatch(text)
    )


def _ploidies(line: int, where: str, genotype: str, alts: int) -> tuple[int, ...]:
    """The ploidies that the likelihoods may be given for: the genotype's own, any where it is not called."""
    if not _GENOTYPE.fullmatch(genotype):
        raise bad_record(line, f"{where}: GT must be allele numbers or dots separated by / or |")
    alleles = _ALLELE.findall(genotype)
    if any(allele != "." and int(allele) > alts for allele in alleles):
        raise bad_record(line, f"{where}: GT names an allele that the record does not have")
    return (1, 2) if genotype == "." else (len(alleles),)


def _is_a(kind: str, text: str) -> bool:
    if text == "." or kind == "String":
        return True
    if kind == "Integer":
        return bool(_INTEGER.fullmatch(text))
    if kind == "Float":
        return bool(_FLOAT.fullmatch(text))
    return len(text) == 1
