"""What three methods leave at equal parameters, by kind: DeiT-S, Swin-T and YOLOS-S.

SiDT at 20 % and 40 % of q/k, value channels and hidden units says how many parameters; MCF (inputs
and hidden units) and the multi-dimensional method (heads and hidden units, and tokens, which have
no parameters) are cut to as many. Every layer drops the same share. Arithmetic alone, no weights
and no data; the table in configs/sidt/README.md is written by ``tables.py`` beside this file.

    python tools/benchmarks/same_parameters.py
"""

from pathlib import Path

from tables import table, write_results

import mcf_mm  # noqa: F401  installs the stand-in for mmcv's operators
from mcf_mm.analysis.complexity import resized
from mcf_mm.analysis.complexity_by_kind import complexity_by_kind
from mcf_mm.engine.config import input_shape, read_config
from mcf_mm.engine.networks import build_model, model_costs
from mcf_mm.pruning import find_units, uniform, within_budget

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'configs/sidt/results/same_parameters.json'
NETWORKS = {
    'DeiT-S': 'sidt_deit-small_8xb128_in1k.py',
    'Swin-T': 'sidt_swin-tiny_16xb64_in1k.py',
    'YOLOS-S': 'yolos_sidt-deit-small_8xb1-150e_coco.py',
}
SIDT = ('qk', 'v', 'hidden')
#: Kinds by method; the second is cut to the parameters of SiDT.
OTHERS = {
    'MCF': ('inputs', 'hidden'),
    'multi-dimensional': ('heads', 'hidden'),
}
TOKENS = 'multi-dimensional with tokens'


def main() -> None:
    results = {}
    for network, config in NETWORKS.items():
        cfg = read_config(str(ROOT / 'configs/sidt' / config))
        model, shape = build_model(cfg), input_shape(cfg)
        units, costs = find_units(model), model_costs(model, shape)
        rows = {'dense': {}}
        for rate in (0.2, 0.4):
            sizes = uniform(units, dict.fromkeys(SIDT, rate))
            rows[f'SiDT, {rate:.0%}'] = sizes
            budget = f'params={costs.of(sizes)["params"]}'
            for method, kinds in OTHERS.items():
                rows[f'{method}, {rate:.0%}'] = within_budget(units, costs, budget, kinds)
            if units.tokens:
                fewer = rows[f'multi-dimensional, {rate:.0%}']
                rows[f'{TOKENS}, {rate:.0%}'] = {
                    **fewer, **uniform(units, dict(tokens=rate)),
                }  # fmt: skip
        for name, sizes in rows.items():
            cost = complexity_by_kind(resized(model, sizes), shape)
            results[f'{network} | {name}'] = cost.to_dict()
            print(f'{network}, {name}: {cost.params / 1e6:.3f} M, {cost.macs / 1e9:.3f} GMACs')
    write_results(RESULTS, results)  # all of them or none
    print(table(results))


if __name__ == '__main__':
    main()
