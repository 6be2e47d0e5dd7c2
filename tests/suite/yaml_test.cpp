#include "suite/yaml.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "tests/catch.hpp"

using namespace attnbench;

namespace {

std::string error(const std::string& text) {
  try {
    yaml::parse(text, "f.yaml");
  } catch (const SuiteErrors& e) {
    return e.what();
  }
  return "";
}

std::string read_error(const std::string& path) {
  try {
    yaml::read(path);
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

struct TempDir {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("attnbench_yaml_" + std::to_string(getpid()));
  TempDir() { std::filesystem::create_directories(path); }
  ~TempDir() { std::filesystem::remove_all(path); }
};

}  // namespace

TEST_CASE("nodes know their kind, type, order and place") {
  const yaml::NodePtr root =
      yaml::parse("b: 1\na:\n  - x\n  - \"64\"\nc: { d: 0.5, e: null, f: true }\n", "f.yaml");
  REQUIRE(root->is_map());
  REQUIRE(root->entries.size() == 3);
  CHECK(root->entries[0].key == "b");
  CHECK(root->entries[1].key == "a");
  CHECK(root->entries[1].key_place.str() == "f.yaml:2:1");
  const yaml::Node& list = *root->find("a")->value;
  REQUIRE(list.items.size() == 2);
  CHECK(list.items[0]->value == Value("x"));
  CHECK(list.items[1]->value == Value("64"));
  CHECK(list.items[1]->quoted);
  CHECK(list.items[1]->place.str() == "f.yaml:4:5");
  CHECK(list.items[1]->text_column == 6);  // behind the quote
  const yaml::Node& map = *root->find("c")->value;
  CHECK(map.find("d")->value->value == Value(0.5));
  CHECK(map.find("e")->value->is_null());
  CHECK(map.find("f")->value->value == Value(true));
  CHECK(map.find("g") == nullptr);
}

TEST_CASE("plain scalars are typed strictly") {
  const auto typed = [](const std::string& s) {
    std::string e;
    const Value v = yaml::typed(s, e);
    CHECK(e == "");
    return v;
  };
  CHECK(typed("64") == Value(64));
  CHECK(typed("-3") == Value(-3));
  CHECK(typed("+3") == Value(3));
  CHECK(typed("1e3") == Value(1000.0));
  CHECK(typed("-1.5E-2") == Value(-0.015));
  CHECK(typed(".5") == Value(0.5));
  CHECK(typed("5.") == Value(5.0));
  CHECK(typed("1e-999") == Value(0.0));
  CHECK(typed("9223372036854775807") == Value(INT64_MAX));
  CHECK(typed("-9223372036854775808") == Value(INT64_MIN));
  CHECK(typed("~").is_null());
  CHECK(typed("yes") == Value("yes"));
  CHECK(typed("1_000") == Value("1_000"));
  CHECK(typed("0x10") == Value("0x10"));
  CHECK(typed("1.2.3") == Value("1.2.3"));
  CHECK(typed("1%") == Value("1%"));
  CHECK(typed("-") == Value("-"));
  CHECK(typed("e5") == Value("e5"));
  CHECK_THAT(error("a: 9223372036854775808\n"), ContainsSubstring("f.yaml:1:4: the whole number"));
  CHECK_THAT(error("a: -1e400\n"), ContainsSubstring("does not fit into a double"));
  CHECK_THAT(error("a: .inf\n"), ContainsSubstring("only finite numbers"));
}

TEST_CASE("anchors, aliases and merge keys") {
  const yaml::NodePtr root = yaml::parse(
      "base: &b { x: 1, y: 2 }\nmore: &m { y: 3, z: 4 }\none: { <<: *b, y: 5 }\ntwo: { <<: [*b, *m] }\nsame: "
      "*b\n",
      "f.yaml");
  const auto value = [&](const char* map, const char* key) {
    const yaml::Entry* e = root->find(map)->value->find(key);
    return e ? e->value->value : Value();
  };
  CHECK(value("one", "x") == Value(1));
  CHECK(value("one", "y") == Value(5));  // own keys win
  CHECK(value("two", "y") == Value(2));  // the first of several wins
  CHECK(value("two", "z") == Value(4));
  CHECK(value("same", "y") == Value(2));
  CHECK(root->find("same")->value == root->find("base")->value);  // shared, not copied
  CHECK_THAT(error("a: { <<: 3 }\n"), ContainsSubstring("a merge key `<<` wants a map"));
  CHECK_THAT(error("a: { <<: [[{ x: 1 }]] }\n"), ContainsSubstring("a merge key `<<` wants a map"));
  CHECK_THAT(error("a: *nowhere\n"), ContainsSubstring("f.yaml:1:"));
  CHECK_THAT(error("a: &x [*x]\n"), ContainsSubstring("contains it"));
}

TEST_CASE("files that YAML would take and a reader would not") {
  CHECK_THAT(error("a: 1\nb: 2\na: 3\n"),
             ContainsSubstring("f.yaml:3:1: duplicate key 'a'; it was set in line 1"));
  CHECK_THAT(error("a: { b: 1, b: 2 }\n"), ContainsSubstring("f.yaml:1:12: duplicate key 'b'"));
  CHECK_THAT(error("[1, 2]: 3\n"), ContainsSubstring("a key must be a word"));
  CHECK_THAT(error("a: 1\n---\nb: 2\n"), ContainsSubstring("a second document"));
  CHECK_THAT(error("a: !!python/object 1\n"), ContainsSubstring("is not supported"));
  CHECK_THAT(error("a: !mine [1]\n"), ContainsSubstring("is not supported"));
  CHECK(error("a: !!str 1\n").empty());
  CHECK_THAT(error(""), ContainsSubstring("the file is empty"));
  CHECK_THAT(error("# only a comment\n"), ContainsSubstring("the file is empty"));
  CHECK_THAT(error("---\n...\n"), ContainsSubstring("the file is empty"));
  CHECK_THAT(error("a:\n\tb: 1\n"), ContainsSubstring("f.yaml:2:1: a tab in the indentation"));
  CHECK(error("a: 1\t# a tab between is fine\n").empty());
  CHECK_THAT(error(std::string("a: 1\nb: \0", 9) + "\n"), ContainsSubstring("f.yaml:2:4: a NUL byte"));
  CHECK_THAT(error("a: \xff\n"), ContainsSubstring("f.yaml:1:4: a byte that is not valid UTF-8"));
  CHECK_THAT(error("a: \xc0\xaf\n"), ContainsSubstring("UTF-8"));          // overlong
  CHECK_THAT(error("a: \xed\xa0\x80\n"), ContainsSubstring("UTF-8"));      // surrogate
  CHECK_THAT(error("a: \xf4\x90\x80\x80\n"), ContainsSubstring("UTF-8"));  // above U+10FFFF
  CHECK_THAT(error("a: \xe2\x82"), ContainsSubstring("UTF-8"));            // cut short
  CHECK(error("a: \xe2\x82\xac \xf0\x9f\x98\x80\n").empty());
  CHECK(yaml::parse("\xef\xbb\xbf"
                    "a: 1\n",
                    "f")
            ->find("a") != nullptr);
  CHECK(yaml::parse("a: 1\r\nb: 2\r\n", "f")->find("b")->value->value == Value(2));
  CHECK_THAT(error("a: [1, 2\nb: 3\n"), ContainsSubstring("malformed YAML"));
  CHECK_THAT(error("a: 1\n  b: 2\n"), ContainsSubstring("f.yaml:2:"));
  CHECK_THAT(error("a: 'open\n"), ContainsSubstring("malformed YAML"));
}

TEST_CASE("bombs are refused, and quickly") {
  const auto start = std::chrono::steady_clock::now();
  std::string laughs = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i < 30; ++i) {
    const std::string p = "*l" + std::to_string(i - 1);
    laughs += "l" + std::to_string(i) + ": &l" + std::to_string(i) + " [";
    for (int k = 0; k < 10; ++k) laughs += (k ? ", " : "") + p;
    laughs += "]\n";
  }
  CHECK_THAT(error(laughs), ContainsSubstring("the aliases expand to more than 100000 nodes"));

  std::string merges = "m0: &m0 { a: [1, 2, 3, 4, 5, 6, 7, 8, 9] }\n";
  for (int i = 1; i < 60; ++i) {
    const std::string p = "*m" + std::to_string(i - 1);
    merges += "m" + std::to_string(i) + ": &m" + std::to_string(i) + " { b: { <<: " + p +
              " }, c: { <<: " + p + " } }\n";
  }
  CHECK_FALSE(error(merges).empty());

  for (const char* open : {"[", "{a: ", "- "}) {
    std::string deep;
    for (int i = 0; i < 20000; ++i) deep += open;
    CHECK_FALSE(error(deep).empty());
  }
  std::string aliases = "a0: &a0 [1]\n";
  for (int i = 1; i < 80; ++i)
    aliases += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [*a" + std::to_string(i - 1) + "]\n";
  CHECK_THAT(error(aliases), ContainsSubstring("nested deeper than 64 levels"));

  std::string keys;
  for (int i = 0; i < 60000; ++i) keys += "k" + std::to_string(i) + ": 1\n";
  CHECK(error(keys).empty());
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(8));
}

TEST_CASE("files are refused before they are swallowed") {
  const TempDir dir;
  const std::string big = (dir.path / "big.yaml").string();
  std::ofstream(big) << "a: 1\n";
  std::filesystem::resize_file(big, 100 << 20);  // sparse
  CHECK_THAT(read_error(big), ContainsSubstring("has 104857600 bytes"));
  CHECK_THAT(error(std::string(yaml::kMaxBytes + 1, '#')), ContainsSubstring("a suite may have 1048576"));
  CHECK_THAT(read_error((dir.path / "none.yaml").string()), ContainsSubstring("there is no such file"));
  CHECK_THAT(read_error(dir.path.string()), ContainsSubstring("it is a directory"));
  CHECK_THAT(read_error("/dev/zero"), ContainsSubstring("more than 1048576 bytes"));
  const std::string good = (dir.path / "good.yaml").string();
  std::ofstream(good) << "a: 1\n";
  CHECK(yaml::read(good)->find("a")->value->value == Value(1));
  CHECK(yaml::read(good)->place.file == good);
}
