"""Datasets, registered in :data:`mcf_mm.registry.DATASETS`."""
