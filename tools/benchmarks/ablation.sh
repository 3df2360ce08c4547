#!/usr/bin/env bash
# Table 3 of the paper on DeiT-Tiny: one shot on the ImageNet photos, and after equal short training
# on the Tiny-ImageNet subset. Needs what tools/prepare_real_data.py makes. Every step that is
# complete is skipped, a training goes on where it was.
#
#   bash tools/benchmarks/ablation.sh   # results: work_dirs/ablation/*.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=work_dirs/ablation
python=.venv/bin/python
declare -A steps=(
    [crs]='--last-step crs'
    [mcf]=''
    [direct]='--method magnitude'
    [mcf-least-squares]='--compensation least_squares'
    [fis]='--last-step fis'
)
# fis and crs leave zeros in a network of full size, which its config holds in training.
declare -A stems=([fis]=masked [crs]=masked [mcf]=slim [direct]=slim [mcf-least-squares]=slim)
mkdir -p "$out"

# Writes the last top-1 of the log; the file is there only when it is whole.
keep() {
    grep -o 'accuracy/top1: [0-9.]*' "$out/log" | tail -1 > "$1.part"
    mv "$1.part" "$1"
}

photos=configs/experiments/deit-tiny_imagenet-samples.py
report='--cfg-options test_dataloader.dataset.ann_file=report.txt'
for name in fis crs mcf direct; do
    [[ -f $out/$name-photos.txt ]] && continue
    # shellcheck disable=SC2086
    $python tools/prune.py $photos checkpoints/deit_tiny_in1k.safetensors --num-images 500 \
        --ratio 0.4 ${steps[$name]} --out "$out/$name-photos"
    stem=$out/$name-photos/${stems[$name]}
    # shellcheck disable=SC2086
    $python tools/test.py "$stem.py" "$stem.safetensors" $report \
        --work-dir "$out/$name-photos/test" | tee "$out/log"
    keep "$out/$name-photos.txt"
done

tiny=configs/experiments/deit-tiny_2cpu-8e_tiny-imagenet.py
dense=checkpoints/deit_tiny_tiny-imagenet.safetensors
for name in dense crs mcf direct mcf-least-squares; do
    [[ -f $out/$name-tiny.txt ]] && continue
    config=$tiny
    if [[ $name != dense ]]; then
        config=$out/$name-tiny/${stems[$name]}.py
        # shellcheck disable=SC2086
        [[ -f $config ]] ||
            $python tools/prune.py $tiny $dense --ratio 0.4 ${steps[$name]} --out "$out/$name-tiny"
    fi
    $python tools/train.py "$config" --resume --work-dir "$out/$name-tiny/train" | tee "$out/log"
    keep "$out/$name-tiny.txt"
done
head "$out"/*.txt
