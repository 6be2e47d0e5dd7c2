// One layer and some heads of a file that holds a model's: what is read, and what is refused.
#include <unistd.h>

#include <filesystem>

#include "suite/parse.hpp"
#include "tests/methods/method_check.hpp"

using namespace attnbench;
using namespace attnbench::testing;

namespace {

struct File {
  std::string path = (std::filesystem::temp_directory_path() /
                      ("attnbench_layers_" + std::to_string(::getpid()) + ".safetensors"))
                         .string();
  /// Two layers, four heads over two key heads, three tokens, two wide; a value says where it stands.
  File() {
    Context ctx(cpu_backend(), 1);
    TensorFile f;
    for (int64_t layer = 0; layer < 2; ++layer)
      for (const char* name : {"q", "k", "v"}) {
        const int64_t heads = name[0] == 'q' ? 4 : 2;
        std::vector<double> values;
        for (int64_t h = 0; h < heads; ++h)
          for (int64_t e = 0; e < 6; ++e) values.push_back(static_cast<double>(100 * layer + 10 * h + e));
        f.tensors["layers." + std::to_string(layer) + "." + name] =
            host_tensor(ctx, {1, heads, 3, 2}, values);
      }
    write_safetensors(path, f.tensors);
  }
  ~File() { std::filesystem::remove(path); }
};

Problem problem(const File& file, int64_t heads, int64_t kv_heads, std::map<std::string, Value> arguments) {
  Problem p = heads_problem(1, heads, kv_heads, 3, 3, 2, true);
  p.inputs.file = file.path;
  p.inputs.arguments = std::move(arguments);
  return p;
}

std::vector<double> input(const Trial& t, const char* name) {
  return to_reference(t.instance->inputs().at(name)).data;
}

}  // namespace

TEST_CASE("a layer of a file, whole") {
  const File file;
  const Trial t = make_trial("dense", problem(file, 4, 2, {{"layer", 1}}));
  CHECK(input(t, "q").size() == 24);
  CHECK(input(t, "q")[6] == 110);
  CHECK(input(t, "v")[0] == 100);
}

TEST_CASE("heads of a layer, and the key heads of their groups") {
  const File file;
  Trial t = make_trial("dense", problem(file, 2, 1, {{"layer", 1}, {"first_head", 2}}));
  CHECK(input(t, "q") == std::vector<double>{120, 121, 122, 123, 124, 125, 130, 131, 132, 133, 134, 135});
  CHECK(input(t, "k") == std::vector<double>{110, 111, 112, 113, 114, 115});
  t.run();
  CHECK(t.output("o")[0] == Approx(110));  // the first row sees the first key only
}

TEST_CASE("layers and heads that are not there are refused by name") {
  const File file;
  CHECK_THROWS_WITH(make_trial("dense", problem(file, 4, 2, {{"layer", 2}})),
                    ContainsSubstring("layers.2.q"));
  CHECK_THROWS_AS(make_trial("dense", problem(file, 4, 2, {})), DataError);
  CHECK_THROWS_WITH(make_trial("dense", problem(file, 2, 1, {{"layer", 0}, {"first_head", 4}})),
                    ContainsSubstring("4 to 6"));
  CHECK_THROWS_WITH(make_trial("dense", problem(file, 2, 1, {{"layer", 0}, {"first_head", 1}})),
                    ContainsSubstring("group of 2"));
  CHECK_THROWS_AS(make_trial("dense", problem(file, 4, 2, {{"layer", -1}})), UsageError);
}

TEST_CASE("a suite names the layer and the first head") {
  const File file;
  const auto suite = [&](const std::string& more) {
    return "suite: layers\ntitle: Layers\nproblem: { kind: sequence, heads: 2, kv_heads: 1, length: 3, "
           "head_dim: 2, "
           "inputs: { file: " +
           file.path + more + " } }\ncases: [dense]\n";
  };
  const Suite s = parse_suite(suite(", layer: 1, first_head: 2"), "layers.yaml");
  CHECK(s.cases.at(0).problem.inputs.arguments.at("layer") == Value(1));
  CHECK(s.resolved_text != parse_suite(suite(", layer: 0, first_head: 2"), "layers.yaml").resolved_text);
  CHECK_THROWS_WITH(parse_suite(suite(", lair: 1"), "layers.yaml"),
                    ContainsSubstring("layer and first_head"));
  CHECK_THROWS_WITH(parse_suite(suite(", layer: x"), "layers.yaml"), ContainsSubstring("whole number"));
}
