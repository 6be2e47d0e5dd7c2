// Fills a method's inputs and weights: seeded generators, .safetensors and .npy files.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "methods/method.hpp"

namespace attnbench {

/// Counter-based uniform bits: the value at `index` of stream `stream` under `seed`, the same on every
/// platform and backend (Philox 4x32-10). Streams are named by hashing the tensor's name.
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t index);
uint64_t stream_of(const std::string& name);
/// Uniform in (0, 1) with 53 bits, and standard normal by inversion; IEEE basic operations only, so every
/// platform gives the same doubles.
double random_uniform(uint64_t seed, uint64_t stream, uint64_t index);
double random_normal(uint64_t seed, uint64_t stream, uint64_t index);
/// random_normal of indices begin, begin + 1, ..., to the bit: what makes long tensors takes it by vectors.
void random_normals(uint64_t seed, uint64_t stream, uint64_t begin, int64_t count, double* out);
/// Quantile of the standard normal distribution for p in (0, 1), and its inverse.
double normal_quantile(double p);
double normal_probability(double x);

/// A named input generator: fills the float inputs of a method. Registered in its own file.
struct Generator {
  std::string id, summary;
  std::vector<ParamSpec> params;
  /// Writes elements [begin, begin + count), row-major, of the tensor `spec` of a method run on `problem`:
  /// whole rows of its last axis. How a tensor is cut changes no value.
  void (*fill)(const Problem& problem, const Params& params, const TensorSpec& spec, int64_t begin,
               int64_t count, double* out) = nullptr;
};
const std::vector<Generator>& all_generators();
const Generator& find_generator(const std::string& id);
bool register_generator(Generator g);

/// Makes the instance's tensors on `ctx` and binds them: inputs by problem.inputs (generator or file),
/// weights from `weights_file` (empty: seeded by their Init). Values are rounded to the tensor's dtype once.
/// `kept`, where there is one, gives what it has of a device's inputs and takes what was drawn.
class InputCache;
void fill_instance(Context& ctx, Instance& instance, const Problem& problem,
                   const std::string& weights_file = {}, InputCache* kept = nullptr);
/// One tensor by its own Init, on `ctx`'s device.
Tensor make_tensor(Context& ctx, const TensorSpec& spec, uint64_t seed, MemoryClass use);
/// A host tensor converted to `dtype` (floats to floats, i32 to i32, u8 to u8) and moved to `ctx`'s device;
/// DataError naming `what` when the types do not convert.
Tensor to_device(Context& ctx, const Tensor& host, DType dtype, MemoryClass use, const std::string& what);
/// A contiguous host copy, for writing files and comparing.
Tensor to_host(Context& host, Context& ctx, const Tensor& t);
/// Shows the elements of `t` in order: see(begin, count, values) with up to 2^23 of them on the host. A tensor
/// of gigabytes on a device passes through one small buffer, whose pages are there after the first piece.
void for_pieces(Context& ctx, const Tensor& t,
                const std::function<void(int64_t begin, int64_t count, const char* values)>& see);

/// One tensor of a file as read, on the host. I64 is narrowed to i32 (DataError when a value does not fit);
/// BOOL is u8.
struct TensorFile {
  TensorMap tensors;
  std::map<std::string, std::string> metadata;
};
/// Throws DataError naming the file and what is wrong: header length beyond the file, offsets that overlap,
/// lie outside or disagree with shape and dtype, duplicate names, bad JSON, unsupported dtype, more than 100
/// MB of header.
TensorFile read_safetensors(Context& host, const std::string& path);
/// The shapes of a file's tensors, from its header alone and as strictly checked. For methods whose extents
/// are those of what they are given (lists of ids of any length): they know them before they allocate.
std::map<std::string, Shape> safetensors_shapes(const std::string& path);
/// A file whose tensors are read in parts, for those that are larger than memory. As strict as
/// read_safetensors.
class SafetensorsFile {
 public:
  struct Entry {
    std::string name;
    DType dtype = DType::f32;  ///< in memory: I64 is i32
    Shape shape;
  };
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;

  const std::string& path() const;
  const std::vector<Entry>& entries() const { return entries_; }  ///< in the order of their data
  /// Elements [first, first + count), row-major, of a tensor of floats as f32. DataError on other types.
  void read(size_t entry, int64_t first, int64_t count, float* out);
  /// The same of a tensor of whole numbers.
  void read(size_t entry, int64_t first, int64_t count, int32_t* out);

 private:
  struct Open;
  std::unique_ptr<Open> open_;
  std::vector<Entry> entries_;
};
/// Writes atomically (temporary file, fsync, rename); throws Error with errno's text when the disk is full.
void write_safetensors(const std::string& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata = {});
/// .npy version 1 and 2, C order, little endian: f2 f4 f8 i4 i8 u1 b1. The tensor is named by the caller.
Tensor read_npy(Context& host, const std::string& path);
void write_npy(const std::string& path, const Tensor& tensor);

}  // namespace attnbench
