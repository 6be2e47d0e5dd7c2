// Reads and writes .npy (format versions 1 and 2; C order, little endian).
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <vector>

#include "inputs/atomic_file.hpp"
#include "inputs/inputs.hpp"

namespace attnbench {

namespace {

/// The text of one key's value in the header's Python dictionary, up to the comma or brace that ends it.
std::string field(const std::string& header, const std::string& key, const std::string& path) {
  const size_t at = header.find("'" + key + "'");
  const size_t colon = at == std::string::npos ? at : header.find(':', at);
  if (colon == std::string::npos) throw DataError(path + ": the header lacks '" + key + "'");
  const size_t begin = header.find_first_not_of(' ', colon + 1);
  if (begin == std::string::npos) throw DataError(path + ": the header ends inside '" + key + "'");
  const size_t end = header[begin] == '(' ? header.find(')', begin) + 1 : header.find_first_of(",}", begin);
  if (end == std::string::npos || end == 0) throw DataError(path + ": the header ends inside '" + key + "'");
  return header.substr(begin, end - begin);
}

std::vector<int64_t> parse_shape(const std::string& text, const std::string& path) {
  std::vector<int64_t> shape;
  int64_t value = 0;
  bool digits = false;
  for (const char c : text) {
    if (c >= '0' && c <= '9') {
      if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, c - '0', &value))
        throw DataError(path + ": an extent of shape " + text + " does not fit 64 bits");
      digits = true;
    } else if (c == ',' || c == ')') {
      if (digits) shape.push_back(value);
      value = 0;
      digits = false;
    } else if (c != ' ' && c != '(' && c != 'L') {
      throw DataError(path + ": shape " + text + " is not a tuple of whole numbers");
    }
  }
  return shape;
}

}  // namespace

Tensor read_npy(Context& host, const std::string& path) {
  std::ifstream f(path, std::ios::binary);
  if (!f) throw DataError(path + ": cannot be opened: " + std::strerror(errno));
  char magic[8] = {};
  f.read(magic, 8);
  if (!f || std::memcmp(magic, "\x93NUMPY", 6) != 0) throw DataError(path + ": is not a .npy file");
  const int version = magic[6];
  if (version < 1 || version > 3)
    throw DataError(path + ": .npy version " + std::to_string(version) + " is unknown");
  uint32_t header_bytes = 0;
  f.read(reinterpret_cast<char*>(&header_bytes), version == 1 ? 2 : 4);
  if (!f || header_bytes > (1u << 20)) throw DataError(path + ": the header length is damaged");
  std::string header(header_bytes, '\0');
  if (!f.read(header.data(), header_bytes)) throw DataError(path + ": the file ends inside its header");

  const std::string descr = field(header, "descr", path);
  if (field(header, "fortran_order", path).starts_with("True"))
    throw DataError(path + ": Fortran order is not supported; save it with numpy.ascontiguousarray");
  DType dtype = DType::f32;
  size_t bytes = 4;
  bool narrow = false;
  if (descr == "'<f8'")
    dtype = DType::f64, bytes = 8;
  else if (descr == "'<f4'")
    dtype = DType::f32;
  else if (descr == "'<f2'")
    dtype = DType::f16, bytes = 2;
  else if (descr == "'<i4'")
    dtype = DType::i32;
  else if (descr == "'<i8'")
    dtype = DType::i32, bytes = 8, narrow = true;
  else if (descr == "'|u1'" || descr == "'|b1'")
    dtype = DType::u8, bytes = 1;
  else
    throw DataError(path + ": type " + descr + " is not supported; <f8 <f4 <f2 <i4 <i8 |u1 |b1 are");

  const Shape shape(parse_shape(field(header, "shape", path), path));
  int64_t want = 0;
  try {
    if (__builtin_mul_overflow(shape.numel(), static_cast<int64_t>(bytes), &want))
      throw UsageError("too large");
  } catch (const UsageError& e) {
    throw DataError(path + ": shape " + shape.str() + ": " + e.what());
  }
  const auto data_at = f.tellg();
  f.seekg(0, std::ios::end);
  if (f.tellg() - data_at != want)
    throw DataError(path + ": shape " + shape.str() + " wants " + std::to_string(want) +
                    " bytes, the file holds " + std::to_string(f.tellg() - data_at));
  f.seekg(data_at);
  Tensor t = host.allocate(dtype, shape, MemoryClass::input);
  if (narrow) {
    std::vector<int64_t> wide(static_cast<size_t>(t.numel()));
    f.read(reinterpret_cast<char*>(wide.data()), want);
    for (size_t i = 0; i < wide.size(); ++i) {
      if (wide[i] < std::numeric_limits<int32_t>::min() || wide[i] > std::numeric_limits<int32_t>::max())
        throw DataError(path + ": element " + std::to_string(i) + " does not fit 32 bits");
      t.data<int32_t>()[i] = static_cast<int32_t>(wide[i]);
    }
  } else {
    f.read(static_cast<char*>(t.raw()), want);
  }
  if (!f) throw DataError(path + ": the data cannot be read");
  return t;
}

void write_npy(const std::string& path, const Tensor& tensor) {
  if (tensor.device() != DeviceKind::cpu || !tensor.contiguous())
    throw UsageError("writing " + path + ": a contiguous host tensor is wanted");
  if (tensor.dtype() == DType::bf16) {
    // NumPy has no bf16: widen, exactly.
    std::vector<float> wide(static_cast<size_t>(tensor.numel()));
    convert(tensor.raw(), DType::bf16, wide.data(), DType::f32, tensor.numel());
    return write_npy(path, Tensor::borrow(DeviceKind::cpu, DType::f32, tensor.shape(), wide.data()));
  }
  const char* descr = tensor.dtype() == DType::f64   ? "<f8"
                      : tensor.dtype() == DType::f32 ? "<f4"
                      : tensor.dtype() == DType::f16 ? "<f2"
                      : tensor.dtype() == DType::i32 ? "<i4"
                                                     : "|u1";
  std::string shape = "(";
  for (const int64_t d : tensor.shape()) shape += std::to_string(d) + ",";
  std::string header =
      std::string("{'descr': '") + descr + "', 'fortran_order': False, 'shape': " + shape + "), }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';  // the format aligns data to 64 bytes
  header += '\n';
  const uint16_t header_bytes = static_cast<uint16_t>(header.size());
  AtomicFile f(path);
  f.write("\x93NUMPY\x01\x00", 8);
  f.write(&header_bytes, 2);
  f.write(header.data(), header.size());
  f.write(tensor.raw(), static_cast<size_t>(tensor.nbytes()));
  f.commit();
}

}  // namespace attnbench
