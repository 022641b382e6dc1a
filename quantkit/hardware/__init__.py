"""What the hardware can do in few bits, and what this machine has.

``support(gpu, format, runtime)`` is one cell of the table of GPUs; ``cpu_support`` is that of
processors; ``detect`` tells what this machine has. Nothing here imports PyTorch or an SDK, except
``detect`` where NVIDIA's own library (NVML) is missing.
"""

from quantkit.hardware.chips import CHIPS as CHIPS
from quantkit.hardware.chips import Chip as Chip
from quantkit.hardware.cpu_support import CpuRuntime as CpuRuntime
from quantkit.hardware.cpu_support import CpuSupport as CpuSupport
from quantkit.hardware.cpu_support import cpu_support as cpu_support
from quantkit.hardware.cpus import EXACT_INT8_FEATURES as EXACT_INT8_FEATURES
from quantkit.hardware.cpus import KINDS as KINDS
from quantkit.hardware.cpus import Cpu as Cpu
from quantkit.hardware.cpus import detect_cpu as detect_cpu
from quantkit.hardware.cpus import named_cpu as named_cpu
from quantkit.hardware.cpus import weight_bits as weight_bits
from quantkit.hardware.formats import Format as Format
from quantkit.hardware.formats import Runtime as Runtime
from quantkit.hardware.formats import Support as Support
from quantkit.hardware.formats import Verdict as Verdict
from quantkit.hardware.gpus import Gpu as Gpu
from quantkit.hardware.gpus import compute_capability as compute_capability
from quantkit.hardware.gpus import gpu_supports as gpu_supports
from quantkit.hardware.judging import lacking as lacking
from quantkit.hardware.judging import refusals as refusals
from quantkit.hardware.judging import runtime_of as runtime_of
from quantkit.hardware.machine import Device as Device
from quantkit.hardware.machine import Gpus as Gpus
from quantkit.hardware.machine import Machine as Machine
from quantkit.hardware.machine import detect as detect
from quantkit.hardware.machine import detect_gpus as detect_gpus
from quantkit.hardware.sources import Source as Source
from quantkit.hardware.table import support as support
