"""Searching for sizes: measured times of units. Needs torch alone."""

from mcf_mm.search.latency import Latency, measure_latency, read_latency

__all__ = ['Latency', 'measure_latency', 'read_latency']
