"""A training step's losses and gradients as a CUDA graph: captured once, then replayed by a single launch.

A step is some two hundred launches, which take Python 15 ms; at few rays the device is done in a fifth of that.
"""

from __future__ import annotations

from typing import Callable, Hashable, List, Optional, Sequence, Tuple, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


class GraphedStep:
    """Replays a computation that leaves gradients in some parameters.

    What the computation reads must stay in the same memory, as tensors do that are written in place. Parameters that
    have moved are noticed, and it is captured anew. Random numbers are drawn anew by every replay. Its result is the
    same tensors every time, with new values in them; what was not computed on the device stays as it was captured.

    Args:
        parameters: those that may receive gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._tables = [parameter for parameter in self.parameters if hasattr(parameter, "table_state")]
        self._graph: Optional[torch.cuda.CUDAGraph] = None
        self._key: Optional[Hashable] = None
        self._addresses: List[int] = []
        self._result: object = None
        self._gradients: List[Tuple[nn.Parameter, Optional[Tensor]]] = []

    def __call__(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """The computation's result; the gradients are then those of the parameters.

        Args:
            key: of everything about the computation that is not in tensors: another one captures anew.
            compute: the computation, backward pass included. The result must not hold on to autograd's graph.
        Raises:
            RuntimeError: if the computation does something that cannot be captured, such as waiting for the device.
        """
        if self._graph is None or key != self._key or self._addresses != self._find_addresses():
            self._capture(key, compute)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._result

    def forget(self) -> None:
        """Gives the graph and its memory back."""
        self._graph, self._key, self._result, self._gradients, self._addresses = None, None, None, [], []

    def has_current_tables(self) -> bool:
        """Whether what the look-ups keep of every hash table is of its present values.

        The optimiser leaves it so. A checkpoint that was loaded since has not: a replay would read what is kept of the
        values before, and only Python, which it does without, would notice.
        """
        return all(table.table_state.is_current(table) for table in self._tables)

    def _find_addresses(self) -> List[int]:
        return [parameter.data_ptr() for parameter in self.parameters]

    def _capture(self, key: Hashable, compute: Callable[[], Result]) -> None:
        self.forget()
        for parameter in self.parameters:
            parameter.grad = None
        # What eager steps have left in torch's cache is of no use to the graph, which has memory of its own.
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on to use the device: the viewer's, and those that pin memory.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = compute()
        self._graph, self._key, self._result, self._addresses = graph, key, result, self._find_addresses()
        self._gradients = [(parameter, parameter.grad) for parameter in self.parameters]
