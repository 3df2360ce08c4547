"""A run as one HTML page that needs no other file: pictures are in it, nothing is fetched."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from mcf_mm.files import whole_file
from mcf_mm.pruning import Sizes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Name of the page, in the folder of the report.
PAGE = 'index.html'
#: Colours of pictures, and those of the page that they become: it has a light and a dark one.
_COLOURS = {
    '#000000': 'currentColor',
    '#1f77b4': 'var(--accent)',
    '#e0e0e0': 'var(--faint)',
    '#bfbfbf': 'var(--middle)',
    '#ffffff': 'var(--paper)',
}
_STYLE = {
    'svg.fonttype': 'none',  # text stays text
    'svg.hashsalt': 'mcf_mm',
    'legend.frameon': False,
    'axes.spines.top': False,
    'axes.spines.right': False,
}


@contextmanager
def page_style():
    """Figures that are made in this context look as the page does."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def inline_svg(figure: 'Figure', label: str) -> Markup:
    """A figure as an SVG element that follows the colours and the width of the page.

    Args:
        figure: Made in :func:`page_style`.
        label: What the picture shows, for those who do not see it.
    """
    text = io.StringIO()
    with page_style():
        figure.savefig(text, format='svg', transparent=True, metadata={'Date': None})
    svg = text.getvalue()
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'\s*<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', '<g>', svg)  # several pictures would have the same names
    for old, new in _COLOURS.items():
        svg = svg.replace(old, new)
    width = float(re.search(r'<svg [^>]*?width="([\d.]+)pt"', svg, re.DOTALL).group(1))
    box = re.search(r'viewBox="([^"]*)"', svg).group(1)
    head = Markup('<svg role="img" aria-label="{}" viewBox="{}" style="width: {:.0f}px">')
    body = svg[svg.index('>') + 1 :]
    return head.format(label, box, width * 4 / 3) + Markup(body)


def data_uri(pixels: np.ndarray, largest: int = 1400) -> str:
    """An image as the source of an ``img`` element.

    Args:
        pixels: RGB ``(H, W, 3)`` or grey ``(H, W, 1)``, uint8.
        largest: Longest side in pixels; larger images become smaller. Defaults to 1400.
    """
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((largest, largest))
    kind = 'PNG' if max(image.size) < 128 else 'JPEG'  # small ones would blur
    content = io.BytesIO()
    image.save(content, kind, quality=88)
    return f'data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}'


def size_tables(full: Sizes, sizes: Sizes, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """What each unit keeps of each kind, one table for each sort of unit.

    Args:
        full: Sizes of the dense network.
        sizes: Sizes of the pruned units; others keep all.
        names: What to call the kinds.

    Returns:
        ``{'kinds': [...], 'rows': [{'unit', 'cells': [{'kept', 'full', 'percent'}]}], 'cut'}``,
        where ``cut`` says whether anything was.
    """
    tables: dict[tuple, list] = {}
    for unit, own in full.items():
        kept = {**own, **sizes.get(unit, {})}
        cells = [
            {'kept': kept[kind], 'full': own[kind], 'percent': 100 * kept[kind] / own[kind]}
            for kind in own
        ]
        tables.setdefault(tuple(own), []).append({'unit': unit, 'cells': cells})
    return [
        {
            'kinds': [names.get(kind, kind) for kind in kinds],
            'rows': rows,
            'cut': any(cell['kept'] < cell['full'] for row in rows for cell in row['cells']),
        }
        for kinds, rows in tables.items()
    ]


def write_page(path: str | Path, **content: Any) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: File to write, ending in ``.html``.
        **content: What the template ``page.html.j2`` speaks of; see
            :func:`mcf_mm.engine.report.report_run`. Text is escaped, whatever is in it.
    """
    templates = Environment(
        loader=PackageLoader('mcf_mm.analysis', ''),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters['thousands'] = lambda number: f'{number:,}'
    templates.filters['short'] = _short
    page = templates.get_template('page.html.j2').render(**content)
    with whole_file(path) as partial:
        partial.write_text(page, encoding='utf-8')
    return Path(path)


def _short(number: float, like: float | None = None) -> str:
    """A number of operations with three decimals, in the unit of ``like`` where that is given."""
    for size, unit in ((1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if abs(number if like is None else like) >= size:
            return f'{number / size:,.3f}{unit}'
    return f'{number:,.4g}'


def part_rows(before: Any, after: Any) -> Sequence[dict[str, Any]]:
    """Parameters and MACs of each part, dense and pruned, the whole last."""
    rows = [
        {'part': name, 'before': before.parts[name], 'after': after.parts[name]}
        for name in before.parts
    ]
    return [*rows, {'part': 'all', 'before': before, 'after': after}]
