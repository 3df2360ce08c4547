"""The demo's book-keeping: what is complete, what goes on, what is refused."""

import io
from dataclasses import asdict, replace

import outcome
import pytest
import steps as demo
from mmengine.config import Config
from rich.console import Console

from mcf_mm.engine.config import load_config
from mcf_mm.engine.networks import build_model
from mcf_mm.pruning import prune

DENSE, ONE_SHOT, MCF, YOLOS, YOLOS_MCF = demo.STEPS


@pytest.fixture
def step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return DENSE


def configs(**changes) -> dict[str, Config]:
    return {step.name: Config(dict(lr=1, **changes.get(step.name, {}))) for step in demo.STEPS}


def results(dense=97.0, one_shot=88.5, pruned=96.0, ap50=(0.5, 0.45)) -> outcome.Results:
    def figures(**metrics):
        return outcome.Figures(metrics, params=200_000, macs=8_000_000, images_per_second=1000.0)

    top1 = {'dense': dense, 'one shot': one_shot, 'MCF': pruned}
    return outcome.Results(
        classifier={column: figures(**{'top-1': value}) for column, value in top1.items()},
        detector=dict(dense=figures(AP=0.2, AP50=ap50[0]), MCF=figures(AP=0.2, AP50=ap50[1])),
    )


def test_every_step_has_its_config_and_leaves_what_the_next_one_reads(pytestconfig):
    folder = pytestconfig.rootpath
    loaded = {step.name: Config.fromfile(folder / step.config_file) for step in demo.STEPS}
    dense, mcf = DENSE.work_dir / DENSE.result, MCF.work_dir / MCF.result
    assert loaded[MCF.name].load_from == str(dense)
    assert loaded[YOLOS.name].model.backbone.init_cfg.checkpoint == str(dense)
    assert loaded[YOLOS_MCF.name].model.backbone.init_cfg.checkpoint == str(mcf)
    assert demo.command(MCF) == ['tools/train.py', 'configs/demo/mcf_deit-micro_digits.py']
    assert demo.command(ONE_SHOT)[:3] == ['tools/prune.py', DENSE.config_file, str(dense)]
    for step in (DENSE, YOLOS, YOLOS_MCF):
        assert step.result == f'epoch_{loaded[step.name].train_cfg.max_epochs}.pth'


def test_one_shot_has_as_many_parameters_as_mcf(pytestconfig):
    model = build_model(load_config(str(pytestconfig.rootpath / DENSE.config_file)))
    prune(model, [], criterion='magnitude', ratios=dict(inputs=0.4, hidden=0.4))
    params = sum(parameter.numel() for parameter in model.parameters())
    assert demo.ONE_SHOT_BUDGET == f'params={params}'


def test_fingerprint_follows_config_data_and_what_came_before():
    def of(name, data='data', **changes):
        return demo.fingerprint(configs(**changes), name, data)

    assert of(YOLOS_MCF.name) == of(YOLOS_MCF.name)
    assert of(YOLOS_MCF.name) != of(YOLOS_MCF.name, data='other')
    for name in (DENSE.name, MCF.name, YOLOS_MCF.name):
        assert of(YOLOS_MCF.name) != of(YOLOS_MCF.name, **{name: dict(seed=1)})
    assert of(YOLOS_MCF.name) == of(YOLOS_MCF.name, **{YOLOS.name: dict(seed=1)})


def test_fingerprint_follows_the_options_of_pruning(monkeypatch):
    before = demo.fingerprint(configs(), ONE_SHOT.name, 'data')
    other = replace(ONE_SHOT, prune=('--budget', 'macs=50%'))
    monkeypatch.setattr(demo, 'STEPS', (DENSE, other))
    assert demo.fingerprint(configs(), ONE_SHOT.name, 'data') != before


def test_a_step_is_done_only_with_its_result(step):
    assert not demo.is_done(step, 'a')
    assert demo.begin(step, 'a') is False
    with pytest.raises(FileNotFoundError, match='it left no'):
        demo.finish(step, 'a')
    (step.work_dir / step.result).write_text('weights')
    assert not demo.is_done(step, 'a')
    demo.finish(step, 'a')
    assert demo.is_done(step, 'a') and not demo.is_done(step, 'b')


def test_interrupted_step_goes_on_and_another_one_starts_anew(step):
    demo.begin(step, 'a')
    (step.work_dir / 'last_checkpoint').write_text('epoch_3.pth')
    assert demo.begin(step, 'a') is True
    assert demo.begin(step, 'b') is False
    assert not (step.work_dir / 'last_checkpoint').exists()


def test_folder_of_somebody_else_is_kept(step):
    step.work_dir.mkdir(parents=True)
    (step.work_dir / 'epoch_12.pth').write_text('mine')
    with pytest.raises(FileExistsError, match='is not from the demo'):
        demo.begin(step, 'a')
    assert (step.work_dir / 'epoch_12.pth').read_text() == 'mine'


def test_limits():
    assert results().missed() == []
    assert 'below 93' in results(dense=92.0, pruned=92.0).missed()[0]
    assert 'MCF costs 2.0 points' in results(pruned=95.0).missed()[0]
    assert 'AP50 of the MCF detector is 0.200' in results(ap50=(0.5, 0.2)).missed()[0]


def test_results_are_read_back_for_their_fingerprint(tmp_path):
    path = tmp_path / 'results.json'
    assert outcome.read_results(path, 'a') is None
    demo.write_json(path, dict(fingerprint='a', **asdict(results())))
    assert outcome.read_results(path, 'a') == results()
    assert outcome.read_results(path, 'b') is None


def test_table_shows_all_figures():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(outcome.results_table(results()))
    text = console.export_text()
    for cell in ('97.0 %', '88.5 %', '96.0 %', '0.450', '200,000', '8.00 M', '1,000', '>= 0.30'):
        assert cell in text
