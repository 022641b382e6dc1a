"""The part of a build that only a calibrated one has, in the process of the builder."""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING, Any

from quantkit.tensorrt import buffers
from quantkit.tensorrt.calibrator import make_calibrator
from quantkit.tensorrt.remote import Ask, RemoteFeed

if TYPE_CHECKING:
    import tensorrt as api

    from quantkit.targets._engine_request import Calibrator


def calibrated(
    trt: Any,
    builder: api.Builder,
    network: api.INetworkDefinition,
    config: api.IBuilderConfig,
    calibrator: Calibrator,
    ask: Ask,
) -> tuple[api.IHostMemory | None, BaseException | None]:
    """The serialized network, or what went wrong while its data was served.

    ``None`` and no error: the builder refuses it.
    """
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    inputs = [[t.name, list(t.shape), t.dtype.name] for t in tensors]
    told = ask("inputs", inputs=inputs).values
    profile = builder.create_optimization_profile()
    dynamic = [tensor.name for tensor in tensors if min(tensor.shape, default=0) < 0]
    for name in dynamic:
        shape = tuple(told["shapes"][name])
        profile.set_shape(name, shape, shape, shape)
    if dynamic:
        config.set_calibration_profile(profile)
    feed = RemoteFeed(
        ask,
        batch_size=told["batch_size"],
        served=None if told["served"] is None else base64.b64decode(told["served"]),
        buffers=partial(buffers.open_buffers, calibrator.buffers),
    )
    made = make_calibrator(getattr(trt, calibrator.base), feed)
    config.int8_calibrator = made  # the builder keeps a pointer: `made` outlives it
    try:
        engine = builder.build_serialized_network(network, config)
    finally:
        feed.close()
    return (engine, None) if feed.error is None else (None, feed.error)
