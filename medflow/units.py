"""Units of measurement: from one UCUM unit to another, or not at all.

UCUM (https://ucum.org/ucum) is parsed by ucumvert and calculated by pint. Where they are more generous than a patient
can afford, this module is stricter: arbitrary units (``[IU]``) stand for themselves alone (UCUM 24), equivalents and
osmoles are no moles while nobody says the valence, 53 mmol/mol of HbA1c are not 5.3 %, units that are annotated each by
something else are not alike, and a unit that is nothing but an annotation (``{score}``) equals its own text only. What
cannot be decided is refused.

Loading the library takes a second or more, so it waits until two units differ.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

LONGEST = 64  # characters of a unit; longer text is no unit
FACTOR_DIGITS, EXPONENT_DIGITS, PARENTHESES = 9, 2, 4  # more is nonsense, and might take long to calculate
TEMPERATURES = frozenset(("Cel", "[degF]", "[degRe]"))  # the special units that are converted
# read by pint otherwise than UCUM defines them: equal to their own text only
MISREAD = frozenset(
    ("'", "''", "g%", "[Cal]", "[in_i'Hg]", "[in_i'H2O]", "[cft_i]", "[cyd_i]", "[rd_br]", "[LPF]", "[HPF]")
    + ("Mx", "G", "Oe", "Gb")
)
# taken by pint for moles or plain numbers, which to UCUM or in medicine they are not: kind, and its power
APART = {
    "eq": ("equivalent", 1),
    "osm": ("osmole", 1),
    "bit": ("information", 1),
    "By": ("information", 1),
    **dict.fromkeys(("rad", "deg", "gon", "circ"), ("angle", 1)),
    **dict.fromkeys(("sr", "sph"), ("angle", 2)),
    **dict.fromkeys(("Sv", "REM"), ("equivalent dose", 1)),
    **dict.fromkeys(("Bq", "Ci"), ("activity", 1)),
    "[iU]": ("[IU]", 1),
}
# what may cancel within a unit, by its dimension: of a ratio it matters of what
RATIOS = {("[mass]", 1): "mass", ("[substance]", 1): "substance", ("[length]", 3): "volume", ("[time]", 1): "time"}
# what units are mostly made of, recognized without the library: every start of medflow would else wait for it
_METRIC = r"g|[lL]|m|s|mol|eq|osm|K|Pa|Hz|J|W|V|A|N|Bq|Gy|Sv|cal|kat|U|bar|m\[Hg\]|m\[H2O\]|\[IU\]|\[iU\]"
_OTHER = r"min|h|d|wk|mo|a|%|10\*|10\^|\[lb_av\]|\[oz_av\]|\[in_i\]|\[ft_i\]|\[ppm\]|\[ppb\]|\[ppth\]|deg"
_ATOM = rf"(?:(?:da|[YZEPTGMkhdcmunpfazy])?(?:{_METRIC})|{_OTHER})(?:[+-]?[1-9]\d?)?|[1-9]\d{{0,8}}"
_COMPONENT = rf"(?:(?:{_ATOM})?\{{[!-z|~]+\}}|(?:{_ATOM}))"
ORDINARY = re.compile(rf"/?{_COMPONENT}(?:[./]{_COMPONENT})*|Cel|\[degF\]|\[pH\]")
ANNOTATION = re.compile(r"\{[^{}]+\}")


@dataclass(frozen=True, slots=True)
class Conversion:
    """``slope * value + intercept`` is the value in the other unit."""

    slope: float
    intercept: float = 0.0


SAME = Conversion(1.0)


@lru_cache(maxsize=4096)
def conversion(unit: str, to: str, molar_mass_g_mol: float | None = None) -> Conversion | None:
    """What turns a value in ``unit`` into one in ``to``; None where that cannot be known. Never raises.

    Parameters
    ----------
    unit, to
        UCUM codes, case sensitive; other text is equal to itself only.
    molar_mass_g_mol
        Between mass and amount of substance there is a conversion only where this is given.
    """
    if unit == to:
        return SAME
    if _of_different_things(unit, to):
        return None
    one, other = _read(unit), _read(to)
    if one is None or other is None or one.kinds != other.kinds:
        return None
    if one.special or other.special:
        return _affine(one, other)
    if not _comparable(one, other):
        return None
    slope = one.factor / other.factor
    if one.dimension != other.dimension:
        moles = _moles_more(other.dimension, one.dimension)
        if not moles or not molar_mass_g_mol:
            return None
        slope *= (molar_mass_g_mol / 1000) ** -moles  # pint's base units are the kilogram and the mole
    return Conversion(_rounded(slope)) if math.isfinite(slope) and slope > 0 else None


def _of_different_things(unit: str, to: str) -> bool:
    """Whether both are annotated, and by nothing in common: to UCUM ng/mL{FEU} is ng/mL{DDU}, of which it is half."""
    notes, others = (set(ANNOTATION.findall(text)) for text in (unit, to))
    return bool(notes and others) and notes.isdisjoint(others)


def is_unit(text: str) -> bool:
    """Whether ``text`` can be a unit: a UCUM code, or one annotation, such as ``{score}``. Never raises."""
    if len(text) > LONGEST:
        return False
    if ORDINARY.fullmatch(text) or (text.isprintable() and ANNOTATION.fullmatch(text)):
        return True
    with _loading:
        return bool(_atoms_of(text))


# --- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Unit:
    """``factor`` to pint's base units and their ``dimension``, and what these do not tell: ``kinds``, ``ratios``.

    ``temperature`` is pint's name of a bare unit of temperature; ``special`` says that its zero lies elsewhere.
    """

    factor: float
    dimension: Mapping[str, float]
    kinds: Mapping[str, int]
    ratios: Mapping[str, int]
    temperature: str = ""
    special: bool = False


@dataclass(frozen=True, slots=True)
class _Atom:
    name: str
    prefix: str = ""
    exponent: int = 1


@dataclass(frozen=True, slots=True)
class _Library:
    registry: Any
    parser: Any
    transformer: Any
    arbitrary: frozenset[str]
    special: frozenset[str]

    def quantity(self, code: str) -> Any:
        """The pint quantity of a UCUM code."""
        return self.transformer.transform(self.parser.parse(code))


_loading = RLock()  # neither pint nor ucumvert says that threads may share them


@cache
def _library() -> _Library:
    import ucumvert
    from pint import UnitRegistry
    from ucumvert.xml_util import get_units_with_full_definition

    # not its PintUcumRegistry: that one answers in pint's application registry, which is everybody's
    registry = UnitRegistry()
    registry.load_definitions(Path(ucumvert.__file__).parent / "pint_ucum_defs.txt")
    units = get_units_with_full_definition()
    return _Library(
        registry,
        ucumvert.get_ucum_parser(),
        ucumvert.UcumToPintTransformer(ureg=registry),
        frozenset(unit.code_cs for unit in units if unit.is_arbitrary),
        frozenset(unit.code_cs for unit in units if unit.is_special),
    )


@lru_cache(maxsize=4096)
def _read(text: str) -> _Unit | None:
    with _loading:
        atoms = _atoms_of(text)
        if not atoms or any(atom.name in MISREAD for atom in atoms):
            return None
        try:
            return _unit(atoms)
        except Exception:  # noqa: BLE001 - what pint cannot calculate, for whatever reason, is not converted
            return None


def _atoms_of(text: str) -> list[_Atom] | None:
    """What a UCUM code is made of, annotations left out; None if it is none."""
    if not text.isascii() or len(text) > LONGEST or text.count("(") > PARENTHESES:
        return None
    # UCUM 11.3: a leading solidus divides what follows it alone; ucumvert would have it divide all the rest
    whole = re.sub(r"(^|\()/", r"\g<1>1/", text)
    try:
        return list(_atoms(_library().parser.parse(whole), 1))
    except Exception:  # noqa: BLE001 - the parser's errors have several bases, and none of them matters
        return None


def _atoms(node: Any, sign: int) -> Iterator[_Atom]:
    """The atoms below a node of the parser's tree, each with its exponent."""
    rule = getattr(node, "data", None)
    if rule is None:
        return  # an annotation
    if rule == "simple_unit":
        *prefix, name = map(str, node.children)
        if len(name) > FACTOR_DIGITS and name.isdecimal():
            raise ValueError
        yield _Atom(name, "".join(prefix), sign)
    elif rule == "annotatable":
        exponent = str(node.children[1])
        if len(exponent.lstrip("+-")) > EXPONENT_DIGITS:
            raise ValueError
        (atom,) = _atoms(node.children[0], 1)
        yield _Atom(atom.name, atom.prefix, sign * int(exponent))
    else:
        turn = 1
        for child in node.children:
            if getattr(child, "data", None) is None and str(child) in ("/", "."):
                turn = -1 if str(child) == "/" else 1
            else:
                yield from _atoms(child, sign * turn)


def _unit(atoms: list[_Atom]) -> _Unit:
    library = _library()
    kinds: Counter[str] = Counter()
    over: Counter[str] = Counter()
    under: Counter[str] = Counter()
    total = library.registry.Quantity(1.0)
    if len(atoms) == 1 and atoms[0].exponent == 1 and not atoms[0].prefix:
        bare = _bare_temperature(atoms[0].name)
        if bare is not None:
            return bare
    for atom in atoms:
        if atom.name in library.special:
            raise ValueError
        if atom.name in APART or atom.name in library.arbitrary:
            kind, power = APART.get(atom.name, (atom.name, 1))
            kinds[kind] += power * atom.exponent
        if atom.name in library.arbitrary:  # pint would mix up the prefix of one with a unit: m[IU]
            one = library.registry.Quantity(float(library.quantity(f"{atom.prefix}g").to("g").magnitude))
        else:
            one = 1.0 * library.quantity(atom.prefix + atom.name)
        part = one**atom.exponent
        for group, dimension in ((over, part.dimensionality), (under, (1 / part).dimensionality)):
            (pure, *more) = [*dimension.items(), None]
            if pure is not None and more == [None] and pure in RATIOS:
                group[RATIOS[pure]] += 1
        total = total * part
    base = total.to_base_units()
    ratios = {name: min(over[name], under[name]) for name in over.keys() & under.keys()}
    return _Unit(
        float(base.magnitude), dict(base.dimensionality), {kind: n for kind, n in kinds.items() if n}, dict(ratios)
    )


def _bare_temperature(name: str) -> _Unit | None:
    found = _library().quantity(name)
    if dict(found.dimensionality) != {"[temperature]": 1}:
        return None
    if name in _library().special and name not in TEMPERATURES:
        raise ValueError
    special = name in TEMPERATURES
    factor = 0.0 if special else float(found.to_base_units().magnitude)
    return _Unit(factor, {"[temperature]": 1}, {}, {}, str(found.units), special)


# --- comparing -------------------------------------------------------------------------------------------------------


def _affine(one: _Unit, other: _Unit) -> Conversion | None:
    """Between two bare units of temperature."""
    if not one.temperature or not other.temperature:
        return None
    with _loading:
        quantity = _library().registry.Quantity
        low, high = (quantity(value, one.temperature).to(other.temperature).magnitude for value in (0.0, 100.0))
    return Conversion(_rounded((high - low) / 100), _rounded(low))


def _comparable(one: _Unit, other: _Unit) -> bool:
    """Whether what cancelled in the two is alike: mg/kg/h is no rate of events, and no share is that of something else.

    A share of mass or of volume may be told as a plain number, as haematocrit is in %; a share of molecules may not,
    as HbA1c is in mmol/mol or in %, which are two scales.
    """
    if one.ratios == other.ratios:
        return True
    share = not one.dimension and not other.dimension and not (one.ratios and other.ratios)
    return share and {*one.ratios, *other.ratios} <= {"mass", "volume"}


def _moles_more(one: Mapping[str, float], other: Mapping[str, float]) -> int:
    """1 where ``one`` has an amount of substance for the mass of ``other``, -1 the other way round, else 0."""
    names = {*one, *other}
    change = {name: more for name in names if (more := one.get(name, 0) - other.get(name, 0))}
    return {1: 1, -1: -1}.get(int(change["[substance]"]), 0) if _is_exchange(change) else 0


def _is_exchange(change: Mapping[str, float]) -> bool:
    return change.keys() == {"[mass]", "[substance]"} and change["[mass]"] == -change["[substance]"]


def _rounded(value: float) -> float:
    """Without what floating point adds in the last digits: 1000, not 999.9999999999999."""
    return float(f"{value:.14g}")
