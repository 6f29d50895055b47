"""What lines of one VCF file look like when they are right, as one expression that matches thousands of them at once.

The expression is learned: a line that it does not match goes to `RecordCheck`, and when that finds it right, its number
of alleles, its INFO keys and its FORMAT are taken into the expression. It is narrower than `RecordCheck` everywhere
(printable ASCII only, the common forms of an allele or a number), so what it matches is right, and what it does not
match may be right or wrong. RE2 matches in one pass of constant memory, whatever the text.

It says nothing of the number of columns, of POS against the contig, or of one line against another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from math import comb

import re2

from medflow.genomics.vcf_header import NOT_NEGATIVE, Field, Header, reserved
from medflow.genomics.vcf_record import LOCAL, is_free_text

_MAX_ALTS = 6  # alleles beyond the reference, INFO keys, FORMATs and counts beyond which lines are checked one by one
_MAX_KEYS = 100
_MAX_FIRST = 6
_MAX_FORMATS = 16
_MAX_COUNT = 64
_MEMORY = 64 << 20  # of RE2, for the expression and what it has worked out of it
_NONE = Field(number=".", type="String")
_KEY = re.compile(r"[A-Za-z0-9_.]+", re.ASCII)

_BASES = "[ACGTNacgtn]+"
_MATE = r"(?:\[[!-+\--Z\\^-~]+:[0-9]+\[|\][!-+\--Z\\^-~]+:[0-9]+\])"
_ALLELE = rf"(?:{_BASES}|\*|<[!-+\--;=?-~]+>|(?:{_BASES}|\.){_MATE}|{_MATE}(?:{_BASES}|\.)|\.{_BASES}|{_BASES}\.)"
_UNSIGNED = r"(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|infinity|nan))"
_FILTER_NAME = "[A-Za-z_][!-:<-~]*"
_CIGAR = r"(?:(?:[0-9]+[MIDNSHPX=])+|\.)"
_CHROM_OLD = r"[!-+\--9;=?-~]+"
_CHROM = "[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*"
_SITE = r"\t[0-9]{1,10}\t[!-:<-~]+(?:;[!-:<-~]+)*\t" + _BASES + r"\t"
_QUALITY = rf"\t(?:\.|\+?{_UNSIGNED})\t(?:\.|{_FILTER_NAME}(?:;{_FILTER_NAME})*)\t"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Forms:
    """What was seen in right lines: numbers of alleles (0 for a dot), FORMATs, and which INFO key followed which."""

    alts: frozenset[int] = frozenset()
    follows: frozenset[tuple[str, str]] = frozenset()
    formats: frozenset[str] = frozenset()

    def usable(self) -> bool:
        """Whether the INFO keys of all lines agree with one order, and there are not too many forms."""
        keys = {key for _, key in self.follows}
        if len(keys) > _MAX_KEYS or len(self.first()) > _MAX_FIRST or len(self.formats) > _MAX_FORMATS:
            return False
        try:
            self.order()
        except CycleError:
            return False
        return True

    def order(self) -> list[str]:
        """Every INFO key once, in an order that all lines agree with; raises CycleError when there is none."""
        before: dict[str, set[str]] = {}
        for key, following in sorted(self.follows):
            before.setdefault(following, set()).update({key} if key else ())
        return list(TopologicalSorter(before).static_order())

    def first(self) -> list[str]:
        """The keys that an INFO began with."""
        return sorted(key for before, key in self.follows if not before)


class LinePattern:
    """The expression for the lines of one file. ``compiled`` is False until it can be used."""

    def __init__(self, header: Header) -> None:
        self._old = header.minor < 3
        self._has_samples = bool(header.samples)
        self._info = {**reserved("INFO", header.minor), **header.info}
        self._format = {**reserved("FORMAT", header.minor), **header.format}
        self._forms = _Forms()
        self._pattern: re2._Regexp | None = None

    @property
    def compiled(self) -> bool:
        """Whether `end_of_match` can be asked."""
        return self._pattern is not None

    def end_of_match(self, block: bytes, start: int) -> int:
        """Where the lines end that match, from ``start`` (of a line) on."""
        found = self._pattern.match(block, start) if self._pattern is not None else None
        return start if found is None else found.end()

    def learn(self, columns: Sequence[str]) -> bool:
        """Take the form of a line that was found right; False when nothing new could be taken from it."""
        alts = 0 if columns[4] == "." else columns[4].count(",") + 1
        keys = [] if columns[7] == "." else [entry.split("=", 1)[0] for entry in columns[7].rstrip(";").split(";")]
        names = (*keys, *":".join(columns[8:9]).split(":"))
        known = _Forms(
            alts=self._forms.alts | {alts},
            follows=self._forms.follows | set(zip(["", *keys], keys, strict=False)),
            formats=self._forms.formats | set(columns[8:9]),
        )
        if known == self._forms or alts > _MAX_ALTS or not all(_KEY.fullmatch(name) for name in names if name):
            return False
        if self._has_local_alleles(columns) or not known.usable():
            return False
        self._forms = known
        return True

    def _has_local_alleles(self, columns: Sequence[str]) -> bool:
        """Whether what a sample may hold depends on its own LAA, which no expression of this size can tell."""
        keys = ":".join(columns[8:9]).split(":")
        return any(key == "LAA" or (self._format.get(key) or _NONE).number in LOCAL for key in keys)

    def expression(self) -> str:
        """Of one line with its end, as it is known so far."""
        rest = [
            (r"\." if not alts else f"{_ALLELE}(?:,{_ALLELE}){{{alts - 1}}}")
            + f"{_QUALITY}{self._infos(alts)}{self._samples(alts)}"
            for alts in sorted(self._forms.alts)
        ]
        return f"{_CHROM_OLD if self._old else _CHROM}{_SITE}{_any_of(rest)}\r*\n"

    def compile(self) -> None:
        """Make the expression of what was learned; without one, if RE2 finds it too large, nothing matches."""
        options = re2.Options()
        options.encoding, options.max_mem = re2.Options.Encoding.LATIN1, _MEMORY
        options.longest_match, options.never_capture, options.log_errors = True, True, False
        try:
            self._pattern = re2.compile(f"(?:{self.expression()})+".encode("ascii"), options=options)
        except re2.error:
            self._pattern = None

    def _infos(self, alts: int) -> str:
        order = self._forms.order()
        each = {key: _info(key, self._info.get(key), alts) for key in order}
        forms = [r"\."]
        for key in self._forms.first():  # one form for each first key: so every later one has its semicolon before it
            later = order[order.index(key) + 1 :]
            forms.append(each[key] + "".join(f"(?:;{each[name]})?" for name in later) + ";?")
        return _any_of(forms)

    def _samples(self, alts: int) -> str:
        if not self._has_samples:
            return ""
        return _any_of(
            rf"\t{re.escape(text)}(?:\t{_any_of(self._sample(text.split(':'), alts))})+"
            for text in sorted(self._forms.formats)
        )

    def _sample(self, keys: Sequence[str], alts: int) -> list[str]:
        """One form for each ploidy; fields at the end may be left out."""
        if keys[0] != "GT":
            return [_nested([_sample_value(key, self._format.get(key), alts, (1, 2)) for key in keys])]
        allele = rf"[0-{max(alts, 1)}.]"
        forms = []
        for genotype, ploidies in ((r"\.", (1, 2)), (allele, (1,)), (f"{allele}[/|]{allele}", (2,))):
            later = [_sample_value(key, self._format.get(key), alts, ploidies) for key in keys[1:]]
            forms.append(_nested([genotype, *later]))
        return forms


def counts(number: str, alts: int, ploidies: tuple[int, ...]) -> set[int] | None:
    """How many values a Number allows; ``alts`` is 0 for a dot, where both readings are taken; None for any."""
    both = (alts,) if alts else (1, 0)
    if number == "A":
        return {max(each, 1) for each in both}
    if number == "R":
        return {each + 1 for each in both}
    if number == "G" and ploidies:
        return {comb(each + ploidy, ploidy) for each in both for ploidy in ploidies}
    if number == "P":
        return set(ploidies) if len(ploidies) == 1 else None
    return {int(number)} if number.isdigit() else None


def _any_of(forms: Iterable[str]) -> str:
    return "(?:" + "|".join(forms) + ")"


def _nested(fields: Sequence[str]) -> str:
    text = ""
    for field in reversed(fields[1:]):
        text = f"(?::{field}{text})?"
    return fields[0] + text


def _item(kind: str, text: str, *, negative: bool = True) -> str:
    """One value of a type; ``text`` is the class of characters that a String may have."""
    if kind == "Integer":
        return rf"(?:{'[+-]' if negative else '[+]'}?[0-9]+|\.)"
    if kind == "Float":
        return rf"(?:{'[+-]' if negative else '[+]'}?{_UNSIGNED}|\.)"
    return text if kind == "Character" else f"{text}+"


def _repeated(item: str, allowed: set[int] | None) -> str:
    if allowed is None:
        return f"{item}(?:,{item})*"
    forms = [f"{item}(?:,{item}){{{count - 1}}}" for count in sorted(allowed) if 0 < count <= _MAX_COUNT]
    return _any_of([*forms, r"\."])


def _sample_value(key: str, field: Field | None, alts: int, ploidies: tuple[int, ...]) -> str:
    if field is None or (is_free_text(key, field) and field.number == "1"):
        return "[ -9;-~]+"
    letter, allowed = r"[ -+\--9;-~]", counts(field.number, alts, ploidies)
    values = _repeated(_item(field.type, letter), allowed)
    if field.type != "Character" or not field.number.isdigit() or not 1 < int(field.number) <= _MAX_COUNT:
        return values
    return _any_of([values, f"{letter}{{{int(field.number)}}}"])


def _info(key: str, field: Field | None, alts: int) -> str:
    name = re.escape(key)
    if field is None:
        return f"{name}(?:=[ -:<-~]*)?"
    if field.type == "Flag":
        return f"{name}(?:=[01])?"
    allowed = None if is_free_text(key, field) else counts(field.number, alts, ())
    if key == "CIGAR":
        return f"{name}={_repeated(_CIGAR, allowed)}"
    # a String in quotes is one value whatever is in it: left to the check of single lines where it could be several
    text = r"[ !#-+\--:<-~]" if field.type in ("String", "Character") else ""
    item = _item(field.type, text, negative=key not in NOT_NEGATIVE)
    return f"{name}={_repeated(item, allowed)}"
