"""One sample's variants: from a VCF file to windows of the reference, with an index, without one, and in parts.

    python tests/benchmarks/bench_windows.py [--variants 100000] [--length 61 1001] [--rounds 3]

A genome of five contigs of 20 million bases is made up, and a bgzip file of two samples with one variant in ten an
insertion or deletion. Printed are medians: seconds to read and to cut out everything, the same of 1 % of the genome
with and without the index, and windows per second of the cutting alone, with cyvcf2's bare iteration beside them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cyvcf2 import VCF, Writer

from medflow.genomics.index import build_index
from medflow.genomics.reference import Reference
from medflow.genomics.regions import Interval, Regions
from medflow.genomics.variants import read_variants
from medflow.genomics.windows import variant_windows
from medflow.plugin.inputs import SequenceInput

CONTIGS = tuple(f"chr{number}" for number in range(1, 6))
SIZE = 20_000_000
LINE = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=int, default=100_000)
    parser.add_argument("--length", type=int, nargs="+", default=[61, 1001])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = made_up(folder, asked.variants)
        index = folder / "index"
        index.write_bytes(build_index(path) or b"")
        with Reference(folder / "genome.fa") as reference:
            measure(path, index, reference, asked)


def measure(path: Path, index: Path, reference: Reference, asked: argparse.Namespace) -> None:
    few = Regions(
        [Interval(contig, start, start + 10_000) for contig in CONTIGS for start in range(0, SIZE, 1_000_000)]
    )

    def read(regions: Regions | None, index: Path | None) -> Any:
        wanted = SequenceInput(length=asked.length[0], source="variants", assembly="GRCh38")
        return read_variants(
            path, "one", wanted=wanted, reference=reference, regions=regions, index=index, records=asked.variants
        )

    bare, _ = timed(asked.rounds, lambda: sum(1 for _ in VCF(str(path), samples=["one"])))
    whole, found = timed(asked.rounds, lambda: read(None, None))
    streamed, _ = timed(asked.rounds, lambda: read(few, None))
    near, some = timed(asked.rounds, lambda: read(few, index))
    print(f"cyvcf2 alone, {asked.variants} records: {bare:.2f} s")
    print(f"all {len(found.variants)} variants and windows of {asked.length[0]}: {whole:.2f} s")
    print(f"1 % of the genome, {len(some.variants)} variants: {streamed:.2f} s, with the index {near:.2f} s")
    for length in asked.length:
        seconds, _ = timed(asked.rounds, lambda length=length: variant_windows(reference, found.variants, length))
        print(f"windows of {length}: {len(found.variants) / seconds:,.0f} variants per second")


def timed(rounds: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """The median of seconds, and what came of it."""
    seconds, found = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


def made_up(folder: Path, variants: int) -> Path:
    """A genome, and a bgzip file of variants of it."""
    rng = np.random.default_rng(1)
    plain = folder / "plain"
    with (folder / "genome.fa").open("wb") as fasta, plain.open("w") as vcf:
        vcf.write("##fileformat=VCFv4.2\n")
        vcf.write("".join(f"##contig=<ID={contig},length={SIZE}>\n" for contig in CONTIGS))
        vcf.write('##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n')
        vcf.write('##FORMAT=<ID=AD,Number=R,Type=Integer,Description="Depths">\n')
        vcf.write("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tone\ttwo\n")
        for contig in CONTIGS:
            bases = rng.choice(np.frombuffer(b"ACGTacgt", dtype=np.uint8), SIZE)
            lines = np.column_stack([bases.reshape(-1, LINE), np.full(SIZE // LINE, ord("\n"), dtype=np.uint8)])
            fasta.write(f">{contig}\n".encode() + lines.tobytes())
            places = rng.choice(SIZE - 100, variants // len(CONTIGS), replace=False) + 50
            for number, place in enumerate(np.sort(places).tolist()):
                ref, alt = alleles(bases[place - 1 : place + 2].tobytes().decode().upper(), number % 20)
                vcf.write(f"{contig}\t{place}\t.\t{ref}\t{alt}\t50\tPASS\t.\tGT:AD\t0/1:10,12\t1/1:0,20\n")
    packed, reader = folder / "object", VCF(str(plain))
    writer = Writer(str(packed), reader, "wz")
    for record in reader:
        writer.write_record(record)
    writer.close()
    return packed


def alleles(bases: str, kind: int) -> tuple[str, str]:
    if kind == 0:
        return bases, bases[0]
    if kind == 1:
        return bases[0], bases[0] + "ACG"
    return bases[0], "ACGT"[("ACGT".index(bases[0]) + 1) % 4]


if __name__ == "__main__":
    main()
