"""MMEngine reads every checkpoint through mcf_mm: no code runs, nothing stays random."""

import http.server
import os
import threading

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from mmpretrain.models import SwinTransformer
from torch import nn

from mcf_mm.engine.networks import unwrapped
from mcf_mm.engine.runner import build_runner
from mcf_mm.weights.check import describe_new
from mcf_mm.weights.checkpoint import check_loaded, load_weights, read_state_dict
from mcf_mm.weights.convert import convert_state_dict
from mcf_mm.weights.files import save_state_dict
from mcf_mm.weights.slim_config import write_slim


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


@pytest.fixture
def plain(cfg):
    """One epoch without pruning."""
    cfg.custom_hooks = []
    cfg.train_cfg.max_epochs = 1
    return cfg


def classifier(cfg, **head) -> nn.Module:
    model = cfg.model.copy()
    model['head'] = dict(model['head'], **head)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model)


def test_code_does_not_run_wherever_mmengine_reads(plain, tmp_path):
    mark, bad = tmp_path / 'mark', tmp_path / 'bad.pth'
    Runner.from_cfg(plain).train()
    whole = torch.load(tmp_path / 'work' / 'epoch_1.pth', weights_only=False)
    torch.save({**whole, 'more': Payload(mark)}, bad)
    message = r'bad\.pth: holds more than tensors .* asks for (posix|nt)\.system, .*TRUST_PICKLE=1'
    plain.load_from = str(bad)
    for resume in (False, True):
        plain.resume = resume
        plain.experiment_name = f'resume {resume}'
        with pytest.raises(ValueError, match=message):
            Runner.from_cfg(plain).train()
    backbone = classifier(plain).backbone
    backbone.init_cfg = dict(type='Pretrained', checkpoint=str(bad), prefix='backbone.')
    with pytest.raises(ValueError, match=message):
        backbone.init_weights()
    for read in (read_state_dict, lambda path: load_weights(classifier(plain), path)):
        with pytest.raises(ValueError, match=message):
            read(str(bad))
    assert not mark.exists()


def test_a_config_in_a_checkpoint_is_not_run(plain, tmp_path):
    """MMEngine's resume would take the number of GPUs from it, by running it."""
    Runner.from_cfg(plain).train()
    path, mark = tmp_path / 'work' / 'epoch_1.pth', tmp_path / 'mark'
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['meta']['config'] = f'import os\nos.system("touch {mark}")\n'
    torch.save(checkpoint, path)
    plain.update(resume=True, load_from=str(path), experiment_name='again')
    plain.train_cfg.max_epochs = 2
    runner = Runner.from_cfg(plain)
    runner.train()
    assert runner.epoch == 2 and not mark.exists()


@pytest.mark.parametrize('key', ['model', 'model_state_dict', 'state_dict_ema', None])
def test_weights_under_any_key(plain, key, tmp_path, capsys):
    torch.manual_seed(1)
    source = classifier(plain)
    weights = source.state_dict()
    torch.save({key: weights, 'epoch': 3} if key else weights, tmp_path / 'a.pth')
    plain.load_from = str(tmp_path / 'a.pth')
    runner = build_runner(plain)
    runner.load_or_resume()
    found = unwrapped(runner).state_dict()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert read_state_dict(plain.load_from).keys() == weights.keys()
    if key == 'state_dict_ema':
        assert "a.pth: weights are those of 'state_dict_ema', an average" in capsys.readouterr().out


def test_safetensors_in_any_case(plain, tmp_path):
    weights = classifier(plain).state_dict()
    save_state_dict(tmp_path / 'SLIM.SAFETENSORS', weights, {'origin': 'a'})
    checkpoint = CheckpointLoader.load_checkpoint(str(tmp_path / 'SLIM.SAFETENSORS'))
    assert checkpoint['meta']['origin'] == 'a' and len(checkpoint['state_dict']) == len(weights)


def test_files_without_weights_are_none_of_our_business(tmp_path):
    torch.save({'epoch': 3, 'log': [1, 2]}, tmp_path / 'a.pth')
    assert CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'))['log'] == [1, 2]
    with pytest.raises(ValueError, match=r'a\.pth: no weights at the top level'):
        read_state_dict(str(tmp_path / 'a.pth'))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves a folder; what is downloaded goes to another one."""
    (tmp_path / 'served').mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path / 'served'))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_address[1]}'
        httpd.shutdown()


def test_downloads(plain, server, tmp_path):
    weights = classifier(plain).state_dict()
    save_state_dict(tmp_path / 'served' / 'a.safetensors', weights, {})
    model = classifier(plain)
    load_weights(model, f'{server}/a.safetensors?download=true')
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    (tmp_path / 'served' / 'a.safetensors').unlink()
    load_weights(model, f'{server}/a.safetensors')  # once is enough
    torch.save({'state_dict': {}, 'more': Payload(tmp_path / 'mark')}, tmp_path / 'served/bad.pth')
    with pytest.raises(ValueError, match=r'bad\.pth: holds more than tensors'):
        CheckpointLoader.load_checkpoint(f'{server}/bad.pth')
    assert not (tmp_path / 'mark').exists()


def test_load_weights_is_all_or_an_error(plain, tmp_path):
    torch.manual_seed(1)
    source, path = classifier(plain), tmp_path / 'a.pth'
    good = source.state_dict()
    torch.save({'state_dict': good, 'meta': {'dataset_meta': {'classes': ['a', 'b']}}}, path)
    model = classifier(plain)
    meta, anew = load_weights(model, path)
    assert meta['dataset_meta']['classes'] == ['a', 'b'] and anew == []
    assert all(torch.equal(model.state_dict()[name], value) for name, value in good.items())

    timm_names = convert_state_dict(good, 'timm')
    broken = {**good, 'head.layers.head.bias': torch.tensor([torch.nan, 0])}
    for weights, message in (
        (timm_names, 'lacks'),
        (broken, r' is NaN or infinite in 1 weight: head.layers.head.bias'),
        ({k: v for k, v in good.items() if 'patch_embed' not in k}, 'patch_embed.projection.wei'),
        ({**good, 'backbone.cls_token': torch.ones(1, 1, 8)}, r'is \(1, 1, 8\), not \(1, 1, 16\)'),
        ({**good, 'more': torch.ones(1)}, r"has 1 weight that ImageClassifier lacks, .*'more'"),
    ):
        torch.save(weights, path)
        with pytest.raises(ValueError, match=rf'a\.pth.*{message}'):
            load_weights(classifier(plain), path)


def test_positions_of_another_size_are_resized_by_the_class(plain, tmp_path):
    save_state_dict(tmp_path / 'a.safetensors', classifier(plain).state_dict(), {})
    plain.model.backbone.img_size = 64
    model = classifier(plain)
    assert load_weights(model, tmp_path / 'a.safetensors')[1] == []
    with pytest.raises(ValueError, match=r'pos_embed is \(1, 17, 16\), not \(1, 65, 16\)'):
        load_weights(model, tmp_path / 'a.safetensors', resized=())


def test_a_head_for_other_classes(plain, tmp_path):
    source = classifier(plain, num_classes=7)
    save_state_dict(tmp_path / 'a.safetensors', source.state_dict(), {})
    model = classifier(plain)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'layers.head.weight is \(7, 16\), not \(2, 16\)'):
        load_weights(classifier(plain), tmp_path / 'a.safetensors')
    _, anew = load_weights(model, tmp_path / 'a.safetensors', allow_new_head=True)
    assert anew == ['head.layers.head.weight', 'head.layers.head.bias']
    assert describe_new(anew).endswith(
        'not in the checkpoint, new from the start: head.layers.head'
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in anew else source.state_dict()[name])


def test_sizes_that_the_network_takes_from_the_checkpoint(cfg, tmp_path):
    cfg.model.backbone.update(ffn_inputs=9, ffn_hiddens=24)
    source = classifier(cfg)
    save_state_dict(tmp_path / 'a.safetensors', source.state_dict(), {})
    for name in ('ffn_inputs', 'ffn_hiddens'):
        cfg.model.backbone.pop(name)
    cfg.model.backbone.sizes = 'auto'
    model = classifier(cfg)
    load_weights(model, tmp_path / 'a.safetensors')
    assert all(torch.equal(model.state_dict()[n], v) for n, v in source.state_dict().items())


def test_old_names_of_swin(tmp_path):
    arch = dict(embed_dims=8, depths=[2, 2], num_heads=[2, 4])

    class Swin(SwinTransformer):
        """A class derived from mmpretrain's, which then renames nothing."""

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Swin(arch=arch, img_size=32, window_size=4, out_indices=(1,))

    source = build(0)
    weights = {
        name.replace('norm1.', 'norm.') if name.startswith('norm1') else name: value
        for name, value in source.state_dict().items()
    }
    weights['stages.0.blocks.1.attn.attn_mask'] = torch.zeros(4, 16, 16)
    torch.save({'state_dict': weights}, tmp_path / 'old.pth')
    model = build(1)
    assert load_weights(model, tmp_path / 'old.pth')[1] == []
    assert all(torch.equal(model.state_dict()[n], v) for n, v in source.state_dict().items())
    check_loaded(model, {'state_dict': weights})


def test_a_network_that_mmengine_has_loaded(plain):
    model = classifier(plain)
    weights = model.state_dict()
    check_loaded(model, {'state_dict': {f'module.{name}': v for name, v in weights.items()}})
    check_loaded(model, weights)
    weights.pop('backbone.cls_token')
    with pytest.raises(ValueError, match="lacks 1 .*'backbone.cls_token', .1, 1, 16."):
        check_loaded(model, {'state_dict': weights})


def test_a_pruned_network_with_nan_is_not_written(plain, tmp_path):
    model = classifier(plain)
    model.backbone.ln1.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match='the pruned network is NaN .* 1 weight: backbone.ln1.wei'):
        write_slim(model, plain, tmp_path / 'out', {})
    assert not (tmp_path / 'out').exists()
