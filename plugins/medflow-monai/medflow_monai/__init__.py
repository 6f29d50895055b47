"""Imaging models for medflow, built on MONAI: `medflow_monai.xray` and `medflow_monai.abdomen`.

Importing them reads their specs only; torch and MONAI are imported when a model is loaded.
"""

__version__ = "0.1.0"
