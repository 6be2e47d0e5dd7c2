// CudaBackend::library_attention: the fused attention of cuDNN, as a graph of its backend API (matmul, scale,
// causal selection, softmax by parts, matmul) that the library recognises as one kernel. Not linked with it:
// the library is opened when it is first asked for, so the module works without, and says what is missing.
#include "kernels/attention/attention.hpp"
#include "kernels/core/cuda_backend.cuh"

#if __has_include(<cudnn_graph.h>)
#include <cudnn_graph.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace attnbench {
namespace {

// ---- the library ----

struct Library {
  decltype(&cudnnGetVersion) get_version = nullptr;
  decltype(&cudnnGetErrorString) error_string = nullptr;
  decltype(&cudnnGetLastErrorString) last_error_string = nullptr;
  decltype(&cudnnCreate) create = nullptr;
  decltype(&cudnnSetStream) set_stream = nullptr;
  decltype(&cudnnBackendCreateDescriptor) create_descriptor = nullptr;
  decltype(&cudnnBackendDestroyDescriptor) destroy_descriptor = nullptr;
  decltype(&cudnnBackendSetAttribute) set_attribute = nullptr;
  decltype(&cudnnBackendGetAttribute) get_attribute = nullptr;
  decltype(&cudnnBackendFinalize) finalize = nullptr;
  decltype(&cudnnBackendExecute) execute = nullptr;
};

template <class F>
void find_symbol(void* handle, const char* symbol, F& function) {
  function = reinterpret_cast<F>(dlsym(handle, symbol));
  if (!function)
    throw Unsupported(std::string("cuDNN: the library has no ") + symbol + "; version 9 is wanted");
}

Library open_library() {
  // A file that ATTNBENCH_CUDNN names, or what the loader finds.
  const char* named = std::getenv("ATTNBENCH_CUDNN");
  const char* file = named && *named ? named : "libcudnn.so.9";
  void* handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* why = dlerror();
    throw Unsupported(std::string("cuDNN cannot be opened: ") + (why ? why : file));
  }
  Library l;
  find_symbol(handle, "cudnnGetVersion", l.get_version);
  find_symbol(handle, "cudnnGetErrorString", l.error_string);
  find_symbol(handle, "cudnnGetLastErrorString", l.last_error_string);
  find_symbol(handle, "cudnnCreate", l.create);
  find_symbol(handle, "cudnnSetStream", l.set_stream);
  find_symbol(handle, "cudnnBackendCreateDescriptor", l.create_descriptor);
  find_symbol(handle, "cudnnBackendDestroyDescriptor", l.destroy_descriptor);
  find_symbol(handle, "cudnnBackendSetAttribute", l.set_attribute);
  find_symbol(handle, "cudnnBackendGetAttribute", l.get_attribute);
  find_symbol(handle, "cudnnBackendFinalize", l.finalize);
  find_symbol(handle, "cudnnBackendExecute", l.execute);
  return l;
}

/// Throws Unsupported, at every call, where there is no library.
const Library& library() {
  static const Library l = open_library();
  return l;
}

std::string text_of(cudnnStatus_t status, const char* what) {
  char detail[512] = "";
  library().last_error_string(detail, sizeof detail);
  std::string text = std::string("cuDNN ") + std::to_string(library().get_version()) + ": " + what + ": " +
                     library().error_string(status);
  if (detail[0]) text += std::string(", ") + detail;
  return text;
}

/// While a plan is made, whatever the library refuses is something that it cannot do.
void supported(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS) throw Unsupported(text_of(status, what));
}

// ---- descriptors ----

class Descriptor {
 public:
  explicit Descriptor(cudnnBackendDescriptorType_t type) {
    supported(library().create_descriptor(type, &d_), "a descriptor cannot be made");
  }
  Descriptor(Descriptor&& o) noexcept : d_(o.d_) { o.d_ = nullptr; }
  ~Descriptor() {
    if (d_) library().destroy_descriptor(d_);
  }
  cudnnBackendDescriptor_t get() const { return d_; }

  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
           const void* values, const char* what) {
    supported(library().set_attribute(d_, name, type, count, values), what);
  }
  void set(cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t other, const char* what) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &other, what);
  }
  void finalize(const char* what) { supported(library().finalize(d_), what); }

 private:
  cudnnBackendDescriptor_t d_ = nullptr;
};

using Extents = std::array<int64_t, 4>;
Extents packed(const Extents& e) { return {e[1] * e[2] * e[3], e[2] * e[3], e[3], 1}; }

/// Collects tensors and operations; everything lives as long as the plan.
class GraphBuilder {
 public:
  enum class Kind { device, by_value, inner };

  cudnnBackendDescriptor_t tensor(Kind kind, cudnnDataType_t type, const Extents& extents,
                                  const Extents& strides, int64_t id = 0) {
    if (!id) id = next_inner_++;
    Descriptor d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const char* what = "a tensor";
    const int64_t alignment = 16;
    const bool yes = true;
    d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type, what);
    d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, extents.data(), what);
    d.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data(), what);
    d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id, what);
    d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment, what);
    if (kind == Kind::inner) d.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &yes, what);
    if (kind == Kind::by_value) d.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes, what);
    d.finalize(what);
    return keep(std::move(d));
  }
  cudnnBackendDescriptor_t scalar(cudnnDataType_t type, int64_t id) {
    return tensor(Kind::by_value, type, {1, 1, 1, 1}, {1, 1, 1, 1}, id);
  }

  void matmul(cudnnBackendDescriptor_t a, cudnnBackendDescriptor_t b, cudnnBackendDescriptor_t c) {
    const char* what = "a matrix product";
    const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    Descriptor m(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    m.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute, what);
    m.finalize(what);
    Descriptor op(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, a, what);
    op.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, b, what);
    op.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, c, what);
    op.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, keep(std::move(m)), what);
    add(std::move(op), what);
  }

  struct Pointwise {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    int64_t axis = -1;  ///< of CUDNN_POINTWISE_GEN_INDEX
  };
  /// y = mode(x, b, t); b and t are null where the mode has fewer operands.
  void pointwise(const Pointwise& p, cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t b,
                 cudnnBackendDescriptor_t t, cudnnBackendDescriptor_t y) {
    const char* what = "an elementwise operation";
    Descriptor m(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    m.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &p.mode, what);
    m.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &p.compute, what);
    if (p.axis >= 0) m.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &p.axis, what);
    m.finalize(what);
    const float one = 1.0f;
    Descriptor op(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, keep(std::move(m)), what);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x, what);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y, what);
    if (b) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b, what);
    if (t) op.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t, what);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_ALPHA1, CUDNN_TYPE_FLOAT, 1, &one, what);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2, CUDNN_TYPE_FLOAT, 1, &one, what);
    add(std::move(op), what);
  }

  void reduce(cudnnReduceTensorOp_t mode, cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t y) {
    const char* what = "a reduction";
    const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    Descriptor m(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    m.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute, what);
    m.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode, what);
    m.finalize(what);
    Descriptor op(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, keep(std::move(m)), what);
    op.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x, what);
    op.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y, what);
    add(std::move(op), what);
  }

  cudnnBackendDescriptor_t keep(Descriptor d) {
    kept_.push_back(std::move(d));
    return kept_.back().get();
  }
  const std::vector<cudnnBackendDescriptor_t>& operations() const { return operations_; }
  std::vector<Descriptor> take() { return std::move(kept_); }

 private:
  void add(Descriptor op, const char* what) {
    op.finalize(what);
    operations_.push_back(keep(std::move(op)));
  }
  std::vector<Descriptor> kept_;
  std::vector<cudnnBackendDescriptor_t> operations_;
  int64_t next_inner_ = 100;  // above the ids of what the caller gives
};

// ---- the attention graph ----

/// What the caller gives at every execution.
enum Id : int64_t { kQ = 1, kK, kV, kO, kScale, kHidden, kKeys, kQueries };

/// All that a plan depends on; addresses and the scale are given when it runs.
struct Shape4 {
  Extents extents, strides;
};
struct Call {
  cudnnDataType_t type;
  Shape4 q, k, v, o;
  bool causal;
  bool shifted() const { return causal && q.extents[2] != k.extents[2]; }
  std::vector<int64_t> key() const {
    std::vector<int64_t> x{static_cast<int64_t>(type), causal};
    for (const Shape4* s : {&q, &k, &v, &o}) {
      x.insert(x.end(), s->extents.begin(), s->extents.end());
      x.insert(x.end(), s->strides.begin(), s->strides.end());
    }
    return x;
  }
};

struct Plan {
  Descriptor plan;
  int64_t workspace = 0;
};
/// What the library proposes for a call, best guess first; one is left when they have been timed.
struct Plans {
  std::vector<Descriptor> kept;
  std::vector<Plan> candidates;
};

void describe(GraphBuilder& g, const Call& c) {
  using Kind = GraphBuilder::Kind;
  const int64_t b = c.q.extents[0], h = c.q.extents[1], n = c.q.extents[2], m = c.k.extents[2];
  const Extents scores{b, h, n, m}, rows{b, h, n, 1};
  const auto inner = [&](cudnnDataType_t type, const Extents& e) {
    return g.tensor(Kind::inner, type, e, packed(e));
  };
  const auto values = [&] { return inner(CUDNN_DATA_FLOAT, scores); };
  const auto row_values = [&] { return inner(CUDNN_DATA_FLOAT, rows); };

  const auto q = g.tensor(Kind::device, c.type, c.q.extents, c.q.strides, kQ);
  // The second operand of the first product is k transposed: the same memory, its last two axes exchanged.
  Shape4 kt = c.k;
  std::swap(kt.extents[2], kt.extents[3]);
  std::swap(kt.strides[2], kt.strides[3]);
  const auto k = g.tensor(Kind::device, c.type, kt.extents, kt.strides, kK);
  const auto v = g.tensor(Kind::device, c.type, c.v.extents, c.v.strides, kV);
  const auto o = g.tensor(Kind::device, c.type, c.o.extents, c.o.strides, kO);

  auto s = values();
  g.matmul(q, k, s);
  const auto scaled = values();
  g.pointwise({CUDNN_POINTWISE_MUL}, s, g.scalar(CUDNN_DATA_FLOAT, kScale), nullptr, scaled);
  s = scaled;
  if (c.causal) {
    // row + M - N >= column keeps the score, anything else becomes -inf.
    const auto integers = [&] { return inner(CUDNN_DATA_INT32, scores); };
    auto row = integers();
    g.pointwise({CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, 2}, s, nullptr, nullptr, row);
    const auto column = integers();
    g.pointwise({CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_FLOAT, 3}, s, nullptr, nullptr, column);
    if (c.shifted()) {
      const auto plus = integers(), minus = integers();
      g.pointwise({CUDNN_POINTWISE_ADD, CUDNN_DATA_INT32}, row, g.scalar(CUDNN_DATA_INT32, kKeys), nullptr,
                  plus);
      g.pointwise({CUDNN_POINTWISE_SUB, CUDNN_DATA_INT32}, plus, g.scalar(CUDNN_DATA_INT32, kQueries),
                  nullptr, minus);
      row = minus;
    }
    const auto visible = inner(CUDNN_DATA_BOOLEAN, scores);
    g.pointwise({CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN}, row, column, nullptr, visible);
    const auto selected = values();
    g.pointwise({CUDNN_POINTWISE_BINARY_SELECT}, s, g.scalar(CUDNN_DATA_FLOAT, kHidden), visible, selected);
    s = selected;
  }
  const auto maximum = row_values(), shifted = values(), exponential = values(), sum = row_values();
  g.reduce(CUDNN_REDUCE_TENSOR_MAX, s, maximum);
  g.pointwise({CUDNN_POINTWISE_SUB}, s, maximum, nullptr, shifted);
  g.pointwise({CUDNN_POINTWISE_EXP}, shifted, nullptr, nullptr, exponential);
  g.reduce(CUDNN_REDUCE_TENSOR_ADD, exponential, sum);
  // The log-sum-exp is part of the pattern that the library knows, also when nobody reads it.
  const auto log_sum = row_values(), statistics = row_values();
  g.pointwise({CUDNN_POINTWISE_LOG}, sum, nullptr, nullptr, log_sum);
  g.pointwise({CUDNN_POINTWISE_ADD}, maximum, log_sum, nullptr, statistics);
  const auto p = inner(c.type, scores);
  g.pointwise({CUDNN_POINTWISE_DIV}, exponential, sum, nullptr, p);
  g.matmul(p, v, o);
}

/// Every kernel that the library proposes and can build. Throws Unsupported when there is none.
Plans make_plans(cudnnHandle_t handle, const Call& call) {
  GraphBuilder g;
  describe(g, call);
  Descriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
            static_cast<int64_t>(g.operations().size()), g.operations().data(), "a graph of operations");
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle, "a graph of operations");
  graph.finalize("the graph of attention");
  const cudnnBackendDescriptor_t operations = g.keep(std::move(graph));

  Plans made;
  std::string refusal =
      "cuDNN " + std::to_string(library().get_version()) + ": no kernel for this attention: it proposes none";
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK}) {
    if (!made.candidates.empty()) break;
    Descriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, operations, "heuristics");
    heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode, "heuristics");
    if (const cudnnStatus_t status = library().finalize(heuristics.get()); status != CUDNN_STATUS_SUCCESS) {
      refusal = text_of(status, "no kernel for this attention");
      continue;
    }
    int64_t count = 0, filled = 0;
    supported(library().get_attribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                      CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count, nullptr),
              "the number of proposed kernels");
    std::vector<cudnnBackendDescriptor_t> configurations;
    for (int64_t i = 0; i < count; ++i)
      configurations.push_back(g.keep(Descriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)));
    if (count > 0)
      supported(library().get_attribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                        CUDNN_TYPE_BACKEND_DESCRIPTOR, count, &filled, configurations.data()),
                "the proposed kernels");
    for (int64_t i = 0; i < std::min(count, filled); ++i) {
      Plan p{Descriptor(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)};
      p.plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configurations[static_cast<size_t>(i)],
                 "an execution plan");
      if (const cudnnStatus_t status = library().finalize(p.plan.get()); status != CUDNN_STATUS_SUCCESS) {
        refusal = text_of(status, "a proposed kernel cannot be built");
        continue;
      }
      int64_t one = 0;
      supported(library().get_attribute(p.plan.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                        CUDNN_TYPE_INT64, 1, &one, &p.workspace),
                "the workspace of a plan");
      made.candidates.push_back(std::move(p));
    }
  }
  if (made.candidates.empty()) throw Unsupported(refusal);
  made.kept = g.take();
  return made;
}

/// Handle and plans of the process, never taken down: at exit the driver may be gone before.
struct State {
  std::mutex mutex;
  cudnnHandle_t handle = nullptr;
  std::map<std::vector<int64_t>, Plans> plans;
};
State& state() {
  static State& s = *new State;
  return s;
}

// ---- what the library can take ----

/// Throws Unsupported for masks besides "every pair" and "every causal pair"; true: causal.
bool is_causal(const AttentionArgs& a, int64_t n, int64_t m) {
  const BlockMask* k = a.mask;
  if (!k) return false;
  const ElementRule& r = k->rule;
  if (k->full || k->partial || k->gather || k->row_begin || k->row_end || k->key_length || k->key_valid ||
      k->q_order || k->k_order || r.band || r.rank != 0 || r.segment_q || r.bitmap)
    throw Unsupported("cuDNN's attention is used for every pair or every causal pair, not for other masks");
  if (!r.causal) return false;
  if (r.offset != ElementRule::kAlignEnds && r.offset != m - n)
    throw Unsupported("cuDNN's causal attention is used with aligned ends only");
  if (m < n)
    throw Unsupported("cuDNN's causal attention wants at least as many keys as queries, not " +
                      std::to_string(m) + " for " + std::to_string(n));
  return n > 1;  // a single query at the end sees everything
}

Shape4 shape_of(const char* what, const Tensor& t) {
  if (reinterpret_cast<uintptr_t>(t.raw()) % 16 != 0)
    throw Unsupported(std::string("cuDNN's attention wants tensors at addresses that 16 divides, and ") +
                      what + " is not at one");
  Shape4 s;
  for (int a = 0; a < 4; ++a) {
    s.extents[static_cast<size_t>(a)] = t.dim(a);
    s.strides[static_cast<size_t>(a)] = t.stride(a);
  }
  // An axis of one element has no stride of its own; the library wants an ordinary one.
  for (int a = 2; a >= 0; --a) {
    const auto i = static_cast<size_t>(a);
    if (s.extents[i] == 1) s.strides[i] = s.extents[i + 1] * s.strides[i + 1];
  }
  return s;
}

}  // namespace

void CudaBackend::library_attention(Context& ctx, const AttentionArgs& a) {
  const DType type = a.q.dtype();
  if (type != DType::bf16 && type != DType::f16)
    throw Unsupported("cuDNN's attention takes bf16 and f16, not " + std::string(name(type)));
  if (a.soft_cap != 0 || a.bias.dense || a.bias.slope || a.bias.relative || a.relative.keys ||
      a.relative.values || a.sink_logit || a.pages.table)
    throw Unsupported("cuDNN's attention is used without score rules and paged caches");
  if (a.lse || a.row_max || a.row_entropy || a.mass_per_key || a.mass_per_block)
    throw Unsupported("cuDNN's attention is used for o alone");
  const int64_t n = a.q.dim(2), m = a.k.dim(2), d = a.q.dim(3), e = a.v.dim(3);
  if (d % 8 != 0 || e % 8 != 0)
    throw Unsupported("cuDNN's attention wants head widths that 8 divides, not " +
                      std::to_string(d % 8 ? d : e));
  if (a.o.numel() == 0) return;
  if (m == 0) throw Unsupported("cuDNN's attention wants at least one key");

  Call call;
  call.type = type == DType::bf16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
  call.causal = is_causal(a, n, m);
  call.q = shape_of("q", a.q), call.k = shape_of("k", a.k);
  call.v = shape_of("v", a.v), call.o = shape_of("o", a.o);

  State& s = state();
  const std::scoped_lock lock(s.mutex);
  const Library& lib = library();
  if (!s.handle) {
    cudnnHandle_t handle = nullptr;
    supported(lib.create(&handle), "a handle");
    supported(lib.set_stream(handle, stream()), "its stream");
    s.handle = handle;
  }
  const std::vector<int64_t> key = call.key();
  auto it = s.plans.find(key);
  if (it == s.plans.end()) it = s.plans.emplace(key, make_plans(s.handle, call)).first;
  Plans& plans = it->second;

  float scale = a.scale;
  // Before 9.10 the library's softmax wanted a finite number for what is hidden.
  float hidden = lib.get_version() >= 91000 ? -std::numeric_limits<float>::infinity()
                                            : std::numeric_limits<float>::lowest();
  auto keys = static_cast<int32_t>(m), queries = static_cast<int32_t>(n);
  std::vector<int64_t> ids{kQ, kK, kV, kO, kScale};
  std::vector<void*> addresses{a.q.raw(), a.k.raw(), a.v.raw(), a.o.raw(), &scale};
  if (call.causal) ids.push_back(kHidden), addresses.push_back(&hidden);
  if (call.shifted()) {
    ids.insert(ids.end(), {kKeys, kQueries});
    addresses.insert(addresses.end(), {static_cast<void*>(&keys), static_cast<void*>(&queries)});
  }
  const auto execute = [&](const Plan& p) {
    Tensor workspace;
    if (p.workspace > 0) workspace = ctx.allocate(DType::u8, {p.workspace});
    void* scratch = workspace ? workspace.raw() : nullptr;
    Descriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    const auto count = static_cast<int64_t>(ids.size());
    pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, addresses.data(),
             "arguments");
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids.data(), "arguments");
    pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &scratch, "arguments");
    pack.finalize("arguments");
    if (const cudnnStatus_t status = lib.execute(s.handle, p.plan.get(), pack.get());
        status != CUDNN_STATUS_SUCCESS)
      throw Error(text_of(status, "attention cannot be executed"));
  };

  // The yardstick is the library's fastest kernel, not its first guess: the first call times them all. A
  // recording cannot, and takes the guess.
  cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(stream(), &recording));
  if (plans.candidates.size() > 1 && recording == cudaStreamCaptureStatusNone) {
    constexpr int kRuns = 3;
    const std::unique_ptr<DeviceTimer> timer = make_timer();
    size_t fastest = 0;
    double least = std::numeric_limits<double>::infinity();
    for (size_t i = 0; i < plans.candidates.size(); ++i) {
      execute(plans.candidates[i]);  // loads its code
      timer->start();
      for (int r = 0; r < kRuns; ++r) execute(plans.candidates[i]);
      timer->stop();
      if (const double took = timer->seconds(); took < least) least = took, fastest = i;
    }
    Plan best = std::move(plans.candidates[fastest]);
    plans.candidates.clear();
    plans.candidates.push_back(std::move(best));
  }
  execute(plans.candidates.front());
}

}  // namespace attnbench

#else

namespace attnbench {
void CudaBackend::library_attention(Context&, const AttentionArgs&) {
  throw Unsupported("this build has no cuDNN: its headers were not found");
}
}  // namespace attnbench

#endif
