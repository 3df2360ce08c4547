"""The page of a run: written by a hook, by tools/prune.py and by tools/report.py, and looked at."""

import json
import re
import sys
from html import unescape
from pathlib import Path

import pytest
import torch
from browser import PROBE, browse, screenshot
from budgets import widened
from fork_server import run_tool
from mmengine.runner import Runner

from mcf_mm.engine.networks import build_model
from mcf_mm.engine.run_page import report_run
from mcf_mm.weights.checkpoint import read_header

ROOT = Path(__file__).resolve().parents[2]
#: A class and a folder with what a page must not take for its own.
CLASS, FOLDER = '<b>cat', '<i>run & co'


def table(page: str, name: str) -> list[list[str]]:
    """The rows of a table, as text."""
    body = re.search(rf'<table class="(?:wide )?{name}">.*?<tbody>(.*?)</tbody>', page, re.S)
    rows = re.findall(r'<tr.*?>(.*?)</tr>', body.group(1), re.S)
    return [[text(cell) for cell in re.findall(r'<td.*?>(.*?)</td>', row, re.S)] for row in rows]


def text(html: str) -> str:
    return unescape(' '.join(re.sub(r'<[^>]*>', '', html).split()))


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}">')[2].partition('</section>')[0]


def probe(page: Path, folder: Path, width: int) -> dict:
    """What the browser says of a page: see ``browser.PROBE``."""
    copy = folder / 'probe.html'
    content = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', '', page.read_text())
    copy.write_text(content.replace('</body>', f'{PROBE}</body>'))
    dom = browse(copy, folder, '--dump-dom', f'--window-size={width},900')
    found = re.search(r'<pre id="probe">PROBE(.*?)END</pre>', dom, re.S)
    return json.loads(unescape(found.group(1)))


@pytest.fixture
def pruned(cfg, photos, tmp_path, looks) -> Path:
    """A folder as tools/prune.py leaves it with a budget, with cost curves."""
    (photos / 'cat').rename(photos / CLASS)
    widened(cfg).custom_hooks = []
    cfg.dump(tmp_path / 'micro.py')
    torch.manual_seed(0)
    torch.save(build_model(cfg).state_dict(), tmp_path / 'dense.pth')
    out = tmp_path / FOLDER
    files = [tmp_path / 'micro.py', tmp_path / 'dense.pth', '--out', out]
    options = ['--budget', 'macs=70%', '--num-images', 10, '--allocation', 'predicted']
    done = run_tool([ROOT / 'tools' / 'prune.py', *files, *options], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'report: {out}/report/index.html' in done.stdout
    return out


def test_the_page_of_a_one_shot_run_in_a_browser(pruned, tmp_path):
    path = pruned / 'report' / 'index.html'
    plain = path.read_text()
    options = ['--dense', 'dense.pth', '--samples', 6, '--throughput', '--batch', 2, '--rounds', 1]
    done = run_tool([ROOT / 'tools' / 'report.py', pruned, *options], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = path.read_text()

    # What it tells, of the files themselves.
    header = read_header(pruned / 'slim.safetensors')
    rows = {row[0]: row[1:] for row in table(page, 'sizes')}
    assert len(rows) == 3 and set(rows) <= set(header['sizes'])
    for unit, cells in rows.items():
        for cell, kept in zip(cells, header['sizes'][unit].values(), strict=True):
            assert cell.split()[-3 if ' of ' in cell else -1] == str(kept)
    parts = table(page, 'parts')
    assert [row[0] for row in parts][-2:] == ['other', 'all'] and parts[-1][-1].startswith('-3')
    assert 'python prune.py micro.py dense.pth --out' in text(section(page, 'made'))
    assert dict(table(page, 'facts'))['seed'] == '0'
    assert 'torch' in section(page, 'machine') and 'thread(s)' in section(page, 'machine')

    # What was asked for is there afterwards; what is not there is said.
    assert 'Not measured: tools/report.py --throughput' in section(plain, 'throughput')
    assert 'Not compared: tools/report.py --dense' in section(plain, 'samples')
    # The networks that were timed are those of the table above.
    timed = {row[0]: row[2] for row in table(page, 'throughput')}
    assert timed == {'dense': parts[-1][1], 'pruned': parts[-1][2]}
    samples = section(page, 'samples')
    assert samples.count('<img src="data:image/png;base64,') == 6
    assert samples.count('<dt>dense</dt>') == samples.count('<dt>pruned</dt>') == 6
    assert 'No training curves' in section(page, 'training')
    for name in ('importance', 'curves', 'parts', 'sizes'):
        assert section(page, name).count('<svg') >= 1, name

    # Nothing of a file is taken for HTML, no path tells of this machine, nothing is fetched.
    assert CLASS not in page and FOLDER not in page and '&lt;b&gt;cat' in page
    assert str(tmp_path) not in page and '<script' not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)

    facts = probe(path, tmp_path, 1280)
    assert facts['images'] == 6 and facts['broken'] == 0 and facts['fetched'] == []
    assert facts['headings'] == [
        'What was cut where',
        'Importance',
        'Cost curves',
        'Complexity by part',
        'Training',
        'Throughput',
        'Predictions, dense against pruned',
        'How it was made',
        'Versions and machine',
    ]
    narrow = probe(path, tmp_path, 500)  # the narrowest window that it has
    assert narrow['content'] <= narrow['width'] == 500
    pixels = screenshot(path, tmp_path, 1280, 1600)
    assert pixels.shape == (1600, 1280, 3) and pixels.std() > 10
    # The blue bars of the kept sizes are drawn.
    assert ((pixels == (0x1F, 0x6F, 0xB2)).all(2)).sum() > 5000


def test_the_page_of_a_training_run(cfg, tmp_path, looks):
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    work_dir = Path(cfg.work_dir)
    page = (work_dir / 'report' / 'index.html').read_text()
    assert section(page, 'training').count('<svg') == 1
    (row,) = table(page, 'metrics')
    accuracy = runner.message_hub.get_scalar('val/accuracy/top1').current()
    assert row[0] == 'accuracy/top1' and row[-2:] == [f'{accuracy:.4g}', '5']
    assert row[2] != '\N{EN DASH}'  # validated before surgery too
    assert 'Accuracy by the last validation' in (work_dir / 'slim.md').read_text()
    assert 'No cost curves' in section(page, 'curves')
    assert len(table(page, 'sizes')) == 3
    # The same from the folder alone, without the record of the run.
    (work_dir / 'report' / 'run.json').unlink()
    done = run_tool([ROOT / 'tools' / 'report.py', work_dir])
    assert done.returncode == 0, done.stderr
    again = (work_dir / 'report' / 'index.html').read_text()
    for name in ('sizes', 'parts', 'metrics'):
        assert table(again, name) == table(page, name)
    assert 'the run left no run.json here' in section(again, 'importance')


def test_what_the_tool_refuses(pruned, tmp_path):
    def refused(*arguments) -> str:
        done = run_tool([ROOT / 'tools' / 'report.py', *arguments], cwd=tmp_path)
        assert done.returncode == 1 and 'Traceback' not in done.stderr, done.stderr
        return done.stderr

    assert 'has no slim.safetensors' in refused(tmp_path)
    assert '--images are for comparing' in refused(pruned, '--images', 'x.png')
    assert '--images are for detectors' in refused(
        pruned, '--dense', 'dense.pth', '--images', 'x.png'
    )
    assert 'samples must be at least 1, got 0' in refused(
        pruned, '--dense', 'dense.pth', '--samples', 0
    )
    assert 'no checkpoint nowhere.pth' in refused(pruned, '--dense', 'nowhere.pth')
    assert 'no file of cost curves' in refused(pruned, '--curves', 'nowhere.json')
    (pruned / 'report' / 'run.json').write_text('{"full": 3}')
    assert 'is no record of a pruning run' in refused(pruned)


def test_without_matplotlib_the_page_says_so(pruned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    for name in ('plots', 'run_plots'):
        monkeypatch.delitem(sys.modules, f'mcf_mm.analysis.{name}', raising=False)
        monkeypatch.delattr(f'mcf_mm.analysis.{name}', raising=False)
    page = report_run(pruned / 'slim.safetensors', pruned / 'slim.py').read_text()
    assert '<svg' not in page and len(table(page, 'sizes')) == 3 and table(page, 'parts')
    for name in ('sizes', 'importance', 'curves'):
        assert 'No pictures: matplotlib is missing' in section(page, name)


def test_a_record_of_another_network_is_left_out(pruned, tmp_path):
    record = json.loads((pruned / 'report' / 'run.json').read_text())
    record['sizes']['backbone.layers.0.ffn']['hidden'] += 1
    (pruned / 'report' / 'run.json').write_text(json.dumps(record))
    done = run_tool([ROOT / 'tools' / 'report.py', pruned], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'has the record of another network' in done.stdout + done.stderr
    hidden = read_header(pruned / 'slim.safetensors')['sizes']['backbone.layers.0.ffn']['hidden']
    found = json.loads((pruned / 'report' / 'run.json').read_text())['sizes']
    assert found['backbone.layers.0.ffn']['hidden'] == hidden
