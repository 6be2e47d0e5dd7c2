// Runs a fuzz target without libFuzzer: every file of the kept corpus, and simple changes of each from a
// fixed seed. Short, deterministic, with any compiler; for finding new inputs there is the preset `fuzz`.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz.hpp"

namespace {

namespace fs = std::filesystem;

// Half a second a target for a corpus of twenty files of a few KiB.
constexpr int kChanges = 60;

uint64_t state = 1;
uint64_t random_below(uint64_t n) {
  state = state * 6364136223846793005ull + 1442695040888963407ull;  // Knuth's MMIX generator
  return n ? (state >> 33) % n : 0;
}

void run(const std::string& bytes) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
}

std::string changed(std::string s) {
  const int n = 1 + static_cast<int>(random_below(3));
  for (int i = 0; i < n && !s.empty(); ++i) {
    const size_t at = random_below(s.size());
    switch (random_below(5)) {
      case 0:
        s.resize(at);
        break;
      case 1:
        s[at] = static_cast<char>(random_below(256));
        break;
      case 2:
        s.erase(at, 1 + random_below(16));
        break;
      case 3:
        s.insert(at, s.substr(random_below(s.size()), 1 + random_below(32)));
        break;
      case 4:
        s[at] = "{}[]\",:\\0-9e"[random_below(12)];
        break;
    }
  }
  return s;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
    return 2;
  }
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(argv[1]))
    if (entry.is_regular_file()) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  if (files.empty()) {
    std::fprintf(stderr, "the corpus %s is empty\n", argv[1]);
    return 2;
  }
  size_t inputs = 0;
  run("");
  for (const fs::path& f : files) {
    std::ifstream in(f, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(in), {}};
    run(bytes);
    for (int i = 0; i < kChanges; ++i, ++inputs) run(changed(bytes));
  }
  std::printf("%zu files and %zu changes of them\n", files.size(), inputs);
}
