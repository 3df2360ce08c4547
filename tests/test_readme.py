"""What README and pages promise is what a test checks: such a sentence names its tests."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Words that make a sentence a promise.
WORDS = re.compile(r'\b(never|always|the same (weights|bits)|by name|refused|an error)\b')
#: How such a sentence goes, and the tests that hold it.
PROMISES = {
    'what is missing or outside the supported range is an error that names it': [
        'compat/test_versions.py',
    ],
    'to the same weights as if nothing had happened': [
        'engine/test_resume.py::test_a_run_killed_again_and_again_ends_with_the_same_weights',
        'engine/test_resume.py::test_a_damaged_one_gives_way_to_the_newest_whole_one',
    ],
    'A checkpoint of another run': [
        'engine/test_same_run.py::test_another_run_is_refused_by_name',
        'engine/test_mcf_pruning_hook.py::test_resuming_with_other_settings_is_refused_by_name',
    ],
    'there and back gives the same bits': [
        'weights/test_convert_libraries.py::test_slim_networks_there_and_back',
        'weights/test_convert_yolos.py::test_there_and_back_gives_the_same_bits',
    ],
    'others are refused before training, as widths are': [
        'models/test_widths.py::test_before_training',
        'models/test_strides.py::test_before_training',
    ],
    'always the one that costs least when all others are solved anew': [
        'pruning/test_solves.py',
    ],
    'the class token always, and the rest becomes one token': [
        'pruning/test_tokens.py',
    ],
    'An image is never looked at beside others': [
        'pruning/test_tokens.py',
    ],
    'which may drop patches and never a detection token': [
        'pruning/test_tokens_yolos.py::test_yolos_keeps_all_detection_tokens_however_many_tokens_go',
    ],
    'With the same weights, logits and boxes are those of transformers': [
        'weights/test_convert_yolos.py',
    ],
    'Logits and boxes are those of transformers': [
        'weights/test_convert_yolos.py',
    ],
    'A test set that shares a file with them is refused': [
        'comparison/test_compare_tool.py::test_bad_arguments',
    ],
    'a damaged image, a wrong box or category': [
        'datasets/test_coco.py',
        'engine/test_bad_input.py',
        'weights/test_check.py',
    ],
    'Every tool compares each name and shape of a checkpoint': [
        'weights/test_check.py',
        'engine/test_same_run.py::test_weights_that_do_not_fit_stop_training',
    ],
    'a file that needs more is refused, unless `MCF_MM_TRUST_PICKLE=1`': [
        'weights/test_pickles.py',
        'weights/test_mmengine_loading.py',
    ],
    '`tools/train.py` and `tools/test.py` stop with an error that names the file': [
        'datasets/test_coco.py',
        'engine/test_bad_input.py',
    ],
    'Repaired in memory, with a line of the log, and never in the file': [
        'datasets/test_coco.py',
    ],
    'weights that are NaN are never written': [
        'engine/test_bad_input.py',
    ],
    'FSDP and DeepSpeed are refused before training starts': [
        'engine/test_distributed.py::test_sharded_training_is_refused',
        'engine/test_distributed.py::test_the_hook_refuses_a_strategy_before_training',
    ],
}


#: The README and the pages that it leads to.
PAGES = [
    ROOT / 'README.md',
    ROOT / 'CONTRIBUTING.md',
    ROOT / 'configs/README.md',
    *sorted((ROOT / 'configs').glob('*/*.md')),
]


def sentences() -> list[str]:
    """Sentences of the pages outside code and tables."""
    text = '\n\n'.join(page.read_text(encoding='utf-8') for page in PAGES)
    text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    found = []
    for paragraph in re.split(r'\n\n|\n(?=- )', text):
        if not paragraph.lstrip().startswith('|'):
            found += re.split(r'(?<=[.;])\s+(?=[A-Z`(*])', ' '.join(paragraph.split()))
    return found


def test_every_promise_has_its_tests():
    without = [
        sentence
        for sentence in sentences()
        if WORDS.search(sentence) and not any(start in sentence for start in PROMISES)
    ]
    assert not without


@pytest.mark.parametrize('promise', PROMISES)
def test_the_tests_of_a_promise_exist(promise):
    assert any(promise in sentence for sentence in sentences()), 'no page says it any more'
    for test in PROMISES[promise]:
        path, _, name = test.partition('::')
        tree = ast.parse((ROOT / 'tests' / path).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert any(other.startswith('test_') for other in names)
        assert not name or name in names, test


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_what_is_there(page):
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        path, _, anchor = link.partition('#')
        if '://' in path:
            continue
        target = page.parent / path if path else page
        assert target.exists(), f'{link}: no such file'
        if anchor:
            titles = re.findall(r'^#+ (.*)$', target.read_text(encoding='utf-8'), re.MULTILINE)
            # As GitHub names them.
            anchors = [re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles]
            assert anchor in anchors, f'{link}: no such heading'


#: A path in the repository, as text has it: with patterns of a shell, and variables of one.
REPOSITORY_PATH = re.compile(r'(?<![\w./-])(?:configs|tools|tests|mcf_mm)/[\w.*?{},$/-]*')
#: No files of the checkout: any script, and a folder of the wheel.
PLACEHOLDERS = {'tools/NAME.py', 'mcf_mm/.mim'}


def paths(code: str) -> list[str]:
    """Paths of the repository that code names, but those that it writes, with loops unrolled."""
    written = set(re.findall(r'--out (\S+)', code))
    found = [path for path in REPOSITORY_PATH.findall(code) if path not in written]
    for name, values in re.findall(r'for (\w+) in ([^;]+);', code):
        variable = f'${{{name}}}'
        found = [
            path.replace(variable, value)
            for path in found
            for value in (values.split() if variable in path else [''])
        ]
    return found


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_code_name_files_that_are_there(page):
    text = page.read_text(encoding='utf-8')
    code = '\n'.join(re.findall(r'```.*?```', text, re.DOTALL))
    text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    inline = '\n'.join(re.findall(r'`([^`\n]+)`', text))
    named = set(paths(code) + paths(inline)) - PLACEHOLDERS
    assert not [path for path in sorted(named) if not any(ROOT.glob(path))]


def test_the_page_of_experiments_has_each_once():
    folder = ROOT / 'configs' / 'experiments'
    rows = [line for line in (folder / 'README.md').read_text().splitlines() if line[:3] == '| `']
    patterns = [re.findall(r'`([^`]+\.py)`', row.split('|')[1]) for row in rows]
    found = [path.name for row in patterns for pattern in row for path in folder.glob(pattern)]
    assert sorted(found) == sorted(path.name for path in folder.glob('*.py'))


def test_paths_of_a_loop_and_not_those_that_are_written():
    code = """for NAME in a b; do
        python tools/train.py configs/${NAME}_c.py --out configs/mine.py
        python tools/test.py configs/mine.py /elsewhere/configs/d.py
    done"""
    assert paths(code) == ['tools/train.py', 'configs/a_c.py', 'configs/b_c.py', 'tools/test.py']


def test_tables_are_as_the_files_of_results_say():
    tool = ROOT / 'tools' / 'benchmarks' / 'tables.py'
    done = subprocess.run([sys.executable, tool, '--check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_page_may_have_several_tables(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools' / 'benchmarks')
    from tables import with_tables

    one = 'configs/detectors/results/box_detectors.json'
    whole, some = (f'<!-- table {one}{shown} -->\n<!-- /table -->' for shown in ('', ' dense'))
    page = f'a\n{whole}\nb\n{some}\nc'
    written = with_tables(page)
    parts = [line for line in written.splitlines() if line in 'abc' or line.startswith('<!--')]
    assert parts == [line for line in page.splitlines() if line]
    assert written.count('| dense |') == 2
    assert written.count('MCF') == with_tables(whole).count('MCF') > 0


def test_a_table_keeps_healings_apart_and_takes_the_mean_of_seeds(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools' / 'benchmarks')
    from tables import table

    row = dict(params=2_000_000, macs=3_000_000_000, seconds=4.0, top1=50.0)
    long = dict(row, one_shot=50.0, heal_minutes=20.0)
    results = {
        'dense': dict(row, top1=80.0),
        'params=2 | all | seed 0': row,
        'params=2 | all | seed 1': dict(row, top1=54.0),
        'params=2 | all | seed 0 | healed epochs=18,lr=3e-5': dict(long, top1=60.0),
        'params=2 | all | seed 1 | healed epochs=18,lr=3e-5': dict(long, top1=64.0),
        'params=2 | all | seed 0 | healed epochs=5': dict(long, top1=58.0, heal_minutes=3.0),
    }
    *_, dense, small = table(results).splitlines()
    assert dense == '| dense | 2.000 M | 3.000 G | 4 | 80.0 |  |'
    cells = [cell.strip() for cell in small.strip('|').split('|')]
    assert cells[0] == 'all' and cells[4] == '52.0 (50.0 to 54.0)'
    assert cells[5] == '62.0 (60.0 to 64.0) (epochs=18, lr=3e-5: 20 min); 58.0 (epochs=5: 3 min)'
    detectors = {
        f'photos | small | seed {seed}': dict(
            AP=0.5 + seed / 10,
            AP50=0.9,
            small=-1.0,
            medium=0.4,
            large=0.6,
            classes=dict(mask=0.25, none=0.75),
            memory=2**30,
        )
        for seed in range(2)
    }
    cells = [cell.strip() for cell in table(detectors).splitlines()[-1].strip('|').split('|')]
    assert cells[:5] == ['photos', 'small', '2', '0.550 (0.500 to 0.600)', '0.900 (0.900 to 0.900)']
    head = [cell.strip() for cell in table(detectors).splitlines()[0].strip('|').split('|')]
    row = dict(zip(head, cells, strict=True))
    assert 'small' not in head and row['memory'] == '1.00 GiB'
    assert row['none'] == '0.750 (0.750 to 0.750)'


def test_costs_by_kind_are_drawn_and_add_up():
    from tables import table

    path = ROOT / 'configs' / 'sidt' / 'results' / 'same_parameters.json'
    results = json.loads(path.read_text())
    lines = table(results, '^DeiT-S').splitlines()
    assert len(lines) == 2 + 9 and lines[2].startswith('| DeiT-S | dense | 22.05 M, 4.60 G |')
    for name, row in results.items():
        for what in ('params', 'macs'):
            assert sum(part[what] for part in row['parts'].values()) == row[what], name
        network, method = name.split(' | ')
        if method.startswith(('MCF', 'multi')):
            equal = results[f'{network} | SiDT, {method.rpartition(", ")[2]}']['params']
            assert 0.999 * equal < row['params'] <= equal, name
