"""The module itself as the reference: its outputs and, through forward hooks, its layers' outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from ...compiler.errors import InputError
from ...compiler.program import Call, TensorSpec, Tree
from ...compiler.reference import Array, Arrays
from .capture import evaluation, quiet
from .trees import Arguments, result_leaves, to_numpy, to_tensor


class TorchReference:
    """Runs a torch module on named arrays; ``paths`` are the module paths whose outputs ``layers`` gives."""

    def __init__(
        self,
        module: Any,
        arguments: Arguments,
        inputs: Sequence[str],
        outputs: Sequence[str],
        paths: Sequence[str],
    ) -> None:
        import torch

        self.name = f"torch {torch.__version__.partition('+')[0]}"
        self._module = module
        self._arguments = arguments
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._paths = frozenset(paths)

    def over(self, module: Any) -> TorchReference:
        """The same calls of another ``module``."""
        return TorchReference(module, self._arguments, self._inputs, self._outputs, list(self._paths))

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        """Outputs of the module in evaluation mode. Raises: InputError if an input is missing."""
        leaves, _ = result_leaves(self._call(inputs))
        return dict(zip(self._outputs, map(to_numpy, leaves), strict=True))

    def layers(self, inputs: Mapping[str, Array]) -> Arrays:
        """First output tensor of every module in ``paths``; the second call of one is ``path@1``."""
        found: Arrays = {}
        calls: dict[str, int] = {}

        def hook(path: str) -> Callable[[Any, Any, Any], None]:
            def record(module: Any, args: Any, output: Any) -> None:
                count = calls[path] = calls.get(path, -1) + 1
                key = f"{path}@{count}" if count else path
                leaves, _ = result_leaves(output)
                if key in self._paths and leaves:
                    found[key] = to_numpy(leaves[0]).copy()

            return record

        with ExitStack() as hooks:
            for path, part in self._module.named_modules():
                if path:
                    hooks.callback(part.register_forward_hook(hook(path)).remove)
            self._call(inputs)
        return found

    def _call(self, inputs: Mapping[str, Array]) -> Any:
        import torch

        missing = [name for name in self._inputs if name not in inputs]
        if missing:
            raise InputError("reference", f"no input {', '.join(missing)}", f"give {', '.join(self._inputs)}")
        device = device_of(self._module)
        tensors = [to_tensor(inputs[name]).to(device) for name in self._inputs]
        args, kwargs = self._arguments.call(tensors)
        with evaluation(self._module), quiet(), torch.no_grad():
            return self._module(*args, **kwargs)


def device_of(module: Any) -> Any:
    """The device of the module's first parameter or buffer; the CPU if it has none."""
    import itertools

    import torch

    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def module_reference(
    module: Any, inputs: Sequence[TensorSpec], outputs: Sequence[str], call: Call, layers: Sequence[str]
) -> TorchReference:
    """``module`` as the reference of a known signature; arguments that are no tensors take their defaults.

    Raises: InputError if the module's ``forward`` does not take what ``call`` says.
    """
    import inspect

    import torch

    examples = {s.name: torch.zeros([d if isinstance(d, int) else 1 for d in s.shape or ()]) for s in inputs}
    given = {
        name: value for name, tree in call.parameters.items() if (value := _fill(tree, examples)) is not None
    }
    signature = inspect.signature(module.forward)
    starred = [p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL]
    args = given.pop(starred[0], ()) if starred else ()
    arguments = Arguments.bind(signature, args, given)
    order = {id(tensor): name for name, tensor in examples.items()}
    names = [order[id(tensor)] for tensor in arguments.tensors]
    return TorchReference(module, arguments, names, outputs, layers)


def _fill(tree: Tree, tensors: Mapping[str, Any]) -> Any:
    if tree is None or isinstance(tree, str):
        return None if tree is None else tensors[tree]
    if isinstance(tree, list):
        return [_fill(item, tensors) for item in tree]
    if "tuple" in tree:
        return tuple(_fill(item, tensors) for item in tree["tuple"])
    return {key: _fill(item, tensors) for key, item in tree["dict"].items()}
