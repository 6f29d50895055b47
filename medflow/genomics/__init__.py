"""Genomic files to records."""
