"""The page of a run: everything that its files tell, in one HTML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mcf_mm.analysis.page import PAGE, data_uri, part_rows, size_tables, write_page
from mcf_mm.analysis.record import KINDS, Record
from mcf_mm.analysis.report import overview, plotting
from mcf_mm.analysis.training_log import TrainingLog, read_training_log
from mcf_mm.engine.report import REPORT, known_record, record_of_checkpoint
from mcf_mm.registry import split_type
from mcf_mm.weights.card import settings_of
from mcf_mm.weights.checkpoint import read_header

_UNITS = ((1e9, ' G'), (1e6, ' M'), (1e3, ' k'), (1, ''))


def report_run(
    checkpoint: str | Path,
    config: str | Path,
    folder: str | Path | None = None,
    record: Record | None = None,
    samples: list | None = None,
    detections: list | None = None,
) -> Path:
    """Write the page of a run from its files; what there is none of is said in a line of the page.

    Without further arguments no network runs, and none is built where the run left its record.

    Args:
        checkpoint: Pruned weights, such as ``slim.safetensors``; the logs of a training run are
            looked for in their folder.
        config: Config of the pruned network, such as ``slim.py``.
        folder: Folder for the page. Defaults to ``report`` beside the weights.
        record: What the cut did. Defaults to the ``run.json`` in ``folder``, or else to what the
            weights tell.
        samples: What :func:`mcf_mm.engine.samples.classify_samples` returns. Defaults to None.
        detections: What :func:`mcf_mm.engine.samples.draw_samples` returns. Defaults to None.

    Returns:
        Path of the page, ``index.html``.

    Raises:
        FileNotFoundError: There is no such checkpoint or config.
        ValueError: A file is damaged, or the weights are not of the config's network.
    """
    checkpoint = Path(checkpoint)
    folder = checkpoint.parent / REPORT if folder is None else Path(folder)
    header, cfg = read_header(checkpoint), Config.fromfile(config)
    record = record or known_record(folder, checkpoint) or record_of_checkpoint(cfg, checkpoint)
    log = read_training_log(checkpoint.parent, small='trained' in header)
    before, after = record.costs
    detector = cfg.get('default_scope') == 'mmdet'
    pictures = _pictures(record, log)
    tables = size_tables(record.full, record.sizes, KINDS)
    singles = sorted(folder.glob('importance_*.png'))
    return write_page(
        folder / PAGE,
        title=checkpoint.absolute().parent.name,
        lead=_lead(cfg, header),
        tiles=_tiles(record, log),
        pictures=pictures,
        sizes=[table for table in tables if table['cut']],
        whole=[table for table in tables if not table['cut']],
        parts=part_rows(before, after),
        log=log,
        metrics=[] if log is None else _metrics(log),
        throughput=record.throughput,
        detector=detector,
        samples=[
            {
                'source': data_uri(sample.pixels),
                'truth': sample.truth,
                'answers': sample.answers,
            }
            for sample in samples or []
        ],
        detections=[
            {'source': data_uri(picture), 'name': name, 'text': _counts(counts)}
            for name, picture, counts in detections or []
        ],
        made={'command': None, 'versions': None, 'machine': None, **record.made},
        facts=_facts(header),
        config=Path(config).read_text(encoding='utf-8'),
        importance_note=(
            f'The {len(singles)} pictures importance_*.png in this folder show each unit.'
            if singles
            else ''
        ),
        absent=_absent(record, detector, drawn=pictures['parts'] is not None),
    )


def _pictures(record: Record, log: TrainingLog | None) -> dict[str, Any]:
    """SVG elements by name, None for those that there are not."""
    names = ('kept_sizes', 'kept_inputs', 'parts', 'importance', 'curves', 'training')
    pictures: dict[str, Any] = dict.fromkeys(names)
    plots = plotting()
    if plots is None:
        return pictures
    from mcf_mm.analysis import run_plots
    from mcf_mm.analysis.page import inline_svg, page_style

    inputs = {name: torch.tensor(index) for name, index in record.inputs.items()}
    with page_style():
        figures = overview(plots, record.full, record.sizes, inputs, *record.costs)
        figures['kept_sizes'].legends.clear()  # it takes a column, and the caption says it
        if record.importance:
            figures['importance'] = run_plots.ranked_importance_figure(record.importance)
        if record.curves:
            figures['curves'] = run_plots.curves_figure(record.curves, record.sizes, record.full)
        if log is not None:
            figures['training'] = run_plots.training_figure(log)
    return pictures | {
        name: inline_svg(figure, name.replace('_', ' ')) for name, figure in figures.items()
    }


def _lead(cfg: Config, header: Mapping[str, Any]) -> str:
    backbone = split_type((cfg.model.get('backbone') or {}).get('type', ''))[1]
    what = split_type(cfg.model.type)[1] + (f' with {backbone}' if backbone else '')
    criterion = header.get('criterion') or header.get('method')
    if isinstance(criterion, Mapping):
        criterion = criterion.get('type')
    return f'{what}, pruned by mcf_mm' + (f' with the criterion {criterion}.' if criterion else '.')


def _tiles(record: Record, log: TrainingLog | None) -> list[dict[str, str]]:
    before, after = record.costs
    tiles = []
    for key, name in (('params', 'parameters'), ('macs', 'MACs')):
        dense, small = getattr(before, key), getattr(after, key)
        size, unit = next((size, unit) for size, unit in _UNITS if dense >= size)
        tiles.append(
            {
                'value': f'{dense / size:.4g} \N{RIGHTWARDS ARROW} {small / size:.4g}{unit}',
                'text': f'{name}, {100 * (small / dense - 1):+.1f} %',
            }
        )
    for name, value in (log.measured if log else {}).items():
        tiles.append({'value': f'{value:.4g}', 'text': f'{name}, last validation'})
    if record.throughput:
        ratio = record.throughput['throughput_ratio']
        tiles.append({'value': f'{ratio:.2f} times', 'text': 'as fast as the dense network'})
    return tiles[:6]


def _metrics(log: TrainingLog) -> list[dict[str, Any]]:
    """A row for each figure of validation: its first and last value, and the last dense one."""
    rows = []
    for name, points in log.metrics.items():
        dense = [value for epoch, value in points if log.surgery and epoch <= log.surgery]
        rows.append(
            {
                'name': name,
                'first': points[0][1],
                'dense': f'{dense[-1]:.4g}' if dense else '\N{EN DASH}',
                'last': points[-1][1],
                'epoch': points[-1][0],
            }
        )
    return rows


def _facts(header: Mapping[str, Any]) -> list[tuple[str, str]]:
    origin = header.get('origin')
    return [
        ('pruned from', str(origin) if origin else 'not known'),
        *settings_of(header),
        ('version of mcf_mm', str(header.get('version', 'not known'))),
    ]


def _counts(counts: list[int]) -> str:
    return f'{counts[0]} boxes dense, {counts[1]} pruned'


def _absent(record: Record, detector: bool, drawn: bool) -> dict[str, str]:
    """What the page says of parts that it has not."""
    no_record = 'Not known: the run left no run.json here.'
    lines = {
        'pictures': 'No pictures: matplotlib is missing, pip install matplotlib.',
        'importance': 'No importance: '
        + ('nothing was scored.' if record.made else 'the run left no run.json here.'),
        'curves': 'No cost curves: those of the criterion obs with a budget are shown, or a file '
        'of --curves.',
        'training': 'No training curves: there is no */vis_data/scalars.json of a training beside '
        'the weights (LocalVisBackend of MMEngine writes it).',
        'throughput': 'Not measured: tools/report.py --throughput times both networks.',
        'samples': 'Not compared: tools/report.py --dense CHECKPOINT '
        + ('--images FILE ... draws what both find.' if detector else 'shows what both say.'),
        'command': no_record,
        'versions': no_record,
    }
    if not drawn:
        lines |= {name: lines['pictures'] for name in ('importance', 'curves')}
    return lines
