"""Looking at what layers are given while a model runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from torch import Tensor, nn

K = TypeVar("K")


@contextmanager
def inputs_watched(modules: Mapping[K, nn.Module], look: Callable[[K, Tensor], None]) -> Iterator[None]:
    """Within: `look(key, input)` each time that one of the modules is called, before it runs."""

    def hook(key: K) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: look(key, inputs[0])

    with ExitStack() as hooks:
        for key, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(hook(key)).remove)
        yield
