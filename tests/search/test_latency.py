"""A table of measured times, with a clock that stands still but for linear layers."""

import copy
import json

import pytest
import timm
import torch
from torch import nn

from mcf_mm.pruning import find_units, measure_costs, resize, uniform, within_budget
from mcf_mm.pruning.budget import parse_budget
from mcf_mm.pruning.policy import check_sizes
from mcf_mm.search import Latency, measure_latency, read_latency
from mcf_mm.search.timing import machine, quartile, record_calls


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()
KINDS = ('heads', 'qk', 'v', 'inputs', 'hidden')


def tick(module, args, output):
    """A linear layer takes a nanosecond for each product and a microsecond besides."""
    CLOCK.now += 1e-6 + 1e-9 * module.weight.numel() * (output.numel() // output.shape[-1])


def timed(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(tick)
    return model.eval()


def vit(**more) -> nn.Module:
    arch = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=5)
    return timed(timm.create_model('vit_tiny_patch16_224', **{**arch, **more}))


def swin() -> nn.Module:
    return timed(
        timm.create_model(
            'swin_tiny_patch4_window7_224',
            img_size=32,
            embed_dim=32,
            depths=(2, 2),
            num_heads=(2, 4),
            window_size=4,
            num_classes=5,
        )
    )


def forward(model):
    return model(torch.zeros(2, 3, 32, 32))


def seconds(model) -> float:
    start = CLOCK.now
    forward(model)
    return CLOCK.now - start


def resized(model: nn.Module, sizes: dict) -> nn.Module:
    small = copy.deepcopy(model)
    for unit in find_units(small):
        resize(unit, sizes.get(unit.name, {}))
    return small


@pytest.fixture(scope='module')
def network():
    return vit()


@pytest.fixture(scope='module')
def latency(network):
    return measure_latency(network, forward, rounds=2, clock=CLOCK)


@pytest.fixture
def costs(network, latency):
    costs = measure_costs(network, lambda model: model(torch.zeros(1, 3, 32, 32)))
    costs.latency = latency
    return costs


def test_the_dense_network_is_predicted_as_it_was_measured(network, latency):
    assert latency.dense == pytest.approx(seconds(network), rel=1e-9)
    assert latency.of({}) == pytest.approx(latency.dense, rel=1e-9)
    assert latency.of(find_units(network).sizes) == pytest.approx(latency.dense, rel=1e-9)
    assert 0 < latency.rest < latency.dense
    assert latency.facts['factor'] == pytest.approx(1)
    assert (latency.facts['batch'], latency.facts['dtype']) == (2, 'float32')


@pytest.mark.parametrize('build', [vit, swin, lambda: vit(qk_norm=True)])
def test_pruned_networks_are_predicted(build):
    model = build()
    units = find_units(model)
    latency = measure_latency(model, forward, rounds=1, clock=CLOCK)
    latency.check(units)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        sizes = {
            unit.name: {
                kind: int(torch.randint(1, unit.sizes[kind] + 1, (), generator=generator))
                for kind in unit.kinds
            }
            for unit in units
        }
        assert latency.of(sizes) == pytest.approx(seconds(resized(model, sizes)), rel=1e-6)
    same = {name: dict(qk=8, v=8) for name in units.sizes if name.endswith('attn')}
    if all('qk' in unit.kinds for unit in units.attentions):
        assert latency.of(same) == pytest.approx(seconds(resized(model, same)), rel=1e-6)


def test_equal_units_are_measured_once(latency):
    assert latency.units == {
        f'blocks.{block}.{part}': place
        for block in range(3)
        for place, part in enumerate(('attn', 'mlp'))
    }
    assert len(latency.tables) == 2
    # Windows that are shifted have a mask; each stage has its own width.
    tables = measure_latency(swin(), forward, rounds=1, clock=CLOCK).units
    kinds = {name: place for name, place in tables.items() if name.startswith('layers.0')}
    assert kinds['layers.0.blocks.0.attn'] != kinds['layers.0.blocks.1.attn']
    assert kinds['layers.0.blocks.0.mlp'] == kinds['layers.0.blocks.1.mlp']
    assert tables['layers.1.blocks.0.mlp'] != kinds['layers.0.blocks.0.mlp']


class Twice(nn.Module):
    """Runs its block twice, on another number of tokens the second time."""

    def __init__(self):
        super().__init__()
        self.mlp = timm.layers.Mlp(32, 64)
        self.other = timm.layers.Mlp(32, 64)

    def forward(self, x):
        return self.other(self.mlp(self.mlp(x)[:, :2]))


def test_units_that_run_several_times_have_the_time_of_all_runs():
    model = timed(Twice())
    x = torch.zeros(1, 5, 32)
    latency = measure_latency(model, lambda model: model(x), rounds=1, clock=CLOCK)
    assert len(latency.tables) == 2
    assert latency.rest == pytest.approx(0, abs=1e-12)
    products = 2 * 32 * 64 * 1e-9
    assert latency.of_unit('mlp', {}) == pytest.approx(7 * products + 4e-6)
    assert latency.of_unit('other', {}) == pytest.approx(2 * products + 2e-6)
    assert latency.of_unit('mlp', dict(hidden=16)) == pytest.approx(7 * products / 4 + 4e-6)


def test_units_that_take_longer_alone_are_brought_in_line(network):
    model = vit()
    clock = Clock()
    clock.inside = False
    # Alone a call takes three times as long, as where the work of a GPU overlaps.
    model.register_forward_pre_hook(lambda *_: setattr(clock, 'inside', True))
    model.register_forward_hook(lambda *_: setattr(clock, 'inside', False))

    def slow(module, args, output):
        clock.now += (1 if clock.inside else 3) * module.weight.numel() * 1e-9

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(slow)
    latency = measure_latency(model, forward, rounds=1, clock=clock)
    assert latency.facts['factor'] == pytest.approx(1 / 3)
    assert latency.of({}) == pytest.approx(latency.dense) and latency.rest >= 0


def test_of_unit_takes_tensors(latency, costs):
    hidden = torch.arange(1, 193)
    inputs = torch.arange(1, 49)[:, None]
    times = latency.of_unit('blocks.1.mlp', dict(inputs=inputs, hidden=hidden))
    assert times.shape == (48, 192) and times.dtype == torch.double
    single = latency.of_unit('blocks.1.mlp', dict(inputs=17, hidden=100))
    assert isinstance(single, float) and float(times[16, 99]) == pytest.approx(single)
    grid = dict(heads=3, qk=torch.arange(1, 17), v=torch.arange(16, 0, -1))
    price = costs.of_unit('blocks.0.attn', grid)
    assert [len(cost) for cost in price] == [16, 16, 16]
    for place in range(16):
        sizes = dict(heads=3, qk=place + 1, v=16 - place)
        ours = costs.of_unit('blocks.0.attn', sizes)
        assert [float(cost[place]) for cost in price] == pytest.approx(list(ours))
    params, macs, _ = costs.of_unit('blocks.1.mlp', dict(inputs=inputs, hidden=hidden))
    assert params.shape == macs.shape == (48, 192) and not params.is_floating_point()
    ours = costs.of_unit('blocks.1.mlp', dict(inputs=17, hidden=100))
    assert (int(params[16, 99]), int(macs[16, 99])) == ours[:2]


@pytest.mark.parametrize('kinds', [('hidden',), ('heads', 'hidden'), KINDS])
@pytest.mark.parametrize('budget', ['latency=0.8', 'latency=80%', {'latency': 0.8}])
def test_a_budget_of_latency_is_met(network, latency, costs, kinds, budget):
    units = find_units(network)
    sizes = within_budget(units, costs, budget, kinds)
    check_sizes(units, sizes)
    wanted = 0.8 * latency.dense
    assert costs.of(sizes)['latency'] <= wanted
    assert seconds(resized(network, sizes)) <= wanted * (1 + 1e-9)
    for name, own in sizes.items():
        for kind, number in own.items():
            if number < units.sizes[name][kind]:
                more = costs.of({**sizes, name: {**own, kind: number + 1}})
                assert more['latency'] > wanted * (1 - 1e-8), (name, kind)


def test_a_budget_of_latency_out_of_reach_says_what_can_be_reached(network, costs):
    with pytest.raises(ValueError, match=r'budget of [\d.]+ ms latency: [\d.]+ ms is the least'):
        within_budget(find_units(network), costs, 'latency=5%', ['hidden'])


def test_budgets_of_latency_are_shares_or_times(latency, costs):
    dense = latency.dense
    for budget in ('latency=0.7', 'latency = 70%', {'latency': '70%'}, {'latency': 0.7}):
        assert parse_budget(budget, costs) == ('latency', pytest.approx(0.7 * dense))
    assert parse_budget('latency=1', costs) == ('latency', pytest.approx(dense))
    assert parse_budget('latency=12ms', costs) == ('latency', pytest.approx(0.012))
    assert parse_budget('latency=0.5s', costs) == ('latency', 0.5)
    assert parse_budget({'latency': '250 us'}, costs) == ('latency', pytest.approx(250e-6))
    for budget in ('latency=12', {'latency': 1.5}):
        with pytest.raises(ValueError, match=r"a time such as 'latency=12ms', got "):
            parse_budget(budget, costs)
    with pytest.raises(ValueError, match="budget must be a number, got 'macs=12ms'"):
        parse_budget('macs=12ms', costs)
    with pytest.raises(ValueError, match="budget must be positive, got 'latency=0ms'"):
        parse_budget('latency=0ms', costs)


def test_a_budget_of_latency_needs_measured_times(network):
    costs = measure_costs(network, lambda model: model(torch.zeros(1, 3, 32, 32)))
    assert set(costs.of({})) == {'params', 'macs'}
    with pytest.raises(ValueError, match='needs measured times: set costs.latency .*measure_lat'):
        parse_budget('latency=0.7', costs)


def test_a_table_is_written_and_read(latency, network, tmp_path):
    path = tmp_path / 'new' / 'times.json'
    latency.save(path)
    assert [file.name for file in path.parent.iterdir()] == ['times.json']
    again = read_latency(path)
    assert again.facts == latency.facts and again.sizes == latency.sizes
    sizes = uniform(find_units(network), 0.3, kinds=KINDS)
    assert again.of(sizes) == latency.of(sizes)
    again.check(find_units(network))
    with pytest.raises(ValueError, match=r'times is of another network: blocks\.0\.attn has'):
        again.check(find_units(vit(embed_dim=24)), 'times')


def test_times_of_another_machine_are_refused_or_told_of(latency, tmp_path):
    path = tmp_path / 'times.json'

    def write(**facts):
        other = Latency(**{**latency.__dict__, 'facts': {**latency.facts, **facts}})
        other.save(path)

    write(device='abacus', threads=99)
    message = r'times\.json was measured with device abacus, threads 99; here it is device .*again'
    with pytest.raises(ValueError, match=message):
        read_latency(path)
    with pytest.warns(UserWarning, match='was measured with device abacus, threads 99; here'):
        assert read_latency(path, strict=False).dense == latency.dense
    assert read_latency(path, device=None).facts['device'] == 'abacus'
    write(torch='1.0')
    with pytest.warns(UserWarning, match='was measured with torch 1.0; here it is torch '):
        read_latency(path)


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda content: '{"dense": ', r'times\.json has no measured times as'),
        (lambda content: '[]', 'has no measured times as'),
        (lambda content: json.dumps({**content, 'tables': []}), 'IndexError'),
        (lambda content: json.dumps({**content, 'sizes': {}}), 'KeyError'),
        (lambda content: json.dumps({**content, 'rest': None}), 'TypeError'),
    ],
)
def test_files_that_are_no_table_are_named(latency, tmp_path, change, message):
    path = tmp_path / 'times.json'
    latency.save(path)
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        read_latency(path)
    with pytest.raises(FileNotFoundError, match='no file of measured times .*nowhere'):
        read_latency(tmp_path / 'nowhere.json')


def test_what_cannot_be_measured_is_named(network, latency):
    with pytest.raises(ValueError, match='rounds must be at least 1, got 0'):
        measure_latency(network, forward, rounds=0)
    with pytest.raises(ValueError, match=r"points names \['tokens'\], the kinds are"):
        measure_latency(network, forward, points=dict(tokens=3))
    with pytest.raises(ValueError, match='points of v must be at least 2, got 1'):
        measure_latency(network, forward, points=dict(v=1))
    with pytest.raises(ValueError, match='Linear has no unit whose time could be measured'):
        measure_latency(nn.Linear(3, 3), forward)
    with pytest.raises(ValueError, match=r'blocks\.0\.attn is not run by forward \(nor are 5 oth'):
        measure_latency(network, lambda model: None)
    with pytest.raises(ValueError, match="no measured times of 'layers.0'"):
        latency.of_unit('layers.0', {})
    with pytest.raises(ValueError, match="no measured times of 'layers.0'"):
        latency.of({'layers.0': dict(hidden=3)})


def test_a_measured_network_is_as_before(network):
    model = vit().train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    seen = []
    measure_latency(
        model, forward, rounds=2, clock=CLOCK, progress=lambda *numbers: seen.append(numbers)
    )
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_autocast_of_the_forward_pass_is_noted(network):
    units = find_units(network)

    def half(model):
        with torch.autocast('cpu', torch.bfloat16):
            return forward(model)

    seen = record_calls(network, half, units)
    assert {call.autocast for call in seen.calls.values()} == {torch.bfloat16}
    assert len(seen.calls) == 2 and seen.batch == 2
    latency = measure_latency(network, half, rounds=1, clock=CLOCK)
    assert latency.facts['dtype'] == 'bfloat16'


def test_the_lower_quartile():
    assert quartile([3.0]) == 3 and quartile([4.0, 1, 3, 2]) == 1 and quartile(range(9)) == 2
    assert set(machine()) == {'device', 'threads', 'torch'}
