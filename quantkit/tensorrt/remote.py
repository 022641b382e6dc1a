"""A calibrator's feed in the process of the builder, while the data is in another one.

The process that has the data answers what is asked here. An answer is one line of JSON, and after
it the bytes of the arrays that it lists.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from quantkit.tensorrt.buffers import DeviceBuffers


@dataclass(frozen=True)
class Answer:
    """What comes back: plain values, and arrays by name.

    Example:
        >>> import io
        >>> sent = Answer({"more": True}, {"x": np.arange(3)}).bytes()
        >>> Answer.read(io.BytesIO(sent)).arrays["x"].tolist()
        [0, 1, 2]
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def bytes(self) -> bytes:
        """As it goes from one process to the other."""
        listed = [[name, array.dtype.str, array.shape] for name, array in self.arrays.items()]
        head = json.dumps({"values": dict(self.values), "arrays": listed}).encode()
        return b"".join([head, b"\n", *(array.tobytes() for array in self.arrays.values())])

    @classmethod
    def read(cls, stream: Any) -> Answer:
        """From a binary stream.

        Raises:
            EOFError: the other process is gone.
        """
        line = stream.readline()
        if not line:
            raise EOFError
        head = json.loads(line)
        arrays = {}
        for name, kind, shape in head["arrays"]:
            dtype = np.dtype(kind)
            data = bytearray(dtype.itemsize * int(np.prod(shape, dtype=np.int64)))
            if stream.readinto(data) != len(data):
                raise EOFError
            arrays[name] = np.frombuffer(data, dtype).reshape(shape)
        return cls(head["values"], arrays)


class Ask(Protocol):
    """Asks the process that has the data, and waits for its answer."""

    def __call__(self, what: str, **values: object) -> Answer:
        """Ask for ``what``: ``inputs``, ``batch`` or ``cache``."""


class RemoteFeed:
    """Answers one build's calls with what the other process says.

    The first error is kept, and nothing more is served or asked after it.

    Args:
        ask: asks the other process.
        batch_size: how many samples a batch holds.
        served: the cache to begin with.
        buffers: opens the memory on the device, when the first batch has come.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        batch_size: int,
        served: bytes | None,
        buffers: Callable[[], DeviceBuffers],
    ) -> None:
        self.batch_size: Final = batch_size
        self.error: BaseException | None = None
        self._ask = ask
        self._served = served
        self._open = buffers
        self._buffers: DeviceBuffers | None = None

    def next_batch(self, names: Sequence[str]) -> list[int] | None:
        """The address of each named input's next values; ``None`` at the end, or after an error."""
        if self.error is not None:
            return None
        try:
            answer = self._ask("batch", names=list(names))
            if not answer.arrays:
                return None
            if self._buffers is None:
                self._buffers = self._open()
            buffers = self._buffers
            # TensorRT has read the last batch when it asks for the next: they are filled again.
            return [buffers.put(name, answer.arrays[name]) for name in names]
        except BaseException as error:  # the binding would calibrate on with less
            self.error = error
            return None

    def read_cache(self) -> bytes | None:
        """The cache to use instead of data."""
        return None if self.error is not None else self._served

    def write_cache(self, text: bytes) -> None:
        """Hand over what TensorRT found."""
        if self.error is None:
            try:
                self._ask("cache", text=base64.b64encode(text).decode())
            except BaseException as error:
                self.error = error

    def close(self) -> None:
        """Free the device's memory."""
        if self._buffers is not None:
            self._buffers.close()
            self._buffers = None
