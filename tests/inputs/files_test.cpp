// Tensor files: round trips, and headers that lie.
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "inputs/apply.hpp"
#include "inputs/inputs.hpp"
#include "tests/catch.hpp"

using namespace attnbench;
namespace fs = std::filesystem;

namespace {

struct Folder {
  fs::path path = fs::temp_directory_path() / ("attnbench_files_" + std::to_string(::getpid()));
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  std::string file(const std::string& name) const { return (path / name).string(); }
};

std::string bytes_of(const std::string& header, size_t data_bytes, int64_t claimed = -1) {
  const uint64_t n = claimed >= 0 ? static_cast<uint64_t>(claimed) : header.size();
  std::string s(8, '\0');
  std::memcpy(s.data(), &n, 8);
  return s + header + std::string(data_bytes, '\1');
}

void spill(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

TEST_CASE("safetensors survive a round trip in every dtype, special values included") {
  Folder folder;
  Context host(cpu_backend(), 1);
  TensorMap all;
  for (DType t : {DType::f64, DType::f32, DType::bf16, DType::f16, DType::i32, DType::u8}) {
    Tensor x = host.allocate(t, {2, 3});
    for (size_t i = 0; i < static_cast<size_t>(x.nbytes()); ++i)
      static_cast<uint8_t*>(x.raw())[i] = uint8_t(i * 37);
    all[std::string(name(t))] = x;
  }
  Tensor odd = host.allocate(DType::f32, {3});
  odd.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  odd.data<float>()[1] = -std::numeric_limits<float>::infinity();
  odd.data<float>()[2] = 1e-42f;
  all["odd"] = odd;
  all["empty"] = host.allocate(DType::f32, {0, 4});
  all["scalar"] = host.allocate(DType::u8, Shape{});
  all["scalar"].data<uint8_t>()[0] = 9;
  write_safetensors(folder.file("a.safetensors"), all, {{"format", "pt"}});
  const TensorFile back = read_safetensors(host, folder.file("a.safetensors"));
  REQUIRE(back.tensors.size() == all.size());
  const std::map<std::string, Shape> shapes = safetensors_shapes(folder.file("a.safetensors"));
  REQUIRE(shapes.size() == all.size());
  for (const auto& [key, t] : all) CHECK(shapes.at(key) == t.shape());
  CHECK(back.metadata.at("format") == "pt");
  for (const auto& [key, t] : all) {
    INFO(key);
    const Tensor& u = back.tensors.at(key);
    REQUIRE(u.shape() == t.shape());
    REQUIRE(u.dtype() == t.dtype());
    CHECK(std::memcmp(u.raw(), t.raw(), static_cast<size_t>(t.nbytes())) == 0);
  }
}

TEST_CASE("damaged safetensors are refused with the file and the reason") {
  Folder folder;
  Context host(cpu_backend(), 1);
  const std::string good = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  struct Bad {
    std::string bytes, says;
  };
  const std::vector<Bad> cases{
      {"", "too few"},
      {"1234567", "too few"},
      {bytes_of(good, 8, 1 << 20), "truncated"},
      {bytes_of(good, 8, std::numeric_limits<int64_t>::max()), "truncated"},
      {bytes_of(good, 4), "outside"},
      {bytes_of(good, 12), "belong to no tensor"},
      {bytes_of("{nonsense", 0), "not valid JSON"},
      {bytes_of("[1]", 0), "not a JSON object"},
      {bytes_of(R"({"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8), "does not fill"},
      {bytes_of(R"({"x":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})", 2), "not supported"},
      {bytes_of(R"({"x":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8), "no valid extent"},
      {bytes_of(R"({"x":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}})", 8),
       "64-bit"},
      {bytes_of(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8), "outside"},
      {bytes_of(R"({"x":{"dtype":"F32","shape":[2]}})", 8), "incomplete"},
      {bytes_of(R"({"x":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}})", 8),
       "at most 8 axes"},
      {bytes_of(
           R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"y":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
           12),
       "overlaps"},
      {bytes_of(
           R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})",
           8),
       "twice"},
      {bytes_of(std::string(200, '[') + std::string(200, ']'), 0), "deeply"},
  };
  for (const Bad& bad : cases) {
    INFO(bad.says);
    spill(folder.file("bad.safetensors"), bad.bytes);
    REQUIRE_THROWS_WITH(read_safetensors(host, folder.file("bad.safetensors")),
                        ContainsSubstring("bad.safetensors") && ContainsSubstring(bad.says));
  }
  REQUIRE_THROWS_AS(read_safetensors(host, folder.file("none.safetensors")), DataError);
}

TEST_CASE("a good file cut at any byte is refused, never read") {
  Folder folder;
  Context host(cpu_backend(), 1);
  Tensor x = host.allocate(DType::f32, {5});
  for (int i = 0; i < 5; ++i) x.data<float>()[i] = float(i);
  write_safetensors(folder.file("g.safetensors"), {{"x", x}});
  std::ifstream f(folder.file("g.safetensors"), std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(f)), {});
  for (size_t n = 0; n < all.size(); ++n) {
    spill(folder.file("c.safetensors"), all.substr(0, n));
    REQUIRE_THROWS_AS(read_safetensors(host, folder.file("c.safetensors")), DataError);
  }
}

TEST_CASE("64-bit indices are narrowed, and refused where they do not fit") {
  Folder folder;
  Context host(cpu_backend(), 1);
  const std::string header = R"({"i":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}})";
  std::string bytes = bytes_of(header, 0);
  const int64_t fits[2] = {-5, 2147483647}, wide[2] = {0, 2147483648};
  spill(folder.file("i.safetensors"), bytes + std::string(reinterpret_cast<const char*>(fits), 16));
  CHECK(read_safetensors(host, folder.file("i.safetensors")).tensors.at("i").data<int32_t>()[0] == -5);
  spill(folder.file("i.safetensors"), bytes + std::string(reinterpret_cast<const char*>(wide), 16));
  REQUIRE_THROWS_WITH(read_safetensors(host, folder.file("i.safetensors")), ContainsSubstring("element 1"));
}

TEST_CASE(".npy files survive a round trip and damage is refused") {
  Folder folder;
  Context host(cpu_backend(), 1);
  Tensor x = host.allocate(DType::f32, {2, 3});
  for (int i = 0; i < 6; ++i) x.data<float>()[i] = float(i) / 3;
  write_npy(folder.file("x.npy"), x);
  const Tensor y = read_npy(host, folder.file("x.npy"));
  REQUIRE(y.shape() == x.shape());
  CHECK(std::memcmp(x.raw(), y.raw(), 24) == 0);
  std::ifstream f(folder.file("x.npy"), std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(f)), {});
  CHECK((all.size() - 24) % 64 == 0);
  for (size_t n = 0; n < all.size(); n += 3) {
    spill(folder.file("c.npy"), all.substr(0, n));
    REQUIRE_THROWS_AS(read_npy(host, folder.file("c.npy")), DataError);
  }
  std::string fortran = all;
  fortran.replace(fortran.find("False"), 5, "True ");
  spill(folder.file("f.npy"), fortran);
  REQUIRE_THROWS_WITH(read_npy(host, folder.file("f.npy")), ContainsSubstring("Fortran"));
}

TEST_CASE("writing to a full disk or a missing folder fails and leaves nothing behind") {
  Folder folder;
  Context host(cpu_backend(), 1);
  Tensor x = host.allocate(DType::f32, {1 << 16});
  std::memset(x.raw(), 0, static_cast<size_t>(x.nbytes()));
  REQUIRE_THROWS_WITH(write_safetensors("/dev/full", {{"x", x}}), ContainsSubstring("No space left"));
  REQUIRE_THROWS_AS(write_safetensors(folder.file("no/such/x.safetensors"), {{"x", x}}), Error);
  write_safetensors(folder.file("x.safetensors"), {{"x", x}});
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);
}

TEST_CASE("case files name what is wrong with them") {
  Folder folder;
  spill(folder.file("c.json"), R"({"method":"hilo","problem":{"kind":"imag"}})");
  REQUIRE_THROWS_WITH(read_case_file(folder.file("c.json")), ContainsSubstring("did you mean 'image'"));
  spill(folder.file("c.json"), R"({"method":"hilo","problem":{"kind":"image","batch":0}})");
  REQUIRE_THROWS_WITH(read_case_file(folder.file("c.json")), ContainsSubstring("problem.batch"));
  spill(folder.file("c.json"), R"({"problem":{}})");
  REQUIRE_THROWS_WITH(read_case_file(folder.file("c.json")), ContainsSubstring("method"));
  spill(folder.file("c.json"), "{");
  REQUIRE_THROWS_AS(read_case_file(folder.file("c.json")), DataError);
}

TEST_CASE("safetensors are read in parts as they are read whole") {
  Folder folder;
  Context host(cpu_backend(), 1);
  const std::string path = folder.file("parts.safetensors");
  TensorMap all;
  for (DType t : {DType::f64, DType::f32, DType::bf16, DType::f16}) {
    Tensor x = host.allocate(DType::f32, {5, 7}), y = host.allocate(t, {5, 7});
    for (int i = 0; i < 35; ++i) x.data<float>()[i] = float(i) - 9;  // exact in every type
    convert(x.raw(), DType::f32, y.raw(), t, 35);
    all[std::string(name(t))] = y;
  }
  all["ids"] = host.allocate(DType::i32, {6});
  for (int i = 0; i < 6; ++i) all["ids"].data<int32_t>()[i] = 100 - i;
  write_safetensors(path, all);
  SafetensorsFile f(path);
  REQUIRE(f.entries().size() == 5);
  CHECK(f.path() == path);
  for (size_t e = 0; e < 5; ++e) {
    CAPTURE(f.entries()[e].name);
    std::vector<float> part(4, 0.0f);
    std::vector<int32_t> ids(4, 0);
    if (f.entries()[e].name == "ids") {
      f.read(e, 2, 4, ids.data());
      CHECK(ids == std::vector<int32_t>{98, 97, 96, 95});
      CHECK_THROWS_AS(f.read(e, 0, 1, part.data()), DataError);
      CHECK_THROWS_AS(f.read(e, 3, 4, ids.data()), UsageError);
      continue;
    }
    CHECK(f.entries()[e].shape == Shape{5, 7});
    f.read(e, 31, 4, part.data());
    CHECK(part == std::vector<float>{22, 23, 24, 25});
    f.read(e, 8, 3, part.data());
    CHECK(part == std::vector<float>{-1, 0, 1, 25});
    CHECK_THROWS_AS(f.read(e, 32, 4, part.data()), UsageError);
    CHECK_THROWS_AS(f.read(e, 0, 1, ids.data()), DataError);
  }
  // I64 is narrowed, and what does not fit is named by its own index.
  const std::string wide = R"({"t":{"dtype":"I64","shape":[3],"data_offsets":[0,24]}})";
  std::string bytes = bytes_of(wide, 0);
  for (const int64_t v : {int64_t{5}, int64_t{-6}, int64_t{1} << 40})
    bytes.append(reinterpret_cast<const char*>(&v), 8);
  spill(folder.file("wide.safetensors"), bytes);
  SafetensorsFile w(folder.file("wide.safetensors"));
  std::vector<int32_t> ids(2);
  w.read(0, 0, 2, ids.data());
  CHECK(ids == std::vector<int32_t>{5, -6});
  CHECK_THROWS_WITH(w.read(0, 1, 2, ids.data()), ContainsSubstring("element 2"));
  CHECK_THROWS_AS(SafetensorsFile(folder.file("none.safetensors")), DataError);
}
