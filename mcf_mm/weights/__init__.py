"""Weights in files: read, checked, converted, written."""
