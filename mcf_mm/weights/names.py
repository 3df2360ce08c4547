"""The names that each library gives the weights of a ViT, DeiT, Swin or YOLOS, side by side.

Torch alone is needed. Every conversion goes over OpenMMLab's names: those of mmpretrain's
ImageClassifier, which are also the names of mcf_mm's slim networks, and of mcf_mm's YOLOS in mmdet.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

#: Whose names weights can get: a classifier those of all but mmdet, a YOLOS those of mmdet,
#: ``original`` and ``huggingface``. ``original`` are the releases of DeiT, Swin and YOLOS; for a
#: ViT or a DeiT their names are timm's. ``huggingface`` are the names in the files of ViT-, DeiT-
#: and SwinForImageClassification and of YolosForObjectDetection, which ``from_pretrained`` of any
#: version of transformers reads.
LIBRARIES = ('mmpretrain', 'mmdet', 'timm', 'original', 'huggingface')
#: Names that can be read only: transformers 5 renames weights when it has read its files, and
#: this is what ``state_dict()`` of its networks says.
IN_MEMORY = 'huggingface_in_memory'

_CLASSIFIER = ('mmpretrain', 'timm', 'original', 'huggingface', IN_MEMORY)
_COLUMNS = {
    'ViT': _CLASSIFIER,
    'Swin': _CLASSIFIER,
    'YOLOS': ('mmdet', 'original', 'huggingface', IN_MEMORY),
}
# A column for each library of _COLUMNS; '=' is the column before, '-' a part that the library
# lacks. {n} is a layer, {s} a stage, {next} the stage after it, {b} a block, {last} the
# last stage; the rest is explained in Names.
_ROWS = {
    'ViT': """
backbone.cls_token              cls_token        = {model}.embeddings.cls_token                   =
backbone.dist_token             dist_token       = {model}.embeddings.distillation_token          =
backbone.pos_embed              pos_embed        = {model}.embeddings.position_embeddings         =
backbone.patch_embed.projection patch_embed.proj = {model}.embeddings.patch_embeddings.projection =
backbone.ln1                    norm             = {model}.layernorm                              =
head.layers.head                head             = {classifier}                                   =
head.layers.head_dist           head_dist        = distillation_classifier                        =
""",
    'Swin': """
backbone.patch_embed.projection patch_embed.proj = swin.embeddings.patch_embeddings.projection    =
backbone.patch_embed.norm       patch_embed.norm = swin.embeddings.norm                           =
backbone.absolute_pos_embed     - absolute_pos_embed swin.embeddings.position_embeddings          =
backbone.norm{last}             norm             = swin.layernorm                                 =
head.fc                         head.fc       head classifier                                     =
""",
    'YOLOS': """
backbone.cls_token     backbone.cls_token     vit.embeddings.cls_token                            =
backbone.det_token     backbone.det_token     vit.embeddings.detection_tokens                     =
backbone.pos_embed     backbone.pos_embed     vit.embeddings.position_embeddings                  =
backbone.mid_pos_embed = vit.encoder.{mid_positions} vit.encoder.interpolation.{mid_positions}
backbone.{patches}.projection backbone.{patches}.proj vit.embeddings.patch_embeddings.projection  =
backbone.ln1           backbone.norm          vit.layernorm                                       =
bbox_head.fc_cls.0     class_embed.layers.0   class_labels_classifier.layers.0                    =
bbox_head.fc_cls.2     class_embed.layers.1   class_labels_classifier.layers.1                    =
bbox_head.fc_cls.4     class_embed.layers.2   class_labels_classifier.layers.2                    =
bbox_head.fc_reg.0     bbox_embed.layers.0    bbox_predictor.layers.0                             =
bbox_head.fc_reg.2     bbox_embed.layers.1    bbox_predictor.layers.1                             =
bbox_head.fc_reg.4     bbox_embed.layers.2    bbox_predictor.layers.2                             =
""",
}
# The first row stands before each of the others.
_BLOCK_ROWS = {
    'ViT': """
backbone.layers.{n} blocks.{n} =   {model}.encoder.layer.{n}        {model}.layers.{n}
ln1                 norm1      =   layernorm_before                 =
attn                attn       =   -                                -
attn.qkv            attn.qkv   =   attention.attention.{qkv}        attention.{qkv}
attn.proj           attn.proj  =   attention.output.dense           attention.o_proj
ln2                 norm2      =   layernorm_after                  =
ffn                 mlp        =   mlp                              =
ffn.layers.0.0      mlp.fc1    =   intermediate.dense               mlp.fc1
ffn.layers.1        mlp.fc2    =   output.dense                     mlp.fc2
""",
    'Swin': """
backbone.stages.{s}.blocks.{b}  layers.{s}.blocks.{b} = swin.encoder.layers.{s}.blocks.{b} =
norm1               norm1      =   layernorm_before                 =
attn.w_msa.{table}  attn.{table} = attention.self.{table} attention.relative_position_bias.{table}
attn.w_msa.{index}  attn.{index} = attention.self.{index} attention.relative_position_bias.{index}
attn.attn_mask      attn_mask  =   -                                -
attn.w_msa          attn       =   -                                -
attn.w_msa.qkv      attn.qkv   =   attention.self.{qkv}             attention.{qkv}
attn.w_msa.proj     attn.proj  =   attention.output.dense           attention.o_proj
norm2               norm2      =   layernorm_after                  =
ffn                 mlp        =   mlp                              =
ffn.layers.0.0      mlp.fc1    =   intermediate.dense               mlp.fc1
ffn.layers.1        mlp.fc2    =   output.dense                     mlp.fc2
""",
    'Swin stage': """
backbone.stages.{s}  layers.{next}         layers.{s}           swin.encoder.layers.{s} =
downsample.norm      downsample.norm       =                    =                       =
downsample.reduction downsample.reduction  =                    =                       =
""",
    'YOLOS': """
backbone.layers.{n} backbone.blocks.{n} vit.encoder.layer.{n}       =
ln1                 norm1          layernorm_before                 =
attn                attn           -                                -
attn.qkv            attn.qkv       attention.attention.{qkv}        =
attn.proj           attn.proj      attention.output.dense           =
ln2                 norm2          layernorm_after                  =
ffn                 mlp            =                                =
ffn.layers.0.0      mlp.fc1        intermediate.dense               =
ffn.layers.1        mlp.fc2        output.dense                     =
""",
}
#: Buffers of pruned layers, and which: ``inputs`` that a linear layer reads, ``sizes`` of an
#: attention (heads, query and key channels per head, value channels per head), and how many tokens
#: stay of how many.
_SLIM_BUFFERS = {
    'inputs': re.compile(r'layers\.0\.0$'),
    'sizes': re.compile(r'attn$|w_msa$'),
    'reduction.tokens': re.compile(r'attn$'),
}
#: Modules without weights of their own.
_HOLDERS = re.compile(r'(ffn|attn|w_msa)$')
#: Parts that are tensors themselves; all others are modules with a weight and perhaps a bias.
_TENSORS = re.compile(r'_token$|pos_embed$|\{table\}$|\{index\}$|attn_mask$')
_QUERY_KEY_VALUE = {
    'huggingface': ('query', 'key', 'value'),
    IN_MEMORY: ('q_proj', 'k_proj', 'v_proj'),
}


def _rows(text: str) -> list[list[str]]:
    rows = []
    for line in text.strip().splitlines():
        row = line.split()
        for column in range(1, len(row)):
            if row[column] == '=':
                row[column] = row[column - 1]
        rows.append(row)
    return rows


def _templates(family: str) -> list[list[str]]:
    """All rows of a family, with what stands before them."""
    rows = _rows(_ROWS[family])
    for name, text in _BLOCK_ROWS.items():
        if name.split()[0] == family:
            before, *parts = _rows(text)
            for part in parts:
                pairs = zip(before, part, strict=True)
                rows.append(['-' if own == '-' else f'{start}.{own}' for start, own in pairs])
    return rows


_TEMPLATES = {family: _templates(family) for family in _ROWS}


class Part(NamedTuple):
    """A weight or a module, whatever its name.

    Attributes:
        name: OpenMMLab's name, the first column of its table.
        row: Row in the table of its family.
        fields: Which layer, or stage and block.
        third: 0, 1 or 2 where a library has query, key and value apart and this is one of them.
        leaf: What follows the module's name: ``'.weight'``, ``'.bias'``, ``'.inputs'`` or
            ``'.sizes'`` (of pruned layers) or nothing.
    """

    name: str
    row: int
    fields: dict[str, str]
    third: int | None = None
    leaf: str = ''


class Names:
    """The names of one family in one library, to read and to write.

    Args:
        family: ``'ViT'`` (a DeiT too), ``'Swin'`` or ``'YOLOS'``.
        library: One of :func:`libraries` of the family, or :data:`IN_MEMORY`.
        keys: Those of the state dict, in any library's names. They tell the last stage of a Swin,
            after which mmpretrain names the final norm; whether there is a distillation token,
            with which Hugging Face's prefix is DeiT's; and whether that token has a classifier,
            beside which the other one is called ``cls_classifier`` there.
    """

    def __init__(self, family: str, library: str, keys: Collection[str]):
        self.library = library
        column = _COLUMNS[family].index(library)
        self.openmmlab = [row[0] for row in _TEMPLATES[family]]
        self.templates = [row[column] for row in _TEMPLATES[family]]
        # transformers 5 renamed the attention of the others, not that of YOLOS.
        attention = 'huggingface' if (family, library) == ('YOLOS', IN_MEMORY) else library
        self.query_key_value = _QUERY_KEY_VALUE.get(attention, ())
        stages = (re.search(r'(?:stages|layers)\.(\d+)\.blocks', key) for key in keys)
        distilled = any(re.search(r'dist(illation)?_token$', key) for key in keys)
        teacher = any(re.search(r'head_dist\b|distillation_classifier', key) for key in keys)
        self.constants = {
            'table': 'relative_position_bias_table',
            'index': 'relative_position_index',
            'mid_positions': 'mid_position_embeddings',
            'patches': 'patch_embed',
            'last': str(max((int(match[1]) for match in stages if match), default=0)),
            'model': 'deit' if distilled else 'vit',
            'classifier': 'cls_classifier' if teacher else 'classifier',
        }
        self.patterns = [self._pattern(template) for template in self.templates]

    def _pattern(self, template: str) -> re.Pattern:
        if template == '-':
            return re.compile('(?!)')  # matches nothing
        choices = {
            **self.constants,
            **dict.fromkeys(('n', 's', 'b', 'next'), r'\d+'),
            'qkv': '|'.join(self.query_key_value),
            'model': 'vit|deit',
            'classifier': 'cls_classifier|classifier',
        }
        pieces = re.split(r'\{(\w+)\}', template)
        pieces[::2] = map(re.escape, pieces[::2])
        pieces[1::2] = [f'(?P<{field}>{choices[field]})' for field in pieces[1::2]]
        return re.compile(''.join(pieces))

    def read(self, name: str) -> Part | None:
        """The module or tensor called ``name`` here, None for an unknown name."""
        for row, pattern in enumerate(self.patterns):
            match = pattern.fullmatch(name)
            if match is None:
                continue
            fields = {key: value for key, value in match.groupdict().items() if key in 'nsb'}
            if 'next' in pattern.groupindex:
                if match['next'] == '0':  # timm merges patches before a stage, never the first
                    return None
                fields['s'] = str(int(match['next']) - 1)
            third = None
            if 'qkv' in pattern.groupindex:
                third = self.query_key_value.index(match['qkv'])
            openmmlab = self.openmmlab[row].format(**self.constants, **fields)
            return Part(openmmlab, row, fields, third)
        return None

    def read_key(self, key: str) -> Part | None:
        """The weight with this key in a state dict, None for an unknown key."""
        part = self.read(key)
        if part:
            return part if _TENSORS.search(self.openmmlab[part.row]) else None
        name, _, leaf = key.rpartition('.')
        for buffer in _SLIM_BUFFERS:
            if key.endswith(f'.{buffer}'):  # one has a name of two parts
                name, leaf = key.removesuffix(f'.{buffer}'), buffer
        part = self.read(name)
        if part is None or _TENSORS.search(self.openmmlab[part.row]):
            return None
        if leaf in _SLIM_BUFFERS:
            known = _SLIM_BUFFERS[leaf].search(part.name)
        else:
            known = leaf in ('weight', 'bias') and not _HOLDERS.search(part.name)
        return part._replace(name=f'{part.name}.{leaf}', leaf=f'.{leaf}') if known else None

    def write(self, part: Part, third: int | None = None) -> str | None:
        """The name of ``part`` here, None if this library has no such part.

        Args:
            part: From :meth:`read` or :meth:`read_key` of a library of the same family.
            third: Which of query, key and value, where they are apart here.
        """
        if self.templates[part.row] == '-':
            return None
        fields = {**self.constants, **part.fields}
        if 's' in fields:
            fields['next'] = str(int(fields['s']) + 1)
        if third is not None:
            fields['qkv'] = self.query_key_value[third]
        return self.templates[part.row].format(**fields) + part.leaf

    def missing(self, parts: Collection[str]) -> list[str]:
        """What a whole network has and ``parts`` lacks.

        Only weights that every such network has are missed, so this is for a YOLOS, not for a
        ViT or a Swin: they may have a distillation token or not, and lack their classifier.

        Args:
            parts: Names of parts, see :class:`Part`.

        Returns:
            The missing weights in the names of this library.
        """
        blocks = [int(match[1]) for part in parts if (match := re.search(r'layers\.(\d+)\.', part))]
        missing = []
        for row, template in enumerate(self.openmmlab):
            # Type II has no position embeddings between blocks.
            if template == 'backbone.mid_pos_embed' or _HOLDERS.search(template):
                continue
            leaves = ('',) if _TENSORS.search(template) else ('.weight', '.bias')
            for block in range(max(blocks, default=0) + 1 if '{n}' in template else 1):
                name = template.format(**self.constants, n=block)
                for leaf in leaves:
                    if name + leaf in parts:
                        continue
                    part = Part(name + leaf, row, {'n': str(block)}, None, leaf)
                    thirds = range(len(self.query_key_value)) if '.qkv' in name else ()
                    missing += [self.write(part, third) for third in thirds or (None,)]
        return missing


def libraries(family: str) -> tuple[str, ...]:
    """Whose names a network of this family can get, of :data:`LIBRARIES`."""
    return tuple(library for library in _COLUMNS[family] if library != IN_MEMORY)


def recognise(keys: Collection[str]) -> tuple[str, Names]:
    """Tells from its keys what network a state dict is of.

    Returns:
        The family and the names that fit, of the library that knows the most keys.

    Raises:
        ValueError: A key is unknown in that library; all such keys are counted, five named.
    """
    family, names, unknown = guess(keys)
    if len(unknown) == len(keys):
        raise ValueError(
            f'none of the {len(keys)} keys is of a ViT, DeiT or Swin classifier or a YOLOS of '
            f'{", ".join(LIBRARIES)}: {first_few(unknown)}'
        )
    if unknown:
        raise ValueError(
            f'{len(unknown)} of {len(keys)} keys are not of a {family} in the names of '
            f'{names.library}: {first_few(unknown)}'
        )
    return family, names


def guess(keys: Collection[str]) -> tuple[str, Names, list[str]]:
    """As :func:`recognise`, with the keys that are unknown as third result, and no error."""
    candidates = [
        (family, Names(family, library, keys))
        for family in _TEMPLATES
        for library in _COLUMNS[family]
    ]
    unknown = [[key for key in keys if not names.read_key(key)] for _, names in candidates]
    best = min(range(len(candidates)), key=lambda index: len(unknown[index]))
    return *candidates[best], unknown[best]


def first_few(keys: list[str]) -> str:
    """Names five keys in an error."""
    return ', '.join(map(repr, keys[:5])) + (', ...' if len(keys) > 5 else '')
