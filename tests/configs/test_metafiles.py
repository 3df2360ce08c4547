"""The metafiles say what the configs build."""

from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from mcf_mm.analysis.complexity import count_complexity
from mcf_mm.engine.config import input_shape
from mcf_mm.engine.networks import build_model, model_costs, pruned_network
from mcf_mm.pruning import within_budget
from mcf_mm.pruning.budget import parse_budget
from mcf_mm.pruning.prune import require_units

ROOT = Path(__file__).parents[2]
KINDS = ('heads', 'hidden', 'tokens')
METAFILES = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
MODELS = [
    model for file in METAFILES for model in yaml.safe_load((ROOT / file).read_text())['Models']
]


def test_every_published_recipe_is_listed():
    listed = {model['Config'] for model in MODELS}
    recipes = [
        *ROOT.glob('configs/m*/*_in1k.py'),
        *ROOT.glob('configs/sidt/*_in1k.py'),
        *ROOT.glob('configs/yolos/*_coco.py'),
    ]
    assert listed == {str(path.relative_to(ROOT)) for path in recipes}


def test_every_config_imports_what_it_names():
    """So that the tools of mmpretrain and mmdet, and their inferencers, take it as it is."""
    for path in ROOT.glob('configs/[!_]*/*.py'):
        config = Config.fromfile(path, import_custom_modules=False)
        assert 'mcf_mm.registry' in config.custom_imports.imports, path


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_parameters_and_macs(model):
    config = Config.fromfile(ROOT / model['Config'])
    assert Path(model['Config']).stem == model['Name']
    pruning = config
    backbone = config.model.backbone
    if backbone.get('sizes') == 'auto':
        # From the work directory of the config that prunes the backbone, where nothing is yet.
        origin = Path(backbone.init_cfg.checkpoint).parent.name
        pruning = Config.fromfile(ROOT / f'configs/mcf/{origin}.py')
        del backbone['sizes']
    dense = build_model(config)
    shape = input_shape(config)
    if 'Budget' in model['Metadata']:
        # A search finds the policy; what it may spend is known, and that it can be spent.
        costs, units = model_costs(dense, shape), require_units(dense)
        assert parse_budget(model['Metadata']['Budget'], costs) == (
            'macs',
            model['Metadata']['MACs'],
        )
        sizes = within_budget(units, costs, model['Metadata']['Budget'], KINDS)
        assert costs.of(sizes)['macs'] > 0.999 * model['Metadata']['MACs']
        dense_costs = costs.of({})
        assert dense_costs['params'] == model['Metadata']['Dense Parameters']
        assert dense_costs['macs'] == model['Metadata']['Dense MACs']
        return
    pruned = pruned_network(pruning, dense)
    networks = {'': dense} if pruned is None else {'Dense ': dense, '': pruned}
    for prefix, network in networks.items():
        count = count_complexity(network, shape)
        assert count.params == model['Metadata'][f'{prefix}Parameters']
        assert count.macs == model['Metadata'][f'{prefix}MACs']


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_the_readme_has_the_figures(model):
    readme = (ROOT / model['Config']).with_name('README.md').read_text()
    row = next(line for line in readme.splitlines() if f'({model["Name"]}.py)' in line)
    metadata = model['Metadata']
    assert f'{metadata.get("Parameters", metadata.get("Dense Parameters")) / 1e6:.3f} M' in row
    assert f'{metadata["MACs"] / 1e9:.3f} G' in row
    for name, figure in model.get('Paper', {}).items():
        assert str(figure) in (readme if name.startswith('Dense') else row)
