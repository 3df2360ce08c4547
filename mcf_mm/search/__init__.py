"""Searching for sizes: policies on a budget, and measured times of units. Imports torch alone."""

from mcf_mm.search.latency import Latency, measure_latency, read_latency

__all__ = ['Latency', 'measure_latency', 'read_latency']
