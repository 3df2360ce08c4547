"""Methods side by side: same weights, images and budget, the work of ``tools/compare.py``."""
