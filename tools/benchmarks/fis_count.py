"""The two exact ways to count for FIS: by sorting (in use) and by streaming blocks of images.

python tools/benchmarks/fis_count.py
"""

import time

import torch
from torch import Tensor

from mcf_mm.pruning.criteria.fis import band_limit, count_outside


def stream(tokens: Tensor, weight: Tensor, limit: float, rows: Tensor, block: int = 8) -> Tensor:
    """The plain formula over blocks of images."""
    counts = torch.zeros(weight.shape, dtype=torch.int32)
    size = weight.abs()
    for start in range(0, len(tokens), block):
        images = slice(start, start + block)
        outside = tokens[images].abs()[:, None, :] * size >= limit
        counts += outside.logical_and_(rows[images, :, None]).sum(0, dtype=torch.int32)
    return counts


def main() -> None:
    torch.manual_seed(0)
    print('layer of DeiT-S, 1,024 images, half the rows each: seconds by streaming, by sorting')
    for name, out_features, in_features in (('fc1', 1536, 384), ('fc2', 384, 1536)):
        tokens, weight = (
            torch.randn(1024, in_features),
            torch.randn(out_features, in_features) * 0.05,
        )
        rows = torch.rand(1024, out_features) > 0.5
        limit = band_limit(weight)
        times, counts = {}, {}
        for method in (stream, count_outside) * 3:
            start = time.perf_counter()
            counts[method] = method(tokens, weight, limit, rows)
            times.setdefault(method, []).append(time.perf_counter() - start)
        assert torch.equal(counts[stream], counts[count_outside])
        slow, fast = (sorted(times[method])[1] for method in (stream, count_outside))
        print(f'{name}  {slow:.3f}  {fast:.3f}  ratio {slow / fast:.1f}')


if __name__ == '__main__':
    main()
