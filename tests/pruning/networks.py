"""A small transformer in plain torch, shaped like that of timm; processes can import it."""

import torch
from torch import nn


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Network(nn.Module):
    """Tokens ``(B, N, C)`` in, class scores out; token 0 is the class token."""

    def __init__(self, width: int = 12, hidden: int = 40, depth: int = 3, classes: int = 5):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, hidden) for _ in range(depth)))
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1)
        x = x + self.mix(x).mean(1, keepdim=True)  # lets the class token see the image
        return self.head(self.blocks(x)[:, 0])
