"""What a build sets, by the SDK's own names, so that whoever builds need not know its versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

#: GPUs that an engine runs on beside those like the one that it was built on: Ampere and later,
#: or all of one compute capability.
HardwareCompatibility = Literal["ampere_plus", "same_compute_capability"]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a user may choose of a build, apart from its shapes.

    Attributes:
        workspace: the most GPU memory that one layer may use, in bytes; all of it by default.
        optimization_level: from 0 (built fast) to 5 (built slowly); 3 by default.
        version_compatible: whether later versions of TensorRT may load the engine.
        hardware_compatible: which other GPUs may run it.

    Raises:
        ValueError: a value is none of these.
    """

    workspace: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: HardwareCompatibility | None = None

    def __post_init__(self) -> None:
        if self.workspace is not None and self.workspace < 1:
            raise ValueError(f"workspace must be 1 byte or more, got {self.workspace}")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ValueError(
                f"optimization_level must be from 0 to 5, got {self.optimization_level}"
            )
        known = get_args(HardwareCompatibility)
        if self.hardware_compatible not in (None, *known):
            raise ValueError(
                f"hardware_compatible must be {' or '.join(known)}, got "
                f"{self.hardware_compatible!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one build.

    Attributes:
        network_flags: members of ``NetworkDefinitionCreationFlag``.
        builder_flags: members of ``BuilderFlag``.
        pools: members of ``MemoryPoolType``, and their limits in bytes.
        numbers: attributes of the config that are numbers.
        choices: attributes of the config that are members of an enum: its name and the member's.
        compute_capability: the member to build for, where the SDK builds for other GPUs.

    Example:
        >>> Settings.of(Settings(pools={"WORKSPACE": 1024}).plain()).pools
        {'WORKSPACE': 1024}
    """

    network_flags: tuple[str, ...] = ()
    builder_flags: tuple[str, ...] = ()
    pools: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    compute_capability: str | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Settings:
        """From JSON."""
        return cls(
            network_flags=tuple(plain["network_flags"]),
            builder_flags=tuple(plain["builder_flags"]),
            pools=dict(plain["pools"]),
            numbers=dict(plain["numbers"]),
            choices={name: (kind, value) for name, (kind, value) in plain["choices"].items()},
            compute_capability=plain["compute_capability"],
        )

    def network_bits(self, trt: Any) -> int:
        """The flags as ``create_network`` takes them."""
        kind = trt.NetworkDefinitionCreationFlag
        return sum(1 << int(getattr(kind, name)) for name in self.network_flags)

    def apply(self, trt: Any, config: Any) -> None:
        """Set all of it on a builder's config."""
        if self.compute_capability is not None:
            config.num_compute_capabilities = 1
            chosen = getattr(trt.ComputeCapability, self.compute_capability)
            config.set_compute_capability(chosen, 0)
        for name in self.builder_flags:
            config.set_flag(getattr(trt.BuilderFlag, name))
        for name, size in self.pools.items():
            config.set_memory_pool_limit(getattr(trt.MemoryPoolType, name), size)
        for name, number in self.numbers.items():
            setattr(config, name, number)
        for name, (kind, member) in self.choices.items():
            setattr(config, name, getattr(getattr(trt, kind), member))


#: Without it the SDK tells names of layers alone, and neither their formats nor their ONNX nodes.
DETAILED: dict[str, tuple[str, str]] = {"profiling_verbosity": ("ProfilingVerbosity", "DETAILED")}
