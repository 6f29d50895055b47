"""Genomic files (VCF, FASTA) to records: pure reading, held to the standards, nothing stored."""
