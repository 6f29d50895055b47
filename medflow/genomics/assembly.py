"""Which assembly of the human genome a set of contigs is: told by their lengths, which no two assemblies share.

Lengths are those of the primary assemblies, GRCh37 (GCF_000001405.13) and GRCh38 (GCF_000001405.26), which patches do
not change. The mitochondrion is left out: it is the same in both, and another one in UCSC's hg19.
"""

from __future__ import annotations

from collections.abc import Mapping

LENGTHS: Mapping[str, Mapping[str, int]] = {
    "GRCh37": {
        "1": 249250621, "2": 243199373, "3": 198022430, "4": 191154276, "5": 180915260, "6": 171115067,
        "7": 159138663, "8": 146364022, "9": 141213431, "10": 135534747, "11": 135006516, "12": 133851895,
        "13": 115169878, "14": 107349540, "15": 102531392, "16": 90354753, "17": 81195210, "18": 78077248,
        "19": 59128983, "20": 63025520, "21": 48129895, "22": 51304566, "X": 155270560, "Y": 59373566,
    },
    "GRCh38": {
        "1": 248956422, "2": 242193529, "3": 198295559, "4": 190214555, "5": 181538259, "6": 170805979,
        "7": 159345973, "8": 145138636, "9": 138394717, "10": 133797422, "11": 135086622, "12": 133275309,
        "13": 114364328, "14": 107043718, "15": 101991189, "16": 90338345, "17": 83257441, "18": 80373285,
        "19": 58617616, "20": 64444167, "21": 46709983, "22": 50818468, "X": 156040895, "Y": 57227415,
    },
}  # fmt: skip


def contigs_of(lengths: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """By assembly the contigs that have the very length it gives them: 1 or chr1, as they are called here."""
    return {
        assembly: tuple(name for name, length in lengths.items() if known.get(name.removeprefix("chr")) == length)
        for assembly, known in LENGTHS.items()
    }


def belied(assembly: str, lengths: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """By assembly the contigs that are as long as there, and not as in the one that they are said to be of."""
    fitting = contigs_of(lengths)
    own = set(fitting.get(assembly, ()))
    return {name: found for name, found in fitting.items() if name != assembly and set(found) - own}


def chromosomes_of(lengths: Mapping[str, int]) -> tuple[str, ...]:
    """The contigs that are called as chromosomes are, whatever their lengths."""
    return tuple(name for name in lengths if name.removeprefix("chr") in LENGTHS["GRCh38"])
