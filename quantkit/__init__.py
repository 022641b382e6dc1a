"""Quantize trained PyTorch models and prove the result up to the INT8 TensorRT engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

#: Where each public name lives. It is imported when it is first used: PyTorch takes seconds, and
#: ``quantkit --help`` needs none of it.
_HOMES = {
    "BenchReport": "benching.report",
    "BlockRounding": "interfaces",
    "Budget": "analysis.mixed",
    "CalibrationCache": "tensorrt.cache",
    "Calibrator": "interfaces",
    "CalibratorComparison": "analysis.calibrators",
    "CaptureError": "errors",
    "CheckReport": "checking",
    "Checkpoint": "calibrating",
    "DataError": "errors",
    "DataPass": "interfaces",
    "DataSpec": "data",
    "DeQuantStub": "stubs",
    "ExportError": "errors",
    "FakeQuantize": "fake_quantize",
    "Finding": "interfaces",
    "FineTuning": "qat.finetuning",
    "HalfReport": "onnx.half",
    "Inspection": "interfaces",
    "LayerCoverage": "interfaces",
    "LayerParity": "layer_parity",
    "LayerRounding": "interfaces",
    "Migration": "migrating",
    "MissingDependencyError": "errors",
    "ModelFileError": "errors",
    "ModelPass": "interfaces",
    "Observer": "observer",
    "OutputParity": "onnx.parity",
    "Pass": "interfaces",
    "Placement": "graph.plan",
    "ProfileReport": "profiling.report",
    "QParams": "numerics",
    "QuantSpec": "spec",
    "QuantStub": "stubs",
    "QuantizedModel": "model",
    "QuantizedOnnx": "onnx.quantized",
    "QuantkitError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Recovery": "recovering.report",
    "Report": "reporting.values",
    "Rounding": "interfaces",
    "Schedule": "qat.switches",
    "Scheme": "spec",
    "Sensitivity": "analysis.losses",
    "Severity": "interfaces",
    "SupportReport": "inspecting",
    "Target": "interfaces",
    "TargetError": "errors",
    "TargetParity": "comparing",
    "TensorParity": "layer_parity",
    "TrainingChoice": "training_choice",
    "TrainingError": "errors",
    "advise": "analysis.advice",
    "bench": "benching.bench",
    "build": "building",
    "cache_of": "migrating",
    "calibrate": "model_calibration",
    "check": "checking",
    "compare_calibrators": "analysis.calibrators",
    "compare_layers": "layer_parity",
    "compare_target": "comparing",
    "correct": "workflow",
    "diagnose": "analysis.diagnosis",
    "export_onnx": "onnx.export",
    "export_pt2": "program.writing",
    "finetune": "qat.finetuning",
    "float_twin": "layer_parity",
    "freeze_batch_norm": "qat.switches",
    "freeze_observers": "qat.switches",
    "from_torch_ao": "torch_ao",
    "inspect": "inspecting",
    "load_data_spec": "data",
    "migrate": "migrating",
    "mix": "analysis.mixed",
    "prepare": "workflow",
    "profile": "profiling.profile",
    "quantize": "workflow",
    "quantize_onnx": "workflow_onnx",
    "read_cache": "tensorrt.cache",
    "read_recipe": "recipe",
    "record_cache": "tensorrt.record",
    "recover": "recovering.recover",
    "report": "reporting.report",
    "restore": "restoring",
    "round_weights": "workflow",
    "sensitivity": "analysis.sensitivity",
    "settle": "settling",
    "to_half": "onnx.half",
    "train_quantizers": "qat.switches",
    "write_cache": "tensorrt.cache",
}

if TYPE_CHECKING:
    from quantkit.analysis.advice import advise as advise
    from quantkit.analysis.calibrators import CalibratorComparison as CalibratorComparison
    from quantkit.analysis.calibrators import compare_calibrators as compare_calibrators
    from quantkit.analysis.diagnosis import diagnose as diagnose
    from quantkit.analysis.losses import Sensitivity as Sensitivity
    from quantkit.analysis.mixed import Budget as Budget
    from quantkit.analysis.mixed import mix as mix
    from quantkit.analysis.sensitivity import sensitivity as sensitivity
    from quantkit.benching.bench import bench as bench
    from quantkit.benching.report import BenchReport as BenchReport
    from quantkit.building import build as build
    from quantkit.calibrating import Checkpoint as Checkpoint
    from quantkit.checking import CheckReport as CheckReport
    from quantkit.checking import check as check
    from quantkit.comparing import TargetParity as TargetParity
    from quantkit.comparing import compare_target as compare_target
    from quantkit.data import DataSpec as DataSpec
    from quantkit.data import load_data_spec as load_data_spec
    from quantkit.errors import CaptureError as CaptureError
    from quantkit.errors import DataError as DataError
    from quantkit.errors import ExportError as ExportError
    from quantkit.errors import MissingDependencyError as MissingDependencyError
    from quantkit.errors import ModelFileError as ModelFileError
    from quantkit.errors import QuantkitError as QuantkitError
    from quantkit.errors import RecipeError as RecipeError
    from quantkit.errors import TargetError as TargetError
    from quantkit.errors import TrainingError as TrainingError
    from quantkit.fake_quantize import FakeQuantize as FakeQuantize
    from quantkit.graph.plan import Placement as Placement
    from quantkit.inspecting import SupportReport as SupportReport
    from quantkit.inspecting import inspect as inspect
    from quantkit.interfaces import BlockRounding as BlockRounding
    from quantkit.interfaces import Calibrator as Calibrator
    from quantkit.interfaces import DataPass as DataPass
    from quantkit.interfaces import Finding as Finding
    from quantkit.interfaces import Inspection as Inspection
    from quantkit.interfaces import LayerCoverage as LayerCoverage
    from quantkit.interfaces import LayerRounding as LayerRounding
    from quantkit.interfaces import ModelPass as ModelPass
    from quantkit.interfaces import Pass as Pass
    from quantkit.interfaces import Rounding as Rounding
    from quantkit.interfaces import Severity as Severity
    from quantkit.interfaces import Target as Target
    from quantkit.layer_parity import LayerParity as LayerParity
    from quantkit.layer_parity import TensorParity as TensorParity
    from quantkit.layer_parity import compare_layers as compare_layers
    from quantkit.layer_parity import float_twin as float_twin
    from quantkit.migrating import Migration as Migration
    from quantkit.migrating import cache_of as cache_of
    from quantkit.migrating import migrate as migrate
    from quantkit.model import QuantizedModel as QuantizedModel
    from quantkit.model_calibration import calibrate as calibrate
    from quantkit.numerics import QParams as QParams
    from quantkit.observer import Observer as Observer
    from quantkit.onnx.export import export_onnx as export_onnx
    from quantkit.onnx.half import HalfReport as HalfReport
    from quantkit.onnx.half import to_half as to_half
    from quantkit.onnx.parity import OutputParity as OutputParity
    from quantkit.onnx.quantized import QuantizedOnnx as QuantizedOnnx
    from quantkit.profiling.profile import profile as profile
    from quantkit.profiling.report import ProfileReport as ProfileReport
    from quantkit.program.writing import export_pt2 as export_pt2
    from quantkit.qat.finetuning import FineTuning as FineTuning
    from quantkit.qat.finetuning import finetune as finetune
    from quantkit.qat.switches import Schedule as Schedule
    from quantkit.qat.switches import freeze_batch_norm as freeze_batch_norm
    from quantkit.qat.switches import freeze_observers as freeze_observers
    from quantkit.qat.switches import train_quantizers as train_quantizers
    from quantkit.recipe import Recipe as Recipe
    from quantkit.recipe import read_recipe as read_recipe
    from quantkit.recovering.recover import recover as recover
    from quantkit.recovering.report import Recovery as Recovery
    from quantkit.reporting.report import report as report
    from quantkit.reporting.values import Report as Report
    from quantkit.restoring import restore as restore
    from quantkit.settling import settle as settle
    from quantkit.spec import QuantSpec as QuantSpec
    from quantkit.spec import Scheme as Scheme
    from quantkit.stubs import DeQuantStub as DeQuantStub
    from quantkit.stubs import QuantStub as QuantStub
    from quantkit.tensorrt.cache import CalibrationCache as CalibrationCache
    from quantkit.tensorrt.cache import read_cache as read_cache
    from quantkit.tensorrt.cache import write_cache as write_cache
    from quantkit.tensorrt.record import record_cache as record_cache
    from quantkit.torch_ao import from_torch_ao as from_torch_ao
    from quantkit.training_choice import TrainingChoice as TrainingChoice
    from quantkit.workflow import correct as correct
    from quantkit.workflow import prepare as prepare
    from quantkit.workflow import quantize as quantize
    from quantkit.workflow import round_weights as round_weights
    from quantkit.workflow_onnx import quantize_onnx as quantize_onnx
else:
    # Hidden from type checkers: they would take every name to be there.
    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
