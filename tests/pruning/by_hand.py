"""What tests of observers compare with."""

import torch
import torch.nn.functional as F


def close(found, expected, tolerance=1e-4):  # sums over a batch are in single precision
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale + 1e-12)


def own_label(scores):
    return F.cross_entropy(scores, scores.argmax(1), reduction='sum')
