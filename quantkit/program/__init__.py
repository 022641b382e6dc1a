"""Quantized models as programs of ``torch.export`` with Q/DQ in them (``.pt2``)."""
