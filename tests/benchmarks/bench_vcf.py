"""A VCF file of 8 samples: checking and ingesting it, against bare iteration by cyvcf2 over the same file, in one run.

    python tests/benchmarks/bench_vcf.py [1000000]

The file is made here by a seeded generator, and packed as bgzip does: five contigs, INFO of eight to ten keys,
GT:AD:DP:GQ:PL, of which a part is multi-allelic, indels, symbolic, phased or missing. Each figure is of a process of
its own, started before the clock; its peak of resident memory is what Linux counts (VmHWM), all imports included.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from random import Random

import pysam
from cyvcf2 import VCF

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from medflow.config import Settings  # noqa: E402
from medflow.genomics.index import build_index  # noqa: E402
from medflow.genomics.vcf import read_vcf  # noqa: E402
from medflow.ingest.genomics import ingest_vcf  # noqa: E402
from medflow.store import Store  # noqa: E402

SAMPLES = 8
POOL = 5000  # texts of a sample column for each number of alleles
LENGTHS = {"chr1": 248956422, "chr2": 242193529, "chr3": 198295559, "chr4": 190214555, "chr5": 181538259}
HEADER = """##fileformat=VCFv4.2
##FILTER=<ID=LowQual,Description="Low quality">
##FILTER=<ID=VQSRTrancheSNP99.90to100.00,Description="Truth sensitivity">
##INFO=<ID=AC,Number=A,Type=Integer,Description="Allele count">
##INFO=<ID=AF,Number=A,Type=Float,Description="Allele frequency">
##INFO=<ID=AN,Number=1,Type=Integer,Description="Alleles">
##INFO=<ID=BaseQRankSum,Number=1,Type=Float,Description="Base qualities">
##INFO=<ID=DB,Number=0,Type=Flag,Description="In dbSNP">
##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">
##INFO=<ID=FS,Number=1,Type=Float,Description="Strand bias">
##INFO=<ID=MQ,Number=1,Type=Float,Description="Mapping quality">
##INFO=<ID=QD,Number=1,Type=Float,Description="Quality by depth">
##INFO=<ID=SOR,Number=1,Type=Float,Description="Strand odds ratio">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="Depth of each allele">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">
##FORMAT=<ID=GQ,Number=1,Type=Integer,Description="Quality">
##FORMAT=<ID=PL,Number=G,Type=Integer,Description="Likelihoods">
"""


def main(records: int) -> None:
    """Print one line a figure."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "made-up.vcf.gz")
        made = write(path, records)
        print(f"records {records}, {SAMPLES} samples, {path.stat().st_size / 1e6:.0f} MB, {made / 1e6:.0f} MB of text")
        bare, _ = measured(iterated, path)
        print(f"cyvcf2, bare iteration      {bare:7.2f} s")
        for name, run in (("read_vcf", read), ("build_index", indexed), ("ingest_vcf, index included", ingested)):
            seconds, peak = measured(run, path)
            print(f"{name:27} {seconds:7.2f} s  {seconds / bare:5.2f} times  peak {peak:4.0f} MB")


def measured(run: Callable[[Path], float], path: Path) -> tuple[float, float]:
    """Seconds, and MB of memory at the most, of a process that does nothing else."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (run, path))


def _timed(run: Callable[[Path], float], path: Path) -> tuple[float, float]:
    seconds = run(path)
    status = Path("/proc/self/status").read_text()
    return seconds, int(status.partition("VmHWM:")[2].split()[0]) / 1e3


def iterated(path: Path) -> float:
    began = time.perf_counter()
    for _ in VCF(str(path)):
        pass
    return time.perf_counter() - began


def read(path: Path) -> float:
    began = time.perf_counter()
    read_vcf(path)
    return time.perf_counter() - began


def indexed(path: Path) -> float:
    began = time.perf_counter()
    build_index(path)
    return time.perf_counter() - began


def ingested(path: Path) -> float:
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), timezone="UTC")  # type: ignore[call-arg]  # the rest has defaults
        store = Store(settings).open()
        began = time.perf_counter()
        tally = ingest_vcf(store, settings, [path])
        seconds = time.perf_counter() - began
        store.close()
    if tally.stored != 1:
        raise SystemExit(f"not stored: {tally.as_json()}")
    return seconds


# --- the file ----------------------------------------------------------------------------------------------------


def write(path: Path, records: int) -> int:
    """Write the file; bytes of its text."""
    size, lines = 0, []
    with pysam.BGZFile(str(path), "wb", None) as out:
        for line in made_up(records):
            lines.append(line)
            if len(lines) == 10_000:
                size += out.write("".join(lines).encode())
                lines.clear()
        size += out.write("".join(lines).encode())
    return size


def made_up(records: int) -> Iterator[str]:
    """The header, and the lines after it."""
    chance = Random(20)
    pools = {alts: [sample(chance, alts) for _ in range(POOL)] for alts in (1, 2, 3)}
    contigs = "".join(f"##contig=<ID={name},length={length},assembly=GRCh38>\n" for name, length in LENGTHS.items())
    names = "\t".join(f"sample{number}" for number in range(SAMPLES))
    yield f"{HEADER}{contigs}#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t{names}\n"
    each = -(-records // len(LENGTHS))
    for number, (contig, length) in enumerate(LENGTHS.items()):
        position, step = 10_000, (length - 20_000) * 18 // (each * 10)
        for _ in range(min(each, records - number * each)):
            position += chance.randint(1, max(step, 1))
            ref, alt = alleles(chance)
            yield record(chance, contig, position, ref, alt, pools[alt.count(",") + 1])


def alleles(chance: Random) -> tuple[str, str]:
    """REF and ALT: 85 % substitutions, 10 % indels, 4.5 % of several alleles, 0.5 % symbolic or missing."""
    which, ref = chance.random(), chance.choice("ACGT")
    others, more = "ACGT".replace(ref, ""), "".join(chance.choices("ACGT", k=chance.randint(1, 12)))
    if which < 0.85:
        return ref, chance.choice(others)
    if which < 0.90:
        return ref, ref + more
    if which < 0.95:
        return ref + more, ref
    if which < 0.985:
        return ref, ",".join(chance.sample(others, 2))
    return (ref, f"{others[0]},{ref}A,*") if which < 0.995 else (ref, chance.choice(["<DEL>", "*"]))


def record(chance: Random, contig: str, position: int, ref: str, alt: str, pool: list[str]) -> str:
    """One line."""
    count, real = alt.count(",") + 1, chance.random
    info = [
        "AC=" + ",".join(str(chance.randint(0, 16)) for _ in range(count)),
        "AF=" + ",".join(f"{real():.3f}" for _ in range(count)),
        "AN=16",
        *([f"BaseQRankSum={real() * 4 - 2:.3f}"] if real() < 0.5 else []),
        *(["DB"] if real() < 0.7 else []),
        f"DP={chance.randint(50, 400)};FS={real() * 20:.3f};MQ={real() * 60:.2f};QD={real() * 30:.2f}",
        f"SOR={real() * 3:.3f}",
    ]
    known = f"rs{chance.randint(1000, 10**9)}" if real() < 0.7 else "."
    passed = "PASS" if real() < 0.9 else chance.choice(["LowQual", "VQSRTrancheSNP99.90to100.00", "."])
    columns = (contig, str(position), known, ref, alt, f"{real() * 3000:.2f}", passed, ";".join(info), "GT:AD:DP:GQ:PL")
    return "\t".join((*columns, *chance.choices(pool, k=SAMPLES))) + "\n"


def sample(chance: Random, alts: int) -> str:
    """One sample's column: 3 % missing, 10 % phased."""
    genotypes = (alts + 1) * (alts + 2) // 2
    if chance.random() < 0.03:
        return f"./.:{','.join('0' * (alts + 1))}:0:.:{','.join('0' * genotypes)}"
    one, other = sorted(chance.choices(range(alts + 1), weights=[6] + [3] * alts, k=2))
    depths = [0] * (alts + 1)
    for allele in (one, other):
        depths[allele] += chance.randint(5, 30)
    likelihoods = [str(chance.randint(10, 1200)) for _ in range(genotypes)]
    likelihoods[other * (other + 1) // 2 + one] = "0"
    sign = "|" if chance.random() < 0.1 else "/"
    depth, quality = sum(depths), chance.randint(0, 99)
    return f"{one}{sign}{other}:{','.join(map(str, depths))}:{depth}:{quality}:{','.join(likelihoods)}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
