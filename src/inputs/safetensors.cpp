// Reads and writes .safetensors: 8 bytes of header length, a JSON header, then the data of every tensor.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "inputs/atomic_file.hpp"
#include "inputs/inputs.hpp"

namespace attnbench {

namespace {

using nlohmann::json;
static_assert(std::endian::native == std::endian::little,
              "safetensors data is little endian and is read as it is");

constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own limit

struct FileType {
  DType dtype;          ///< in memory
  size_t bytes;         ///< an element in the file
  bool narrow = false;  ///< I64, narrowed to i32
};

FileType file_type(const std::string& word, const std::string& where) {
  if (word == "F64") return {DType::f64, 8};
  if (word == "F32") return {DType::f32, 4};
  if (word == "BF16") return {DType::bf16, 2};
  if (word == "F16") return {DType::f16, 2};
  if (word == "I32") return {DType::i32, 4};
  if (word == "I64") return {DType::i32, 8, true};
  if (word == "U8" || word == "BOOL") return {DType::u8, 1};
  throw DataError(where + ": dtype '" + word +
                  "' is not supported; F64, F32, BF16, F16, I32, I64, U8, BOOL are");
}

const char* file_word(DType t) {
  switch (t) {
    case DType::f64:
      return "F64";
    case DType::f32:
      return "F32";
    case DType::bf16:
      return "BF16";
    case DType::f16:
      return "F16";
    case DType::i32:
      return "I32";
    case DType::u8:
      return "U8";
  }
  return "?";
}

/// Parses the header and refuses duplicate names, which JSON libraries silently merge.
json parse_header(const std::string& text, const std::string& path) {
  std::set<std::string> seen;
  std::string duplicate;
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > 4) throw DataError(path + ": the header is nested too deeply to be a safetensors header");
    if (depth == 1 && event == json::parse_event_t::key && !seen.insert(parsed.get<std::string>()).second)
      duplicate = parsed.get<std::string>();
    return true;
  };
  json header;
  try {
    header = json::parse(text, watch);
  } catch (const json::exception& e) {
    throw DataError(path + ": the header is not valid JSON: " + e.what());
  }
  if (!duplicate.empty()) throw DataError(path + ": the header names tensor '" + duplicate + "' twice");
  if (!header.is_object()) throw DataError(path + ": the header is not a JSON object");
  return header;
}

struct Entry {
  std::string name;
  FileType type{};
  Shape shape;
  uint64_t begin = 0, end = 0;
};

Entry read_entry(const std::string& name, const json& j, uint64_t data_bytes, const std::string& path) {
  const std::string where = path + ": tensor '" + name + "'";
  Entry e;
  e.name = name;
  try {
    e.type = file_type(j.at("dtype").get<std::string>(), where);
    std::vector<int64_t> dims;
    for (const json& d : j.at("shape")) {
      if (!d.is_number_unsigned() ||
          d.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        throw DataError(where + ": shape " + j.at("shape").dump() + " has an entry that is no valid extent");
      dims.push_back(static_cast<int64_t>(d.get<uint64_t>()));
    }
    e.shape = Shape(dims);
    const json& offsets = j.at("data_offsets");
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned())
      throw DataError(where + ": data_offsets must be two whole numbers, not " + offsets.dump());
    e.begin = offsets[0].get<uint64_t>();
    e.end = offsets[1].get<uint64_t>();
  } catch (const json::exception& x) {
    throw DataError(where + ": its header entry is incomplete or has a wrong type: " + x.what());
  } catch (const DataError&) {
    throw;
  } catch (const UsageError& x) {
    throw DataError(where + ": " + x.what());
  }
  if (e.begin > e.end || e.end > data_bytes)
    throw DataError(where + ": data_offsets [" + std::to_string(e.begin) + ", " + std::to_string(e.end) +
                    "] lie outside the " + std::to_string(data_bytes) + " bytes of data");
  int64_t bytes = 0;
  int64_t count = 0;
  try {
    count = e.shape.numel();
  } catch (const UsageError& x) {
    throw DataError(where + ": " + x.what());
  }
  if (__builtin_mul_overflow(count, static_cast<int64_t>(e.type.bytes), &bytes) ||
      static_cast<uint64_t>(bytes) != e.end - e.begin)
    throw DataError(where + ": shape " + e.shape.str() + " does not fill its " +
                    std::to_string(e.end - e.begin) + " bytes");
  return e;
}

/// Everything before the data: entries by place in the file, checked against its size.
struct Header {
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;
};

Header read_header(std::ifstream& f, const std::string& path) {
  if (!f) throw DataError(path + ": cannot be opened: " + std::strerror(errno));
  f.seekg(0, std::ios::end);
  const std::streamoff size = f.tellg();
  f.seekg(0);
  if (size < 8)
    throw DataError(path + ": " + std::to_string(std::max<std::streamoff>(size, 0)) +
                    " bytes are too few for a safetensors file");
  uint64_t header_bytes = 0;
  f.read(reinterpret_cast<char*>(&header_bytes), 8);
  if (header_bytes > static_cast<uint64_t>(size) - 8)
    throw DataError(path + ": the header claims " + std::to_string(header_bytes) +
                    " bytes, but the file has " + std::to_string(size) +
                    "; it is truncated or no safetensors file");
  if (header_bytes > kMaxHeader)
    throw DataError(path + ": a header of " + std::to_string(header_bytes) +
                    " bytes exceeds the format's 100 MB");
  std::string text(header_bytes, '\0');
  if (!f.read(text.data(), static_cast<std::streamsize>(header_bytes)))
    throw DataError(path + ": cannot be read");
  const json header = parse_header(text, path);
  const uint64_t data_bytes = static_cast<uint64_t>(size) - 8 - header_bytes;

  Header out;
  out.data_begin = 8 + header_bytes;
  for (const auto& [key, value] : header.items()) {
    if (key == "__metadata__") {
      if (!value.is_object()) throw DataError(path + ": __metadata__ is not an object");
      for (const auto& [k, v] : value.items())
        out.metadata[k] = v.is_string() ? v.get<std::string>() : v.dump();
    } else {
      out.entries.push_back(read_entry(key, value, data_bytes, path));
    }
  }
  std::sort(out.entries.begin(), out.entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  uint64_t at = 0;
  for (const Entry& e : out.entries) {
    if (e.begin < at) throw DataError(path + ": tensor '" + e.name + "' overlaps the one before it");
    if (e.begin > at)
      throw DataError(path + ": " + std::to_string(e.begin - at) + " bytes before tensor '" + e.name +
                      "' belong to no tensor");
    at = e.end;
  }
  if (at != data_bytes)
    throw DataError(path + ": the last " + std::to_string(data_bytes - at) + " bytes belong to no tensor");
  return out;
}

/// I64 of a file to the i32 of memory; `first` is the index of wide[0] in its tensor.
void narrow(const std::vector<int64_t>& wide, int64_t first, int32_t* out, const std::string& where) {
  for (size_t i = 0; i < wide.size(); ++i) {
    if (wide[i] < std::numeric_limits<int32_t>::min() || wide[i] > std::numeric_limits<int32_t>::max())
      throw DataError(where + ": element " + std::to_string(first + static_cast<int64_t>(i)) + " = " +
                      std::to_string(wide[i]) + " does not fit 32 bits");
    out[i] = static_cast<int32_t>(wide[i]);
  }
}

}  // namespace

struct SafetensorsFile::Open {
  std::string path;
  std::ifstream file;
  Header header;

  void read(const attnbench::Entry& e, int64_t first, int64_t count, void* out) {
    const auto bytes = static_cast<int64_t>(e.type.bytes);
    if (first < 0 || count < 0 || first > e.shape.numel() - count)
      throw UsageError(path + ": tensor '" + e.name + "' has no elements " + std::to_string(first) + " to " +
                       std::to_string(first + count));
    file.clear();
    file.seekg(static_cast<std::streamoff>(header.data_begin + e.begin) + first * bytes);
    file.read(static_cast<char*>(out), count * bytes);
    if (!file) throw DataError(path + ": the data of tensor '" + e.name + "' cannot be read");
  }
  std::string where(const attnbench::Entry& e) const { return path + ": tensor '" + e.name + "'"; }
};

SafetensorsFile::SafetensorsFile(const std::string& path) : open_(std::make_unique<Open>()) {
  open_->path = path;
  open_->file.open(path, std::ios::binary);
  open_->header = read_header(open_->file, path);
  for (const attnbench::Entry& e : open_->header.entries) entries_.push_back({e.name, e.type.dtype, e.shape});
}

SafetensorsFile::~SafetensorsFile() = default;

const std::string& SafetensorsFile::path() const { return open_->path; }

void SafetensorsFile::read(size_t entry, int64_t first, int64_t count, float* out) {
  const attnbench::Entry& e = open_->header.entries.at(entry);
  if (e.type.dtype == DType::i32 || e.type.dtype == DType::u8)
    throw DataError(open_->where(e) + " is of " + std::string(name(e.type.dtype)) + ", not of floats");
  if (e.type.dtype == DType::f32) return open_->read(e, first, count, out);
  std::vector<char> raw(static_cast<size_t>(count) * e.type.bytes);
  open_->read(e, first, count, raw.data());
  convert(raw.data(), e.type.dtype, out, DType::f32, count);
}

void SafetensorsFile::read(size_t entry, int64_t first, int64_t count, int32_t* out) {
  const attnbench::Entry& e = open_->header.entries.at(entry);
  if (e.type.dtype != DType::i32)
    throw DataError(open_->where(e) + " is of " + std::string(name(e.type.dtype)) + ", not of whole numbers");
  if (!e.type.narrow) return open_->read(e, first, count, out);
  std::vector<int64_t> wide(static_cast<size_t>(count));
  open_->read(e, first, count, wide.data());
  narrow(wide, first, out, open_->where(e));
}

std::map<std::string, Shape> safetensors_shapes(const std::string& path) {
  std::ifstream f(path, std::ios::binary);
  std::map<std::string, Shape> shapes;
  for (const Entry& e : read_header(f, path).entries) shapes[e.name] = e.shape;
  return shapes;
}

TensorFile read_safetensors(Context& host, const std::string& path) {
  std::ifstream f(path, std::ios::binary);
  Header header = read_header(f, path);
  TensorFile out;
  out.metadata = std::move(header.metadata);
  const std::vector<Entry>& entries = header.entries;
  for (const Entry& e : entries) {
    Tensor t = host.allocate(e.type.dtype, e.shape, MemoryClass::input);
    f.seekg(static_cast<std::streamoff>(header.data_begin + e.begin));
    if (e.type.narrow) {
      std::vector<int64_t> wide(static_cast<size_t>(t.numel()));
      f.read(reinterpret_cast<char*>(wide.data()), static_cast<std::streamsize>(e.end - e.begin));
      if (f) narrow(wide, 0, t.data<int32_t>(), path + ": tensor '" + e.name + "'");
    } else {
      f.read(static_cast<char*>(t.raw()), static_cast<std::streamsize>(e.end - e.begin));
    }
    if (!f) throw DataError(path + ": the data of tensor '" + e.name + "' cannot be read");
    out.tensors[e.name] = t;
  }
  return out;
}

void write_safetensors(const std::string& path, const TensorMap& tensors,
                       const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t at = 0;
  for (const auto& [key, t] : tensors) {
    if (t.device() != DeviceKind::cpu || !t.contiguous())
      throw UsageError("writing '" + key + "': a contiguous host tensor is wanted");
    const uint64_t bytes = static_cast<uint64_t>(t.nbytes());
    header[key] = {{"dtype", file_word(t.dtype())},
                   {"shape", std::vector<int64_t>(t.shape().begin(), t.shape().end())},
                   {"data_offsets", {at, at + bytes}}};
    at += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data starts 8-byte aligned
  const uint64_t header_bytes = text.size();
  AtomicFile f(path);
  f.write(&header_bytes, 8);
  f.write(text.data(), text.size());
  for (const auto& [key, t] : tensors) f.write(t.raw(), static_cast<size_t>(t.nbytes()));
  f.commit();
}

}  // namespace attnbench
