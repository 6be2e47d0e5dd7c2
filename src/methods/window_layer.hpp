// The window attention layer behind window, shifted_window and twins_lsa. Not hilo's windows: those have
// their own projections and share their input with the pooled heads.
#pragma once
#include "methods/vision_layer.hpp"

namespace attnbench::vision {

struct WindowLayerOptions {
  int64_t win = 7, shift = 0;  ///< after clamping
  bool qkv_bias = true;
  bool rel_pos_bias = false;
  bool rebuild_mask = false;
  bool crop_before_proj = false;  ///< twins: padding is dropped before the output projection
};

/// win, shift, rel_pos_bias, clamp_window and rebuild_mask of the window methods.
std::vector<ParamSpec> window_params(int64_t default_shift);
/// Reads them; applies the clamp rule (min(Hg, Wg) <= win: win = min(Hg, Wg), shift = 0).
WindowLayerOptions window_options(const MethodInfo& info, const LayerShape& shape, const Params& params);

std::unique_ptr<Instance> make_window_layer(Context& ctx, const LayerShape& shape,
                                            const WindowLayerOptions& options);

}  // namespace attnbench::vision
