"""Pairs of queries and keys are what autograd gives for a matrix between them."""

import torch
import torch.nn.functional as F
from by_hand import close, own_label
from torch import nn

from mcf_mm.pruning import calibrate, find_units
from mcf_mm.pruning.pairs import PLAIN, PairObserver


def pairs_by_hand(model, unit, images):
    """``D D^T`` and ``D^T D``, D the gradient of a matrix that is put between query and key."""
    heads, channels = unit.sizes['heads'], unit.sizes['qk']
    factors, moments = [0, 0], [0, 0]
    for image in images.split(1):
        between = torch.eye(channels).double().repeat(heads, 1, 1).requires_grad_()

        def put(module, args, out, between=between):
            query, rest = out.split((heads * channels, out.shape[-1] - heads * channels), -1)
            query = query.unflatten(-1, (heads, channels))
            key = rest[..., : heads * channels].unflatten(-1, (heads, channels)).detach()[0]
            for place, part in enumerate((query.detach()[0], key - key.mean(0))):
                moments[place] = moments[place] + torch.einsum('nhd,nhe->hde', part, part)
            return torch.cat((torch.einsum('bnhd,hde->bnhe', query, between).flatten(2), rest), -1)

        handle = unit.module.qkv.register_forward_hook(put)
        own_label(model(image)).backward()
        handle.remove()
        for head in range(heads):
            own = between.grad[head]
            outer = torch.stack((own @ own.T, own.T @ own))
            for place in (0, 1):
                grown = torch.zeros(heads, channels, channels).double()
                grown[head] = outer[place]
                factors[place] = factors[place] + grown
    model.zero_grad()
    return [[part / len(images) for part in parts] for parts in (factors, moments)]


def trace(matrices):
    return torch.stack([matrix.trace() for matrix in matrices])[:, None, None]


def test_pairs_are_what_autograd_gives_for_a_matrix_between_query_and_key(transformer, batches):
    batches = [batch.double() for batch in batches]
    for unit in find_units(transformer).attentions:
        observer, plain = PairObserver(unit), PairObserver(unit, metric=False)
        found = calibrate(transformer, batches, [observer]).pairs(unit)
        factors, moments = pairs_by_hand(transformer, unit, torch.cat(batches))
        for place in (0, 1):
            size = trace(factors[0]).sqrt()
            expected = (1 - PLAIN) * factors[place] / size
            expected += PLAIN * size * moments[place] / trace(moments[place])
            close((found.query, found.key)[place], expected)
        seen = calibrate(transformer, batches, [plain]).pairs(unit)
        close(seen.query, moments[0])
        close(seen.key, moments[1])
        for pairs in (found, seen):
            for matrix in (pairs.query, pairs.key):
                assert matrix.shape == (3, 4, 4) and bool(
                    (torch.linalg.eigvalsh(matrix) > -1e-6).all()
                )


def test_pairs_of_separate_layers_are_those_of_one_layer_with_their_weights(transformer, batches):
    batches = [batch.double() for batch in batches]
    unit = find_units(transformer).attentions[0]
    expected = calibrate(transformer, batches, [PairObserver(unit)]).pairs(unit)

    class Three(nn.Module):
        """Laid out as Hugging Face's."""

        num_attention_heads, scaling = 3, 0.5

        def __init__(self, qkv, proj):
            super().__init__()
            for name, rows in zip(('q_proj', 'k_proj', 'v_proj'), (0, 12, 24), strict=True):
                layer = nn.Linear(12, 12).double()
                layer.weight.data.copy_(qkv.weight[rows : rows + 12])
                layer.bias.data.copy_(qkv.bias[rows : rows + 12])
                setattr(self, name, layer)
            self.o_proj = proj

        def forward(self, hidden_states, attention_mask=None, **kwargs):
            parts = (layer(hidden_states) for layer in (self.q_proj, self.k_proj, self.v_proj))
            q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in parts)
            return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    own = transformer.blocks[0].attn
    transformer.blocks[0].attn = Three(own.qkv, own.proj)
    unit = find_units(transformer).attentions[0]
    assert unit.layout.qkv_names == ('q_proj', 'k_proj', 'v_proj')
    found = calibrate(transformer, batches, [PairObserver(unit)]).pairs(unit)
    close(found.query, expected.query)
    close(found.key, expected.key)
