"""Writes the tables of results in the READMEs anew, from the JSON files of results.

A table stands between two comments; the first names its file, from the top of the repository, and
may have a regular expression of the rows that are shown:

    <!-- table configs/mcf/results/small_without_training.json hidden alone|dense -->
    <!-- /table -->

``searches`` in place of ``table`` shows how far searches got after some trials.

    python tools/benchmarks/tables.py           # writes them
    python tools/benchmarks/tables.py --check   # names those that are not as the files say
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from mcf_mm.files import write_json

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r'(<!-- (table|searches) (\S+)(?: ([^\n]+?))? -->\n).*?(<!-- /table -->)', re.DOTALL
)
#: After how many trials a search is looked at.
TRIALS = (1, 10, 20, 40)


def read_results(path: Path) -> dict[str, Any]:
    """The results in a JSON file; empty where there is none."""
    return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write results; the file appears whole or not at all."""
    write_json(path, results, indent=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='write nothing')
    check = parser.parse_args().check
    stale = []
    for path in (ROOT / 'README.md', *sorted((ROOT / 'configs').glob('*/*.md'))):
        text = path.read_text(encoding='utf-8')
        written = with_tables(text)
        if written != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(written, encoding='utf-8')
                print(f'wrote the tables of {stale[-1]}')
    if check and stale:
        sys.exit(f'error: tables are not as the files of results say: {", ".join(stale)}')


def with_tables(text: str) -> str:
    """A page with its tables as the files of results say."""

    def block(match: re.Match) -> str:
        results = json.loads((ROOT / match[3]).read_text(encoding='utf-8'))
        made = (table if match[2] == 'table' else searches_table)(results, match[4] or '')
        return f'{match[1]}{made}\n{match[5]}'

    return _BLOCK.sub(block, text)


def table(results: dict[str, dict], shown: str = '') -> str:
    """Markdown of a file of results: of classifiers, of detectors, of speed or of costs."""
    for facts, of in (('AP50', detectors_table), ('shares', speed_table), ('parts', costs_table)):
        if any(facts in row for row in results.values()):
            return of(results, shown)
    return classifiers_table(results, shown)


def speed_table(results: dict[str, dict], shown: str = '') -> str:
    """Markdown of results of ``kinds_speed.py``: median share of the promised speed, and range.

    Args:
        results: Rows by name: ``machine | precision and threads | network | kind``.
        shown: Regular expression of the rows that are shown. Defaults to all.
    """
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for key, row in results.items():
        if re.search(shown, key):
            _, how, network, kind = key.split(' | ')
            least, middle, most = min(row['shares']), median(row['shares']), max(row['shares'])
            cell = f'{middle:.2f} ({least:.2f} to {most:.2f}) of {row["macs_ratio"]:.2f}'
            cells.setdefault((network, how), {})[kind] = cell
    kinds = list(dict.fromkeys(kind for row in cells.values() for kind in row))
    lines = [f'| network | | {" | ".join(kinds)} |', '| --- ' * (2 + len(kinds)) + '|']
    for (network, how), row in cells.items():
        lines.append(f'| {network} | {how} | {" | ".join(row.get(kind, "") for kind in kinds)} |')
    return '\n'.join(lines)


def costs_table(results: dict[str, dict], shown: str = '') -> str:
    """Markdown of results of ``same_parameters.py``: parameters in millions and MACs in billions.

    Args:
        results: Rows by name: ``network | method``, as ``Complexity.to_dict`` says them.
        shown: Regular expression of the rows that are shown. Defaults to all.
    """
    rows = {key: row for key, row in results.items() if re.search(shown, key)}
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row['parts']))
    lines = [f'| network | | {" | ".join(["all", *kinds])} |', '| --- ' * (3 + len(kinds)) + '|']
    for key, row in rows.items():
        cells = [
            (f'{cost["params"] / 1e6:.2f} M, ' if cost['params'] else '')
            + f'{cost["macs"] / 1e9:.2f} G'
            for cost in (row, *(row['parts'][kind] for kind in kinds))
        ]
        lines.append(f'| {" | ".join([*key.split(" | "), *cells])} |')
    return '\n'.join(lines)


def detectors_table(results: dict[str, dict], shown: str = '') -> str:
    """Markdown of results of ``box_detectors.py``: the mean of the seeds, and their range.

    Args:
        results: Rows by name: ``data set | backbone | seed N``.
        shown: Regular expression of the rows that are shown. Defaults to all.
    """
    groups: dict[str, list[dict]] = {}
    for key, row in results.items():
        if re.search(shown, key):
            groups.setdefault(key.rpartition(' | seed ')[0], []).append(row)
    every = [row for rows in groups.values() for row in rows]
    # COCO says -1 where a set has no boxes of a size.
    sizes = [size for size in ('small', 'medium', 'large') if any(row[size] >= 0 for row in every)]
    scores = ['AP', 'AP50', *sizes]
    classes = list(dict.fromkeys(name for row in every for name in row.get('classes', ())))
    memory = any('memory' in row for row in every)
    head = ['data', 'backbone', 'seeds', *scores, *classes, 'parameters', 'MACs', 'images/s']
    head += ['memory'] * memory
    lines = [f'| {" | ".join(head)} |', '| --- ' * len(head) + '|']
    for name, rows in groups.items():
        cells = [*name.split(' | '), str(len(rows))]
        cells += [_mean(rows, itemgetter(key), 3) for key in scores]
        for kind in classes:
            known = [row['classes'] for row in rows if kind in row.get('classes', ())]
            cells.append(_mean(known, itemgetter(kind), 3) if known else '')
        first, costs = rows[0], ['', '', '']
        if 'params' in first:
            costs = [f'{first["params"] / 1e6:.3f} M', f'{first["macs"] / 1e9:.3f} G']
            costs.append(f'{first["images_per_second"]:.1f}')
        if memory:
            costs.append(f'{first["memory"] / 2**30:.2f} GiB' if 'memory' in first else '')
        lines.append(f'| {" | ".join([*cells, *costs])} |')
    return '\n'.join(lines)


def classifiers_table(results: dict[str, dict], shown: str = '') -> str:
    """Markdown of results of ``small_without_training.py``.

    Within a budget rows are sorted by their one-shot accuracy; several seeds are one row, with
    their mean and range.

    Args:
        results: Rows by name: ``budget | network | seed N | label | healed how long``, the last
            two if there are any.
        shown: Regular expression of the rows that are shown. Defaults to all.
    """
    groups: dict[str, list[dict]] = {}
    # By network, and then by how it was healed.
    healed: dict[str, dict[str, list[dict]]] = {}
    for key, row in results.items():
        parts = [part for part in key.split(' | ') if not part.startswith('seed ')]
        if parts[-1].startswith('healed '):
            settings = parts.pop().removeprefix('healed ')
            healed.setdefault(' | '.join(parts), {}).setdefault(settings, []).append(row)
        else:
            groups.setdefault(' | '.join(parts), []).append(row)
    for name, by_settings in healed.items():
        groups.setdefault(name, next(iter(by_settings.values())))
    budgets = list(dict.fromkeys(name.split(' | ')[0] for name in groups))
    names = sorted(
        (name for name in groups if re.search(shown, name)),
        key=lambda name: (
            name != 'dense',
            budgets.index(name.split(' | ')[0]),
            _values(groups[name], _one_shot)[0],
        ),
    )
    lines = [
        '| network | parameters | MACs | seconds | top-1 one shot | top-1 healed |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for name in names:
        rows = groups[name]
        first = rows[0]
        shared = f'{first["shared_seconds"]:.0f} + ' if first.get('shared_seconds') else ''
        after = '; '.join(
            f'{_mean(same, _top1)} ({how.replace(",", ", ")}: {same[0]["heal_minutes"]:.0f} min)'
            for how, same in healed.get(name, {}).items()
        )
        lines.append(
            f'| {", ".join(name.split(" | ")[1:]) or name} | {first["params"] / 1e6:.3f} M | '
            f'{first["macs"] / 1e9:.3f} G | {shared}{first["seconds"]:.0f} | '
            f'{_mean(rows, _one_shot)} | {after} |'
        )
    return '\n'.join(lines)


def searches_table(results: dict[str, dict], shown: str = '') -> str:
    """Markdown: the best score of searches after some trials, on their own images; seeds' mean.

    Args:
        results: Rows by name, of ``policy_search.py``; those with ``best_so_far`` are shown.
        shown: Regular expression of the rows that are shown. Defaults to all.
    """
    groups: dict[str, list[dict]] = {}
    for key, row in results.items():
        if 'best_so_far' in row and re.search(shown, key):
            groups.setdefault(key.rpartition(' | seed ')[0], []).append(row)
    head = ['search', 'seeds', *map(str, TRIALS), 'mean of all']
    lines = [f'| {" | ".join(head)} |', '| --- ' * len(head) + '|']
    for name, rows in sorted(groups.items()):
        best = [
            sum(row['best_so_far'][:number][-1] for row in rows) / len(rows) for number in TRIALS
        ]
        every = sum(row['mean_score'] for row in rows) / len(rows)
        cells = [name.replace(' | ', ', '), str(len(rows))]
        cells += [f'{value:.2f}' for value in (*best, every)]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _one_shot(row: dict) -> float:
    return row.get('one_shot', row['top1'])


def _top1(row: dict) -> float:
    return row['top1']


def _values(rows: list[dict], of: Callable[[dict], float]) -> tuple[float, float, float]:
    values = [of(row) for row in rows]
    return sum(values) / len(values), min(values), max(values)


def _mean(rows: list[dict], of: Callable[[dict], float], digits: int = 1) -> str:
    mean, least, most = (f'{value:.{digits}f}' for value in _values(rows, of))
    return mean if len(rows) == 1 else f'{mean} ({least} to {most})'


if __name__ == '__main__':
    main()
