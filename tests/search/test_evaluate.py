"""Scores of policies: the network is as before, gates agree with cuts, and a search finds more."""

import copy

import pytest
import timm
import torch

from mcf_mm.pruning import Seen, calibrate, find_units, measure_costs, prune
from mcf_mm.pruning.criteria import MCF, OBS, Fisher, Magnitude
from mcf_mm.pruning.measure import divergence, log_scores
from mcf_mm.search.evaluate import Evaluator
from mcf_mm.search.shape import Shape

KINDS = ('heads', 'hidden', 'qk', 'v', 'inputs')


@pytest.fixture(scope='module')
def dense():
    torch.manual_seed(0)
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3,
        num_classes=5, mlp_ratio=2,
    )  # fmt: skip
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.15 * torch.randn_like(value))
        model.head.weight.mul_(4)
    return model.eval()


@pytest.fixture
def model(dense):
    return copy.deepcopy(dense)


@pytest.fixture
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(number, 3, 32, 32, generator=generator) for number in (12, 12, 8)]


def labels_of(model, images) -> torch.Tensor:
    """Right for about two thirds."""
    labels = log_scores(model, images).argmax(-1)
    labels[::3] = (labels[::3] + 1) % 5
    return labels


def shape_of(model, budget='macs=75%', kinds=KINDS) -> Shape:
    costs = measure_costs(model, lambda own: own(torch.zeros(1, 3, 32, 32)))
    return Shape(find_units(model), costs, budget, kinds)


def seen_by(model, criterion, images, kinds=KINDS) -> Seen:
    units = find_units(model)
    criterion.prepare(model)
    full = {u.name: {k: n for k, n in u.sizes.items() if k in kinds} for u in units}
    return calibrate(model, images, criterion.observers(units, full), labels=criterion.labels)


@pytest.mark.parametrize(
    'criterion, compensation, score, kinds',
    [
        (OBS, 'least_squares', 'cut', KINDS),
        (OBS, 'none', 'masked', KINDS),
        (Fisher, 'none', 'cut', KINDS),
        (Fisher, 'none', 'masked', KINDS),
        (MCF, 'none', 'cut', ('hidden', 'inputs')),
    ],
)
def test_the_network_is_as_before_and_the_score_that_of_a_pruned_copy(
    model, images, criterion, compensation, score, kinds
):
    criterion = criterion()
    seen, before = seen_by(model, criterion, images, kinds), copy.deepcopy(model)
    model.train()
    modules = dict(model.named_modules())
    shape, labels = shape_of(model, 'macs=85%', kinds), labels_of(model, images)
    sizes = [
        shape.sizes({name: ((3 * n + shift) % 7) / 6 for n, name in enumerate(shape.names)})
        for shift in (0, 2)
    ]
    for objective in ('accuracy', 'divergence'):
        evaluate = Evaluator(model, images, criterion, seen, labels, compensation, score, objective)
        scores = [evaluate(own) for own in sizes]
        assert [evaluate(own) for own in sizes[::-1]] == scores[::-1]
        for own, found in zip(sizes, scores, strict=True):
            small = copy.deepcopy(before)
            prune(small, [], type(criterion)(), sizes=own, seen=seen, compensation=compensation)
            scored = log_scores(small, images)
            if objective == 'accuracy':
                expected = 100 * float((scored.argmax(-1) == labels).double().mean())
                assert found == pytest.approx(expected)
            else:
                expected = -divergence(scored, log_scores(before, images))
                assert found == pytest.approx(expected, rel=1e-3) and found < 0
        # The dense network.
        told = 100 * float((log_scores(before, images).argmax(-1) == labels).double().mean())
        assert evaluate.dense() == (told if objective == 'accuracy' else 0)
    own, others = model.state_dict(), before.state_dict()
    assert own.keys() == others.keys()
    assert all(torch.equal(own[key], others[key]) for key in own)
    assert all(part is modules[name] and part.training for name, part in model.named_modules())


@pytest.mark.parametrize('objective', ['accuracy', 'divergence'])
def test_gates_score_as_a_cut_without_compensation(model, images, objective):
    criterion = Fisher()
    seen, labels = seen_by(model, criterion, images), labels_of(model, images)
    shape = shape_of(model)
    for shift in range(4):
        x = {name: ((5 * n + shift) % 8) / 7 for n, name in enumerate(shape.names)}
        found = [
            Evaluator(model, images, criterion, seen, labels, 'none', score, objective)(
                shape.sizes(x)
            )
            for score in ('cut', 'masked')
        ]
        assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_search_finds_the_unit_that_nobody_needs(model, images, tmp_path):
    pytest.importorskip('optuna', reason='the extra search is not installed')
    from mcf_mm.search.storage import default_storage
    from mcf_mm.search.study import Search, best_of

    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight.zero_()  # gives its bias, whatever is cut
        model.blocks[1].mlp.fc2.weight.mul_(3)
    shape = shape_of(model, 'macs=94%', ['hidden'])
    evaluate = Evaluator(model, images, Magnitude(), Seen({}), objective='divergence')
    url = default_storage(tmp_path)
    search = Search(url, 'mcf_mm', {}, shape.names, tmp_path)
    tried = search.run(12, lambda x: evaluate(shape.sizes(x)))
    best, alike = best_of(tried), tried[0]
    sizes = {name: own['hidden'] for name, own in shape.sizes(best.x).items()}
    assert sizes['blocks.0.mlp'] < sizes['blocks.1.mlp']
    assert alike.score < 0 and best.score > 0.3 * alike.score


@pytest.mark.parametrize(
    'more, message',
    [
        (dict(score='whole'), r"score must be one of \('cut', 'masked'\), got 'whole'"),
        (dict(objective='loss'), r"objective must be one of \('accuracy', 'divergence'\)"),
        (dict(compensation='sequential'), "search with 'least_squares', and prune with"),
        (dict(labels=None), "objective='accuracy' needs the class of each image"),
        (dict(labels=torch.tensor([0, 7])), 'go from 0 to 7, the network has the classes 0 to 4'),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(model, images, more, message):
    arguments = dict(labels=torch.zeros(32, dtype=torch.long)) | more
    with pytest.raises(ValueError, match=message):
        Evaluator(model, images, Magnitude(), Seen({}), **arguments)


def test_a_network_without_class_scores_is_refused(model, images):
    model.reset_classifier(0)
    with pytest.raises(ValueError, match='VisionTransformer has no classifier'):
        Evaluator(model, images, Magnitude(), Seen({}), objective='divergence')


@pytest.mark.parametrize('score', ['cut', 'masked'])
def test_tokens_are_dropped_for_a_trial_and_are_back_after_it(model, images, score):
    before = log_scores(model, images)
    classes = [type(block) for block in model.blocks]
    sizes = {'blocks.0': {'tokens': 9}, 'blocks.1': {'tokens': 5}, 'blocks.1.mlp': {'hidden': 30}}
    evaluate = Evaluator(model, images, Magnitude(), Seen({}), objective='divergence', score=score)
    first, second = evaluate(sizes), evaluate({'blocks.1.mlp': {'hidden': 30}})
    assert first != second and max(first, second) < 0
    assert evaluate(sizes) == first
    assert [type(block) for block in model.blocks] == classes
    assert torch.equal(log_scores(model, images), before)
    small = copy.deepcopy(model)
    prune(small, criterion='magnitude', sizes=sizes)
    wanted = -divergence(log_scores(small, images), before)
    assert first == pytest.approx(wanted, rel=1e-5)
