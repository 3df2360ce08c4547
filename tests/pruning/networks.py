"""Small transformers in plain torch, shaped like those of timm; processes can import them."""

import torch
import torch.nn.functional as F
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


class Attention(nn.Module):
    """Laid out as timm's."""

    fused_attn = True

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x):
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        x = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(x))


class AttentionBlock(Block):
    def __init__(self, width: int, hidden: int, heads: int = 3):
        super().__init__(width, hidden)
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)

    def forward(self, x):
        return super().forward(x + self.attn(self.norm1(x)))


class Transformer(Network):
    """The same with attention; all weights are of a size at which every part matters."""

    def __init__(self, width: int = 12, hidden: int = 20, depth: int = 2, classes: int = 5):
        super().__init__(width, hidden, 0, classes)
        self.blocks = nn.Sequential(*(AttentionBlock(width, hidden) for _ in range(depth)))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
