"""How far a network is from another one, by what their classifiers and blocks put out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcf_mm.pruning.find import find_ffns
from mcf_mm.pruning.units import FFN, Units


def logits_distance(seen: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of class scores, averaged over images.

    Args:
        seen: Scores of the student, ``(B, classes)``.
        wanted: Scores of the teacher, ``(B, classes)``.
        temperature: T, by which both are divided (Hinton et al., 2015). The caller multiplies by
            T^2. Defaults to 1.

    Returns:
        Nats, a scalar in single precision.
    """
    return F.kl_div(
        F.log_softmax(seen.float() / temperature, dim=-1),
        F.log_softmax(wanted.float() / temperature, dim=-1),
        reduction='batchmean',
        log_target=True,
    )


def blocks_distance(
    seen: Mapping[str, Tensor], wanted: Mapping[str, Tensor], centred: bool = False
) -> Tensor:
    """Mean squared distance of the blocks' outputs, relative to the teacher's size, over blocks.

    Pruning leaves the width of the residual stream as it is, so outputs compare directly. Where the
    student has dropped tokens, the first one is compared alone: the class token.

    Args:
        seen: Outputs of the student by name.
        wanted: Outputs of the teacher by name, each of the student's shape but for the tokens.
        centred: Divide by the variance of the teacher's output instead of its mean square. Defaults
            to False.

    Returns:
        A scalar in single precision; 0 for equal outputs.
    """
    distances = []
    for name, target in wanted.items():
        target = target.float()
        own = seen[name].float()
        if own.dim() == 3 and own.shape[1] != target.shape[1]:
            own, target = own[:, :1], target[:, :1]
        size = target.var() if centred else target.square().mean()
        distances.append(F.mse_loss(own, target) / size)
    return torch.stack(distances).mean()


def comparable(own: Tensor, wanted: Tensor, drops_tokens: bool) -> bool:
    """Whether a student's output can be compared; tokens may be missing where it drops some."""
    if drops_tokens and own.dim() == 3:
        own, wanted = own[:, :1], wanted[:, :1]
    return own.shape == wanted.shape


def check_token_outputs(units: Units, names: Iterable[str], argument: str) -> None:
    """Check that networks can be compared once tokens are dropped.

    Args:
        units: Units of the dense network or of the student.
        names: Units that are pruned.
        argument: Which argument asks for the comparison, for the error.

    Raises:
        ValueError: Nothing but detection tokens is read, and they are not compared yet.
    """
    for unit in units.tokens:
        if unit.name in names and unit.last:
            raise ValueError(
                f'{argument}: {unit.name} drops patches of a network with detection tokens, whose '
                'outputs cannot be compared with those of the dense one yet: leave it out, or '
                'the tokens'
            )


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record what modules put out while the context is open.

    Args:
        modules: The modules, by the names that their outputs get.

    Yields:
        The last output of each module that has run; of a tuple or a list, its first part.
    """
    outputs: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            outputs[name] = _first(output)

        return record

    handles = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def find_streams(model: nn.Module, run: Callable[[], Any]) -> dict[str, str]:
    """Find where the residual stream can be seen behind each FFN.

    mmcv's FFN adds the residual itself; the Mlp of timm and of Hugging Face does not, the block
    around it does. So the network runs once with each FFN silenced (its second linear layer gives
    zeros), and the place is the innermost module, from the FFN outwards, that still tells tokens
    apart: there the residual goes past the FFN. Its output must be a tensor, or a tuple or list
    that begins with one, with as many elements as the FFN's and the channels last or, of maps,
    second. Where there is no such module, the FFN itself is the place.

    Args:
        model: A network in evaluation mode.
        run: Runs ``model`` on one batch.

    Returns:
        Path of the module by name of the FFN, for those FFNs that have run.
    """
    modules = dict(model.named_modules())
    numbers: dict[str, int] = {}
    carries: dict[tuple[str, str], bool] = {}

    def silencer(ffn: FFN) -> Callable:
        def silence(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            numbers[ffn.name] = output.numel()
            return torch.zeros_like(output)

        return silence

    def looker(ffn: FFN, path: str) -> Callable:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            output = _first(output)
            is_stream = torch.is_tensor(output) and output.numel() == numbers.get(ffn.name)
            carries[ffn.name, path] = is_stream and _tells_tokens_apart(output, ffn.width)

        return look

    handles, paths = [], {}
    for ffn in find_ffns(model):
        handles.append(ffn.fc2.register_forward_hook(silencer(ffn)))
        parts = ffn.name.split('.')
        paths[ffn.name] = ['.'.join(parts[:end]) for end in range(len(parts), 0, -1)]
        for path in paths[ffn.name]:
            handles.append(modules[path].register_forward_hook(looker(ffn, path)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: next((path for path in paths[name] if carries.get((name, path))), name)
        for name in paths
        if name in numbers
    }


def _tells_tokens_apart(output: Tensor, width: int) -> bool:
    if output.dim() > 1 and output.shape[-1] != width and output.shape[1] == width:
        output = output.movedim(1, -1)
    if output.shape[-1] != width:
        return False
    tokens = output.reshape(-1, width)
    return bool((tokens != tokens[:1]).any())


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else output
