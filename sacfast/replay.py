"""The replay buffer: a preallocated ring of transitions, on the host or on the GPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sacfast import collect
from sacfast.devices import with_index
from sacfast.memory import check_fits
from sacfast.scalars import as_int
from sacfast.types import ACTION_LIMIT, Batch, BoolArray, FloatArray

_FIELDS = ("observation", "action", "reward", "next_observation", "terminated")
_NUMPY_DTYPES = dict.fromkeys(_FIELDS, np.dtype(np.float32)) | {"terminated": np.dtype(np.bool_)}
_TORCH_DTYPES = dict.fromkeys(_FIELDS, torch.float32) | {"terminated": torch.bool}
_LARGEST = np.finfo(np.float32).max
_STATE = ("rows", "position", "capacity", "generator")

_Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


_LARGEST_DIM = 2**62
"""What the native layout of a row counts with: far beyond any memory."""


class ReplayBuffer:
    """The last `capacity` transitions, sampled uniformly with replacement.

    A transition is one row of one float32 tensor, `rows` [capacity, 2*O + A + 2]:
    observation | action | reward | next_observation | terminated. So a sampled transition is one contiguous
    read, and a minibatch is one gather.

    Threads may share it: `add`, `sample` and `draw` take turns. Who reads `rows` itself, as the fused learner
    does, must not do so while another thread adds.
    """

    def __init__(
        self,
        capacity: int,
        observation_dim: int,
        action_dim: int,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Reserve the memory.

        Args:
            capacity: transitions kept, >= 1.
            observation_dim: O, >= 1.
            action_dim: A, >= 1.
            device: where the rows live and the minibatches appear.
            seed: of the sampling, >= 0.

        Raises:
            TypeError: a number is not an int.
            ValueError: a number is out of range, or the rows do not fit in the device's free memory.
        """
        self.capacity = capacity = as_int("capacity", capacity, 1)
        self.observation_dim = observation_dim = as_int("observation_dim", observation_dim, 1)
        self.action_dim = action_dim = as_int("action_dim", action_dim, 1)
        seed = as_int("seed", seed, 0)
        for name, size in (("observation_dim", observation_dim), ("action_dim", action_dim)):
            if size > _LARGEST_DIM:
                raise ValueError(f"{name}: expected an int <= {_LARGEST_DIM}, got {size}")
        self.device = with_index(device)
        self._widths = collect.row_widths(observation_dim, action_dim)  # of the fields
        self._tails = ((observation_dim,), (action_dim,), (), (observation_dim,), ())  # of the fields' shapes
        width = sum(self._widths)
        check_fits(f"capacity: {capacity} transitions of {width} float32", capacity * width * 4, self.device)
        self.rows = torch.empty((capacity, width), dtype=torch.float32, device=self.device)
        self._columns = self._split(self.rows)
        # The same memory, as NumPy sees it: its assignments cost a fraction of torch's.
        on_host = self.device.type == "cpu"
        self._host_rows = self.rows.numpy() if on_host else None
        self._host_columns = tuple(column.numpy() for column in self._columns) if on_host else None
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self._turn = threading.RLock()  # `sample` draws
        self._position = 0
        self._size = 0

    def __len__(self) -> int:
        """Return the number of transitions held."""
        return self._size

    @property
    def position(self) -> int:
        """The row that the next transition takes."""
        return self._position

    def add(
        self,
        observation: FloatArray | torch.Tensor,
        action: FloatArray | torch.Tensor,
        reward: FloatArray | torch.Tensor,
        next_observation: FloatArray | torch.Tensor,
        terminated: BoolArray | torch.Tensor,
    ) -> None:
        """Store copies of N transitions, of which the oldest make room. N may be 0.

        The fields are NumPy arrays or tensors on the host, or all are tensors on this buffer's device; views of this
        buffer's own rows will do. The values of tensors on a GPU are not checked, for that would wait for the GPU.

        Args:
            observation: [N, O] float32, finite.
            action: [N, A] float32, in [-1, 1].
            reward: [N] float32, finite, unscaled.
            next_observation: [N, O] float32, finite.
            terminated: [N] bool.

        Raises:
            TypeError: a field has another type or dtype.
            ValueError: a field has another shape, device or value, or N exceeds the capacity. Nothing is stored.
        """
        fields = (observation, action, reward, next_observation, terminated)
        with self._turn:
            count = -1
            if self._host_rows is not None:
                count = collect.write_rows(self._host_rows, self._position, *fields, ACTION_LIMIT)
            if count < 0:
                count = self._check(fields)
                if self._host_columns is not None:
                    self._write_host(self._host_columns, _host_arrays(fields), count)
                else:
                    self._write_device(fields, count)
            self._position = (self._position + count) % self.capacity
            self._size = min(self._size + count, self.capacity)

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` of the transitions held, uniformly and with replacement.

        The fields are views of one fresh tensor [batch_size, 2*O + A + 2].

        Raises:
            TypeError: `batch_size` is not an int.
            ValueError: `batch_size` < 1.
            RuntimeError: the buffer is empty.
        """
        batch_size = as_int("batch_size", batch_size, 1)
        with self._turn:
            return Batch(*self._split(self.rows.index_select(0, self.draw(batch_size))))

    def draw(self, count: int) -> torch.Tensor:
        """Draw the numbers of `count` rows [count] int64, as `sample` does.

        Raises:
            TypeError: `count` is not an int.
            ValueError: `count` < 1.
            RuntimeError: the buffer is empty.
        """
        count = as_int("count", count, 1)
        with self._turn:
            if self._size == 0:
                raise RuntimeError("the replay buffer is empty, add transitions first")
            return torch.randint(self._size, (count,), generator=self._generator, device=self.device)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all that an exact resume needs.

        `rows` [len, 2*O + A + 2] is a view: save or clone it before the next `add`.
        """
        return {
            "rows": self.rows[: self._size],
            "position": torch.tensor(self._position),
            "capacity": torch.tensor(self.capacity),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over the state of a buffer of the same sizes and kind of device: later samples are the same.

        Raises:
            ValueError: an entry is missing, unknown, or does not fit; this buffer is then unchanged.
        """
        if set(state) != set(_STATE):
            missing, unknown = sorted(set(_STATE) - set(state)), sorted(set(state) - set(_STATE))
            raise ValueError(f"state: expected entries {_STATE}, missing {missing}, unknown {unknown}")
        for name in ("capacity", "position"):
            if state[name].dtype != torch.int64 or state[name].ndim:
                raise ValueError(f"{name}: expected one int64, got {tuple(state[name].shape)} {state[name].dtype}")
        rows, capacity, position = state["rows"], int(state["capacity"]), int(state["position"])
        width = self.rows.shape[1]
        if capacity != self.capacity:
            raise ValueError(f"capacity: expected {self.capacity}, got {capacity}")
        if rows.dtype != torch.float32 or rows.ndim != 2 or rows.shape[1] != width or len(rows) > capacity:
            expected = f"at most {capacity} rows of {width} float32"
            raise ValueError(f"rows: expected {expected}, got {tuple(rows.shape)} {rows.dtype}")
        size = len(rows)
        if not (position == size < capacity or (size == capacity and 0 <= position < capacity)):
            raise ValueError(f"position: expected the end of {size} rows of {capacity}, got {position}")
        try:
            self._generator.set_state(state["generator"].cpu())
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"generator: expected a generator's state on {self.device.type}: {error}") from error
        self.rows[:size] = rows
        self._position, self._size = position, size

    def _check(self, fields: tuple[Any, ...]) -> int:
        """Return N, the number of rows of every field."""
        for name, field in zip(_FIELDS, fields, strict=True):
            if isinstance(field, np.ndarray):
                expected: Any = _NUMPY_DTYPES[name]
            elif isinstance(field, torch.Tensor):
                expected = _TORCH_DTYPES[name]
            else:
                raise TypeError(f"{name}: expected a NumPy array or tensor, got {type(field).__name__}")
            if field.dtype != expected:
                raise TypeError(f"{name}: expected dtype {expected}, got {field.dtype}")
        count = len(fields[0]) if fields[0].ndim else 0
        for name, field, tail in zip(_FIELDS, fields, self._tails, strict=True):
            if field.shape != (count, *tail):
                raise ValueError(f"{name}: expected shape {(count, *tail)}, got {tuple(field.shape)}")
        if count > self.capacity:
            raise ValueError(f"observation: expected at most capacity = {self.capacity} rows, got {count}")
        return count

    def _pieces(self, count: int) -> tuple[tuple[slice, slice], ...]:
        """Return where in the ring which of `count` rows go: one piece, or two around the end."""
        stop = self._position + count
        if stop <= self.capacity:
            return ((slice(self._position, stop), slice(0, count)),)
        head = self.capacity - self._position
        return (
            (slice(self._position, self.capacity), slice(0, head)),
            (slice(0, stop - self.capacity), slice(head, count)),
        )

    def _write_host(self, columns: tuple[_Array, ...], fields: tuple[_Array, ...], count: int) -> None:
        if any(field.base is not None and np.may_share_memory(field, self._host_rows) for field in fields):
            fields = tuple(field.copy() for field in fields)  # a row must be read before it is overwritten
        for target, source in self._pieces(count):
            for column, field in zip(columns, fields, strict=True):
                column[target] = field[source]

    def _write_device(self, fields: tuple[Any, ...], count: int) -> None:
        if all(isinstance(field, torch.Tensor) and field.device == self.rows.device for field in fields):
            own = self.rows.untyped_storage().data_ptr()
            shared = any(field.untyped_storage().data_ptr() == own for field in fields)
            columns, sources = self._columns, tuple(field.clone() for field in fields) if shared else fields
        else:
            # Five short transfers cost more than one: the rows are put together on the host first. The pinned
            # memory goes back to its allocator here, which keeps it from reuse until the transfer is done.
            packed = torch.empty((count, self.rows.shape[1]), dtype=torch.float32, pin_memory=True)
            for column, field in zip(self._split(packed), _host_arrays(fields), strict=True):
                column.numpy()[:] = field
            columns, sources = (self.rows,), (packed,)
        for target, source in self._pieces(count):
            for column, field in zip(columns, sources, strict=True):
                column[target].copy_(field[source], non_blocking=True)

    def _split(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the five fields of `rows` [N, 2*O + A + 2] as views."""
        observation, action, reward, next_observation, terminated = rows.split_with_sizes(self._widths, 1)
        return observation, action, reward.squeeze(1), next_observation, terminated.squeeze(1)


def _host_arrays(fields: tuple[Any, ...]) -> tuple[_Array, ...]:
    """Return the fields as NumPy arrays, without copies; refuse values that no transition has."""
    arrays = tuple(_host_array(name, field) for name, field in zip(_FIELDS, fields, strict=True))
    for name, array in zip(_FIELDS[:-1], arrays, strict=False):  # a bool is neither NaN nor too large
        limit, expected = (ACTION_LIMIT, "values in [-1, 1]") if name == "action" else (_LARGEST, "finite values")
        wrong = ~(np.abs(array) <= limit)  # NaN compares false
        if wrong.any():
            place = np.argwhere(wrong)[0]
            raise ValueError(f"{name}: expected {expected}, got {array[tuple(place)]} in row {place[0]}")
    return arrays


def _host_array(name: str, field: Any) -> _Array:
    if isinstance(field, np.ndarray):
        return field
    if field.device.type != "cpu":
        raise ValueError(f"{name}: expected all fields on the host or on the buffer's device, got {field.device}")
    array: _Array = field.detach().numpy()
    return array
