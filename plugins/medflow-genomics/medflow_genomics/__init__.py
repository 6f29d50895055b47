"""Genomic models for medflow: splice-site classification of DNA sequences."""
