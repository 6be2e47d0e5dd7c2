// The operator set as one abstract class. A backend implements what it can; the rest reports `unsupported`.
//
// Methods do not call these virtuals: they call the free function of the operator's contract header, e.g.
// `attention(ctx, args)`, which validates the arguments, charges the cost ledger, and then dispatches here.
// So validation and accounting exist once, whatever the backend.
//
// Every operator fills tensors that the caller allocated; inputs and outputs may not overlap unless its
// header says so. Adding an operator: one line below, a folder with its contract, cpu.cpp, cuda.cu and tests.
#pragma once
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "kernels/core/context.hpp"
#include "kernels/core/device.hpp"

// clang-format off
//      operator            arguments               contract
#define ATTNBENCH_OPERATORS(X)                                                     \
  X(attention, AttentionArgs)               /* kernels/attention/attention.hpp */  \
  X(library_attention, AttentionArgs)       /* kernels/attention/attention.hpp */  \
  X(merge_attention, MergeAttentionArgs)    /* kernels/attention/merge.hpp */      \
  X(neighborhood_scores, NeighborhoodScoresArgs) /* kernels/neighborhood/neighborhood.hpp */ \
  X(neighborhood_values, NeighborhoodValuesArgs) /* kernels/neighborhood/neighborhood.hpp */ \
  X(reweigh_attention, ReweighAttentionArgs) /* kernels/attention/reweigh.hpp */   \
  X(reweigh_map, ReweighMapArgs)            /* kernels/attention/reweigh.hpp */    \
  X(solve_spd, SolveSpdArgs)                /* kernels/solve/solve.hpp */          \
  X(gemm, GemmArgs)                         /* kernels/gemm/gemm.hpp */            \
  X(avg_pool2d, AvgPool2dArgs)              /* kernels/pool/pool.hpp */            \
  X(pool2d, Pool2dArgs)                     /* kernels/pool/pool.hpp */            \
  X(normalize, NormArgs)                    /* kernels/norm/norm.hpp */            \
  X(group_norm, GroupNormArgs)              /* kernels/norm/norm.hpp */            \
  X(softmax, SoftmaxArgs)                   /* kernels/softmax/softmax.hpp */      \
  X(pointwise, PointwiseArgs)               /* kernels/elementwise/pointwise.hpp */\
  X(reduce, ReduceArgs)                     /* kernels/elementwise/reduce.hpp */   \
  X(reduce_axis, ReduceAxisArgs)            /* kernels/elementwise/reduce.hpp */   \
  X(cast, CastArgs)                         /* kernels/elementwise/cast.hpp */     \
  X(gather_rows, GatherRowsArgs)            /* kernels/layout/layout.hpp */        \
  X(transpose_copy, TransposeCopyArgs)      /* kernels/layout/layout.hpp */        \
  X(patch_conv2d, PatchConv2dArgs)          /* kernels/conv/conv.hpp */            \
  X(conv2d, Conv2dArgs)                     /* kernels/conv/conv.hpp */            \
  X(fft2, Fft2Args)                         /* kernels/fft/fft.hpp */              \
  X(spectral_mask, SpectralMaskArgs)        /* kernels/fft/fft.hpp */              \
  X(spectral_loss, SpectralLossArgs)        /* kernels/spectral_loss/spectral_loss.hpp */ \
  X(resize_bicubic, ResizeArgs)             /* kernels/resample/resample.hpp */    \
  X(resize, ResampleArgs)                   /* kernels/resample/resample.hpp */    \
  X(sample_points, SamplePointsArgs)        /* kernels/resample/resample.hpp */    \
  X(linear_attention, LinearAttentionArgs)  /* kernels/linear_attention/linear_attention.hpp */ \
  X(local_linear, LocalLinearArgs)          /* kernels/local_linear/local_linear.hpp */ \
  X(head_gates, HeadGatesArgs)              /* kernels/routing/routing.hpp */ \
  X(pack_queries, PackQueriesArgs)          /* kernels/routing/routing.hpp */ \
  X(member_ranges, MemberRangesArgs)        /* kernels/routing/routing.hpp */ \
  X(search_spans, SearchSpansArgs)          /* kernels/spans/spans.hpp */ \
  X(pack_spans, PackSpansArgs)              /* kernels/spans/spans.hpp */ \
  X(merge_spans, MergeSpansArgs)            /* kernels/spans/spans.hpp */ \
  X(rotary, RotaryArgs)                     /* kernels/rotary/rotary.hpp */ \
  X(top_k, TopKArgs)                        /* kernels/select/select.hpp */ \
  X(argsort, ArgsortArgs)                   /* kernels/select/select.hpp */ \
  X(top_p, TopPArgs)                        /* kernels/select/select.hpp */ \
  X(prefix_sum, PrefixSumArgs)              /* kernels/select/select.hpp */ \
  X(compact_flags, CompactArgs)             /* kernels/select/select.hpp */ \
  X(compare_flags, CompareArgs)             /* kernels/select/select.hpp */ \
  X(gather_tokens, GatherTokensArgs)        /* kernels/select/select.hpp */ \
  X(scatter_tokens, ScatterTokensArgs)      /* kernels/select/select.hpp */ \
  X(pool_tokens, PoolTokensArgs)            /* kernels/select/select.hpp */ \
  X(build_block_lists, BlockListsArgs)      /* kernels/select/select.hpp */ \
  X(line_sums, LineSumsArgs)                /* kernels/select/patterns.hpp */ \
  X(cell_sums, CellSumsArgs)                /* kernels/select/patterns.hpp */ \
  X(js_distance, DistanceArgs)              /* kernels/select/patterns.hpp */ \
  X(count_rule, CountRuleArgs)              /* kernels/select/patterns.hpp */ \
  X(mask_values, MaskValuesArgs)            /* kernels/select/patterns.hpp */ \
  X(block_affine, BlockAffineArgs)          /* kernels/select/patterns.hpp */ \
  X(tree_search, TreeSearchArgs)            /* kernels/select/tree.hpp */ \
  X(token_lists, TokenListsArgs)            /* kernels/select/tree.hpp */ \
  X(gap_ratios, GapRatiosArgs)              /* kernels/select/chunks.hpp */ \
  X(pick_spaced, PickSpacedArgs)            /* kernels/select/chunks.hpp */ \
  X(chunk_lists, ChunkListsArgs)            /* kernels/select/chunks.hpp */ \
  X(fft1, Fft1Args)                         /* kernels/fft/fft1.hpp */ \
  X(complex_pointwise, ComplexArgs)         /* kernels/fft/fft1.hpp */ \
  X(toeplitz_attention, ToeplitzAttentionArgs) /* kernels/fft/fft1.hpp */ \
  X(stft, StftArgs)                         /* kernels/fft/stft.hpp */ \
  X(istft, IstftArgs)                       /* kernels/fft/stft.hpp */ \
  X(selective_scan, SelectiveScanArgs)      /* kernels/scan/scan.hpp */ \
  X(iir, IirArgs)                           /* kernels/scan/scan.hpp */ \
  X(extend, ExtendArgs)                     /* kernels/scan/scan.hpp */ \
  X(transfer_statistics, TransferStatisticsArgs) /* kernels/spectral_response/spectral_response.hpp */ \
  X(find_peaks, FindPeaksArgs)              /* kernels/spectral_response/spectral_response.hpp */ \
  X(histogram, HistogramArgs)               /* kernels/spectral_response/spectral_response.hpp */ \
  X(pyramid_level, PyramidArgs)             /* kernels/pyramid/pyramid.hpp */ \
  X(repair_range, RepairRangeArgs)          /* kernels/pyramid/pyramid.hpp */ \
  X(channel_fit, ChannelFitArgs)            /* kernels/pyramid/pyramid.hpp */ \
  X(unit_rows, UnitRowsArgs)                /* kernels/features/features.hpp */ \
  X(feature_map, FeatureMapArgs)            /* kernels/features/features.hpp */ \
  X(divide_by_last, DivideByLastArgs)       /* kernels/features/features.hpp */
// clang-format on

namespace attnbench {

#define X(op, Args) struct Args;
ATTNBENCH_OPERATORS(X)
#undef X

class Backend {
 public:
  virtual ~Backend() = default;
  virtual DeviceKind device() const = 0;
  /// "AMD EPYC 9B45, avx512" or "NVIDIA H200": what runs the operators.
  virtual std::string description() const = 0;

  virtual void* allocate_bytes(size_t bytes) = 0;  ///< throws OutOfMemory
  virtual void free_bytes(void* p, size_t bytes) noexcept = 0;
  virtual void copy_bytes(void* dst, DeviceKind dst_device, const void* src, DeviceKind src_device,
                          size_t bytes) = 0;
  /// Waits for all work submitted through this backend. The CPU backend has nothing to wait for.
  virtual void synchronize() = 0;

  // What only a device needs has an answer that costs the CPU nothing.
  /// Events on a device; the steady clock on the CPU, whose work is done when a call returns.
  virtual std::unique_ptr<DeviceTimer> make_timer();
  /// Submits work that evicts what earlier runs left in the device's caches. Nothing on the CPU: there the
  /// threads that own the caches have to do it (src/measure).
  virtual void flush_cache() {}
  /// Records what `work` submits instead of running it. Throws Unsupported where there are no graphs or where
  /// `work` waits for the device; its own exceptions pass through.
  virtual std::unique_ptr<DeviceGraph> capture(const std::function<void()>& work);
  virtual DeviceMemory memory_info() { return {}; }
  virtual DeviceFacts facts() { return {}; }
  virtual DeviceState read_state();
  /// Throws Unsupported for what the device cannot do or measure.
  virtual double measure_peak(DevicePeak what, DType dtype, int64_t bytes);
  /// Which kernel these arguments take, in words for reports and tests: "sm80 128x64 lean", "reference: ...".
  virtual std::string attention_plan(const AttentionArgs&) { return "engine"; }

#define X(op, Args) \
  virtual void op(Context&, const Args&) { not_implemented(#op); }
  ATTNBENCH_OPERATORS(X)
#undef X

 protected:
  [[noreturn]] void not_implemented(std::string_view op) const;
};

/// The CPU implementation; always there, one per process.
Backend& cpu_backend();

}  // namespace attnbench
