// Makes and binds an instance's tensors from generators and files.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <optional>
#include <vector>

#include "inputs/input_cache.hpp"
#include "inputs/inputs.hpp"
#include "kernels/layout/layout.hpp"

namespace attnbench {

namespace {

/// A deleted or wrongly sized input of a whole case is easier to find with its file named.
[[noreturn]] void missing(const std::string& what, const std::string& name, const std::string& file) {
  throw DataError(file + ": " + what + " '" + name + "' is missing");
}

void store(const std::vector<double>& values, const Tensor& t) {
  const int64_t n = t.numel();
  if (t.dtype() == DType::i32) {
    for (int64_t i = 0; i < n; ++i)
      t.data<int32_t>()[i] = static_cast<int32_t>(values[static_cast<size_t>(i)]);
  } else if (t.dtype() == DType::u8) {
    for (int64_t i = 0; i < n; ++i)
      t.data<uint8_t>()[i] = static_cast<uint8_t>(values[static_cast<size_t>(i)]);
  } else {
    // In pieces for all threads: beside sixteen of them that draw, one that rounds would take longer than
    // they.
    constexpr int64_t kPiece = int64_t{1} << 14;
    const int64_t pieces = (n + kPiece - 1) / kPiece, size = static_cast<int64_t>(size_of(t.dtype()));
#pragma omp parallel for schedule(static) if (pieces > 1)
    for (int64_t i = 0; i < pieces; ++i)
      convert(values.data() + i * kPiece, DType::f64, static_cast<char*>(t.raw()) + i * kPiece * size,
              t.dtype(), std::min(kPiece, n - i * kPiece));
  }
}

/// Values of `init` for elements [begin, begin + n).
void fill_values(const Init& init, uint64_t seed, uint64_t stream, int64_t begin, int64_t n, double* out) {
  double low = 0, share = 1;
  if (init.kind == Init::Kind::trunc_normal) {
    low = normal_probability(-init.cut);
    share = 1.0 - 2.0 * low;
  }
  if (init.kind == Init::Kind::normal) {
    constexpr int64_t kPiece = 4096;
    const int64_t pieces = (n + kPiece - 1) / kPiece;
#pragma omp parallel for schedule(static) if (pieces > 1)
    for (int64_t k = 0; k < pieces; ++k) {
      const int64_t first = k * kPiece, last = std::min(n, first + kPiece);
      random_normals(seed, stream, static_cast<uint64_t>(begin + first), last - first, out + first);
      for (int64_t i = first; i < last; ++i) out[i] = init.a + init.b * out[i];
    }
    return;
  }
#pragma omp parallel for schedule(static) if (n > 4096)
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t at = static_cast<uint64_t>(begin + i);
    switch (init.kind) {
      case Init::Kind::normal:
        break;
      case Init::Kind::trunc_normal:
        out[i] = init.a + init.b * normal_quantile(low + share * random_uniform(seed, stream, at));
        break;
      case Init::Kind::uniform:
        out[i] = init.a + (init.b - init.a) * random_uniform(seed, stream, at);
        break;
      case Init::Kind::constant:
        out[i] = init.a;
        break;
      case Init::Kind::values:
        out[i] = init.value(begin + i);
        break;
    }
  }
}

/// An argument of the file, or none.
std::optional<int64_t> file_argument(const Problem& problem, const char* key) {
  const auto it = problem.inputs.arguments.find(key);
  if (it == problem.inputs.arguments.end()) return std::nullopt;
  if (!it->second.is_int() || it->second.as_int() < 0)
    throw UsageError(std::string("problem.inputs.") + key + ": a whole number >= 0 is wanted, not " +
                     it->second.str());
  return it->second.as_int();
}

/// The heads of `t` that the problem asks for, where `t` holds more of them than `spec`: along the one axis
/// that differs.
Tensor own_heads(const Tensor& t, const TensorSpec& spec, const Problem& problem, int64_t first) {
  if (t.rank() != spec.shape.rank()) return t;
  int axis = -1;
  for (int a = 0; a < t.rank(); ++a)
    if (t.dim(a) != spec.shape[a]) {
      if (axis >= 0) return t;  // bind() says what is wrong
      axis = a;
    }
  if (axis < 0 && first == 0) return t;
  const int64_t count = axis < 0 ? 0 : spec.shape[axis],
                group = problem.heads / std::max<int64_t>(1, problem.kv_heads_or_heads());
  const std::string where = problem.inputs.file + ": input '" + spec.name + "'";
  if (axis < 0 || (count != problem.heads && count != problem.kv_heads_or_heads()))
    throw DataError(where + " of shape " + t.shape().str() + " has no heads to choose from beside " +
                    spec.shape.str());
  // Where both counts are equal there are no groups.
  const bool keys = count != problem.heads;
  if (keys && first % group != 0)
    throw UsageError("problem.inputs.first_head: " + std::to_string(first) + " lies within a group of " +
                     std::to_string(group) + " heads");
  const int64_t begin = keys ? first / group : first;
  if (begin + count > t.dim(axis))
    throw DataError(where + " has " + std::to_string(t.dim(axis)) + " heads, and " + std::to_string(begin) +
                    " to " + std::to_string(begin + count) + " are wanted");
  Context host(cpu_backend(), 1);
  const Tensor part = t.slice(axis, begin, begin + count);
  Tensor packed = host.allocate(t.dtype(), part.shape());
  transpose_copy(host, {part, packed});
  return packed;
}

bool wants_generator(const TensorSpec& spec, const Problem& problem) {
  return is_float(spec.dtype) && !spec.optional && !problem.inputs.generator.empty();
}

}  // namespace

Tensor to_device(Context& ctx, const Tensor& host, DType dtype, MemoryClass use, const std::string& what) {
  const bool floats = is_float(host.dtype()) && is_float(dtype);
  if (!floats && host.dtype() != dtype)
    throw DataError(what + " has dtype " + std::string(name(host.dtype())) + ", but " +
                    std::string(name(dtype)) + " is wanted");
  Tensor t = ctx.allocate(dtype, host.shape(), use);
  if (ctx.device() == DeviceKind::cpu) {
    convert(host.raw(), host.dtype(), t.raw(), dtype, host.numel());
    return t;
  }
  Context staging(cpu_backend(), ctx.threads());
  Tensor s = host;
  if (host.dtype() != dtype) {
    s = staging.allocate(dtype, host.shape());
    convert(host.raw(), host.dtype(), s.raw(), dtype, host.numel());
  }
  ctx.backend().copy_bytes(t.raw(), t.device(), s.raw(), DeviceKind::cpu, static_cast<size_t>(s.nbytes()));
  return t;
}

Tensor to_host(Context& host, Context& ctx, const Tensor& t) {
  Tensor h = host.allocate(t.dtype(), t.shape());
  if (t.device() == DeviceKind::cpu) {
    copy(host, t, h);
    return h;
  }
  Tensor packed = t;
  if (!t.contiguous()) {
    packed = ctx.allocate(t.dtype(), t.shape());
    transpose_copy(ctx, {t, packed});
  }
  if (t.numel() > 0)
    ctx.backend().copy_bytes(h.raw(), DeviceKind::cpu, packed.raw(), t.device(),
                             static_cast<size_t>(t.nbytes()));
  return h;
}

void for_pieces(Context& ctx, const Tensor& t,
                const std::function<void(int64_t begin, int64_t count, const char* values)>& see) {
  constexpr int64_t kPiece = int64_t{1} << 23;
  const int64_t n = t.numel(), element = static_cast<int64_t>(size_of(t.dtype()));
  if (n == 0) return;
  Tensor packed = t;
  if (!t.contiguous()) {
    packed = ctx.allocate(t.dtype(), t.shape());
    if (t.device() == DeviceKind::cpu)
      copy(ctx, t, packed);
    else
      transpose_copy(ctx, {t, packed});
  }
  const char* from = static_cast<const char*>(packed.raw());
  Context host(cpu_backend(), 1);
  Tensor buffer;
  if (packed.device() != DeviceKind::cpu) buffer = host.allocate(t.dtype(), {std::min(n, kPiece)});
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t count = std::min(kPiece, n - begin);
    const char* values = from + begin * element;
    if (buffer) {
      ctx.backend().copy_bytes(buffer.raw(), DeviceKind::cpu, values, packed.device(),
                               static_cast<size_t>(count * element));
      values = static_cast<const char*>(buffer.raw());
    }
    see(begin, count, values);
  }
}

namespace {

/// A tensor whose values draw(begin, count, out) gives, in pieces of whole rows of `row` elements, so that
/// filling it never needs a second copy of it in doubles. `whole`, where given, is a host tensor that gets
/// the same elements.
template <class Draw>
Tensor drawn(Context& ctx, const TensorSpec& spec, MemoryClass use, int64_t row, const Draw& draw,
             const Tensor& whole = {}) {
  Tensor t = ctx.allocate(spec.dtype, spec.shape, use);
  Context staging(cpu_backend(), ctx.threads());
  const bool on_cpu = ctx.device() == DeviceKind::cpu;
  constexpr int64_t kPiece = int64_t{1} << 22;
  const int64_t n = t.numel(), element = static_cast<int64_t>(size_of(spec.dtype));
  const int64_t step = std::max<int64_t>(kPiece / std::max<int64_t>(row, 1), 1) * std::max<int64_t>(row, 1);
  std::vector<double> values;
  for (int64_t begin = 0; begin < n; begin += step) {
    const int64_t count = std::min(step, n - begin);
    values.resize(static_cast<size_t>(count));
    draw(begin, count, values.data());
    char* at = static_cast<char*>(t.raw()) + begin * element;
    if (on_cpu) {
      store(values, Tensor::borrow(DeviceKind::cpu, spec.dtype, {count}, at));
      continue;
    }
    const Tensor piece = whole ? Tensor::borrow(DeviceKind::cpu, spec.dtype, {count},
                                                static_cast<char*>(whole.raw()) + begin * element)
                               : staging.allocate(spec.dtype, {count});
    store(values, piece);
    ctx.backend().copy_bytes(at, t.device(), piece.raw(), DeviceKind::cpu,
                             static_cast<size_t>(count * element));
  }
  return t;
}

/// The same through what earlier cases have drawn; `drawn_by` names the generator, empty for the Init.
template <class Draw>
Tensor drawn_once(Context& ctx, const TensorSpec& spec, const Problem& problem, const std::string& drawn_by,
                  InputCache* kept, int64_t row, const Draw& draw) {
  if (!kept || ctx.device() == DeviceKind::cpu || !kept->takes(spec))
    return drawn(ctx, spec, MemoryClass::input, row, draw);
  if (const Tensor host = kept->find(spec, problem, drawn_by))
    return to_device(ctx, host, spec.dtype, MemoryClass::input, "input '" + spec.name + "'");
  Context staging(cpu_backend(), ctx.threads());
  const Tensor whole = staging.allocate(spec.dtype, spec.shape);
  Tensor t = drawn(ctx, spec, MemoryClass::input, row, draw, whole);
  kept->keep(spec, problem, drawn_by, whole);
  return t;
}

}  // namespace

Tensor make_tensor(Context& ctx, const TensorSpec& spec, uint64_t seed, MemoryClass use) {
  const uint64_t stream = stream_of(spec.name);
  return drawn(ctx, spec, use, 1, [&](int64_t begin, int64_t count, double* out) {
    fill_values(spec.init, seed, stream, begin, count, out);
  });
}

void fill_instance(Context& ctx, Instance& instance, const Problem& problem, const std::string& weights_file,
                   InputCache* kept) {
  Context host(cpu_backend(), ctx.threads());
  TensorMap inputs, weights;

  TensorFile input_file;
  if (!problem.inputs.file.empty()) {
    if (std::filesystem::path(problem.inputs.file).extension() == ".npy") {
      if (instance.input_specs().size() != 1)
        throw DataError(problem.inputs.file + ": a .npy file holds one tensor, but the method reads " +
                        std::to_string(instance.input_specs().size()) + "; use .safetensors");
      input_file.tensors[instance.input_specs()[0].name] = read_npy(host, problem.inputs.file);
    } else {
      input_file = read_safetensors(host, problem.inputs.file);
    }
  }
  const std::optional<int64_t> layer = file_argument(problem, "layer"),
                               head = file_argument(problem, "first_head");
  for (const TensorSpec& spec : instance.input_specs()) {
    if (!problem.inputs.file.empty()) {
      const std::string name = layer ? "layers." + std::to_string(*layer) + "." + spec.name : spec.name;
      const auto it = input_file.tensors.find(name);
      if (it != input_file.tensors.end()) {
        const Tensor t = head ? own_heads(it->second, spec, problem, *head) : it->second;
        inputs[spec.name] = to_device(ctx, t, spec.dtype, MemoryClass::input, "input '" + spec.name + "'");
      } else if (!spec.optional) {
        missing("input", name, problem.inputs.file);
      }
    } else if (wants_generator(spec, problem)) {
      const Generator& g = find_generator(problem.inputs.generator);
      const Params params = resolve_params(g.id, g.params, problem.inputs.arguments, problem);
      inputs[spec.name] =
          drawn_once(ctx, spec, problem, g.id, kept, spec.shape.rank() > 0 ? spec.shape[-1] : 1,
                     [&](int64_t begin, int64_t count, double* out) {
                       g.fill(problem, params, spec, begin, count, out);
                     });
    } else if (!spec.optional) {
      inputs[spec.name] =
          drawn_once(ctx, spec, problem, "", kept, 1,
                     [&, stream = stream_of(spec.name)](int64_t begin, int64_t count, double* out) {
                       fill_values(spec.init, problem.seed, stream, begin, count, out);
                     });
    }
  }
  for (const auto& [key, t] : input_file.tensors)
    if (!layer && !inputs.contains(key)) inputs[key] = t;  // bind() refuses it by name

  TensorFile file;
  if (!weights_file.empty()) file = read_safetensors(host, weights_file);
  for (const TensorSpec& spec : instance.weight_specs()) {
    if (!weights_file.empty()) {
      const auto it = file.tensors.find(spec.name);
      if (it != file.tensors.end()) {
        weights[spec.name] =
            to_device(ctx, it->second, spec.dtype, MemoryClass::weight, "weight '" + spec.name + "'");
      } else if (!spec.optional) {
        missing("weight", spec.name, weights_file);
      }
    } else if (!spec.optional) {
      weights[spec.name] = make_tensor(ctx, spec, problem.seed, MemoryClass::weight);
    }
  }
  for (const auto& [key, t] : file.tensors)
    if (!weights.contains(key)) weights[key] = t;
  instance.bind(inputs, weights);
}

}  // namespace attnbench
