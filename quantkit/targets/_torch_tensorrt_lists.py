"""The operators that Torch-TensorRT 2.13.0 converts, read from the registries of its wheel.

A name in the first list has a converter, though some of them refuse some arguments. Before it looks
them up, Torch-TensorRT decomposes a graph: most operators that PyTorch decomposes, but not those of
the second list, and those of the third besides.
"""

from __future__ import annotations

#: The version whose lists these are.
VERSION = "2.13.0"

_CONVERTED = """
_operator.add _operator.eq _operator.floordiv _operator.getitem _operator.mod _operator.mul
_operator.neg _operator.pow _operator.sub _operator.truediv aten._adaptive_avg_pool2d.default
aten._adaptive_avg_pool3d.default aten._cdist_forward.default aten._embedding_bag.default
aten._native_batch_norm_legit.no_stats aten._native_batch_norm_legit_no_training.default
aten._pad_circular.default aten._pdist_forward.default aten._prelu_kernel.default
aten._reshape_copy.default aten._scaled_dot_product_cudnn_attention.default
aten._scaled_dot_product_efficient_attention.default
aten._scaled_dot_product_flash_attention.default aten._softmax.default aten._to_copy.default
aten.abs.default aten.acos.default aten.acosh.default aten.adaptive_avg_pool1d.default
aten.adaptive_avg_pool2d.default aten.adaptive_avg_pool3d.default aten.add.Scalar aten.add.Tensor
aten.addmm.default aten.amax.default aten.amin.default aten.any.default aten.any.dim aten.any.dims
aten.arange.start_step aten.argmax.default aten.argmin.default aten.as_strided.default
aten.asin.default aten.asinh.default aten.atan.default aten.atan2.default aten.atan2.out
aten.atanh.default aten.avg_pool1d.default aten.avg_pool2d.default aten.avg_pool3d.default
aten.batch_norm aten.batch_norm.default aten.bitwise_and.Scalar aten.bitwise_and.Scalar_Tensor
aten.bitwise_and.Tensor aten.bitwise_not.default aten.bitwise_or.Scalar
aten.bitwise_or.Scalar_Tensor aten.bitwise_or.Tensor aten.bitwise_xor.Scalar
aten.bitwise_xor.Scalar_Tensor aten.bitwise_xor.Tensor aten.bmm.default aten.cat.default
aten.ceil.default aten.clamp.Tensor aten.clamp.default aten.clip.Tensor aten.clip.default
aten.clone.default aten.constant_pad_nd.default aten.convolution.default aten.copy.default
aten.cos.default aten.cosh.default aten.cumsum.default aten.detach.default aten.diagonal.default
aten.div.Scalar aten.div.Scalar_mode aten.div.Tensor aten.div.Tensor_mode aten.dot.default
aten.elu.default aten.embedding.default aten.embedding_bag.default aten.empty.memory_format
aten.eq.Scalar aten.eq.Tensor aten.erf.default aten.exp.default aten.expand.default
aten.expm1.default aten.flip.default aten.floor.default aten.floor_divide.Scalar
aten.floor_divide.default aten.fmod.Scalar aten.fmod.Tensor aten.full.default aten.gather.default
aten.ge.Scalar aten.ge.Tensor aten.gelu.default aten.grid_sampler aten.grid_sampler.default
aten.grid_sampler_2d aten.grid_sampler_2d.default aten.gt.Scalar aten.gt.Tensor
aten.hardsigmoid.default aten.hardtanh.default aten.index.Tensor aten.index_put.default
aten.index_select.default aten.isinf.default aten.isnan.default aten.le.Scalar aten.le.Tensor
aten.leaky_relu.default aten.linear.default aten.log.default aten.log10.default aten.log1p.default
aten.log2.default aten.logical_and.default aten.logical_not.default aten.logical_or.default
aten.logical_xor.default aten.lt.Scalar aten.lt.Tensor aten.matmul aten.matmul.default
aten.max.default aten.max.dim aten.max_pool1d.default aten.max_pool2d.default
aten.max_pool3d.default aten.maximum.default aten.mean.default aten.mean.dim aten.min.default
aten.min.dim aten.minimum.default aten.mm.default aten.mul.Scalar aten.mul.Tensor aten.mv.default
aten.native_batch_norm.default aten.native_dropout.default aten.native_group_norm.default
aten.native_layer_norm.default aten.ne.Scalar aten.ne.Tensor aten.neg.default aten.nonzero.default
aten.pad.default aten.permute.default aten.pixel_shuffle.default aten.pixel_unshuffle.default
aten.pow.Scalar aten.pow.Tensor_Scalar aten.pow.Tensor_Tensor aten.prod.default aten.prod.dim_int
aten.rand.default aten.randn.default aten.randperm.default aten.reciprocal.default
aten.reflection_pad1d.default aten.reflection_pad2d.default aten.reflection_pad3d.default
aten.relu.default aten.remainder.Scalar aten.remainder.Tensor aten.replication_pad1d.default
aten.replication_pad2d.default aten.replication_pad3d.default aten.reshape.default
aten.resize_.default aten.roll.default aten.round.default aten.rsqrt.default
aten.scalar_tensor.default aten.scaled_dot_product_attention.default aten.scatter.src
aten.scatter.value aten.select.int aten.sigmoid.default aten.sign.default aten.sin.default
aten.sinh.default aten.slice.Tensor aten.softplus.default aten.sort.default aten.split.Tensor
aten.split.sizes aten.split_with_sizes.default aten.sqrt.default aten.squeeze.dim aten.squeeze.dims
aten.sub.Scalar aten.sub.Tensor aten.sum.default aten.sum.dim_IntList aten.sym_numel.default
aten.sym_size.int aten.tan.default aten.tanh.default aten.tile.default aten.topk.default
aten.trunc.default aten.unsqueeze.default aten.upsample_bicubic2d.vec aten.upsample_bilinear2d.vec
aten.upsample_linear1d.vec aten.upsample_nearest1d.vec aten.upsample_nearest2d.vec
aten.upsample_nearest3d.vec aten.upsample_trilinear3d.vec aten.view.default aten.where.self
prims.broadcast_in_dim.default prims.div.default prims.sum.default torch.sym_min torch.sym_not
"""
_KEPT = """
aten._chunk_cat.default aten._prelu_kernel.default aten._safe_softmax.default
aten._scaled_dot_product_flash_attention_for_cpu.default aten._unsafe_index_put.default
aten._unsafe_masked_index.default aten._unsafe_masked_index_put_accumulate.default
aten._weight_norm_interface.default aten.affine_grid_generator.default aten.alias_copy.default
aten.all.default aten.all.dim aten.all.dims aten.baddbmm.default aten.baddbmm.dtype
aten.bernoulli.default aten.block_diag.default aten.channel_shuffle.default
aten.diagonal_copy.default aten.dot.default aten.expand_copy.default aten.floor_divide.Scalar
aten.floor_divide.default aten.glu.default aten.hann_window.default aten.hann_window.periodic
aten.hardsigmoid.default aten.isin.Scalar_Tensor aten.isin.Tensor_Scalar aten.isin.Tensor_Tensor
aten.linalg_cross.default aten.linear.default aten.matmul.default aten.max_unpool2d.default
aten.max_unpool3d.default aten.multi_margin_loss.default aten.multilabel_margin_loss_forward.default
aten.multilabel_margin_loss_forward.output aten.mv.default aten.nll_loss2d_forward.default
aten.nll_loss2d_forward.output aten.pixel_shuffle.default aten.pixel_unshuffle.default
aten.reflection_pad1d.default aten.reflection_pad2d.default aten.reflection_pad3d.default
aten.replication_pad1d.default aten.replication_pad2d.default aten.replication_pad3d.default
aten.resize_as.default aten.roll.default aten.scaled_dot_product_attention.default
aten.softplus.default aten.split.Tensor aten.split_with_sizes_copy.default aten.squeeze.default
aten.squeeze.dim aten.squeeze_copy.default aten.squeeze_copy.dim aten.squeeze_copy.dims
aten.std_mean.correction aten.sum.default aten.t_copy.default aten.take.default
aten.transpose_copy.int aten.unsafe_split.Tensor aten.unsafe_split_with_sizes.default
aten.unsqueeze_copy.default aten.upsample_bicubic2d.vec aten.upsample_linear1d.default
aten.upsample_linear1d.vec aten.upsample_nearest1d.vec aten.upsample_nearest3d.vec
aten.upsample_trilinear3d.vec aten.vdot.default
"""
_REWRITTEN = """
aten._log_softmax.default aten._native_batch_norm_legit_functional.default
aten._scaled_dot_product_flash_attention.quantized aten.alias.default
aten.cudnn_grid_sampler.default aten.empty_permuted.default aten.empty_strided.default
aten.full_like.default aten.lift_fresh_copy.default aten.linalg_vector_norm.default
aten.masked_scatter.default aten.repeat.default aten.scatter_add.default aten.scatter_reduce.two
aten.slice_scatter.default aten.unfold.default aten.var.correction aten.var_mean.correction
"""
#: Operators with a converter.
CONVERTED = frozenset(_CONVERTED.split())
#: Operators that PyTorch would decompose, and Torch-TensorRT does not.
KEPT = frozenset(_KEPT.split())
#: Operators that it decomposes, into such as have converters, and PyTorch would not.
REWRITTEN = frozenset(_REWRITTEN.split())
