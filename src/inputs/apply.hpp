// Runs a method once on given tensors: how anyone checks it against their own code (`attnbench apply`).
#pragma once
#include <map>
#include <string>
#include <vector>

#include "inputs/inputs.hpp"

namespace attnbench {

/// What to run and on what. Files are .safetensors; a single-input method also takes .npy.
struct ApplyRequest {
  std::string method;
  std::map<std::string, Value> params;
  Problem problem;
  std::string inputs_file;   ///< empty: generated from problem.inputs and problem.seed
  std::string weights_file;  ///< empty: seeded by the method's initialisers
  std::vector<std::string> extra;  ///< outputs wanted beyond those of a run (Instance::extra_output)
  double tolerance = 0;            ///< of a case file: relative L2 per output
  std::map<std::string, double> absolute_tolerance;  ///< of a case file: largest absolute error, by output
};

/// Reads `<c>.json` (keys method, params, problem, tolerance, absolute_tolerance; others are ignored) and
/// points at
/// `<c>.in.safetensors` and, where it exists, `<c>.w.safetensors` beside it. Throws DataError with the file's
/// name.
ApplyRequest read_case_file(const std::string& path);

/// Fills the extents of `problem` that are unset from the tensors of the inputs file: q, k, v [B,H,N,D] give
/// batch, heads, kv_heads, length, kv_length, head_dim; x or X [B,N,C] gives batch, channels and, for
/// sequences, length; x [B,C,H,W] gives batch, channels, size. What the user set stays; contradictions show
/// up as shape errors later.
void infer_problem(Problem& problem, const TensorMap& inputs);

/// Runs it on `backend`; returns every output on the host, and those of `extra` that the method knows.
TensorMap apply(Backend& backend, const ApplyRequest& request, int threads = 0);

struct ApplyCheck {
  std::string tensor;
  double error = 0;  ///< relative L2, or the largest absolute error where `absolute`
  double tolerance = 0;
  bool absolute = false;
  bool passed = false;
  std::string worst;  ///< place and values of the worst element
};
/// Compares outputs with a file. Every tensor of the file must be an output of the method (DataError
/// otherwise) with the same shape; integers must be equal; outputs that the file lacks are not checked.
std::vector<ApplyCheck> check_outputs(const TensorMap& outputs, const std::string& file,
                                      const ApplyRequest& request);

}  // namespace attnbench
