// The launcher at the root, in a tree of its own where package manager, build tools and user are played by
// scripts.
#include <set>

#include "tests/catch.hpp"
#include "tests/cli/drive.hpp"

using drive::Process;

namespace {

/// A source tree with a space in its name, and a PATH that holds what the launcher may use and nothing else.
class Tree {
 public:
  Tree() {
    drive::fs::create_directories(root());
    drive::fs::copy_file(std::string(ATTNBENCH_SOURCE_DIR) + "/attnbench", root() / "attnbench");
    for (const char* tool : {"bash", "cat", "cksum", "dirname", "env", "flock", "grep", "mkdir", "readlink",
                             "rm", "sed", "sh", "sleep", "tail", "tr", "uname", "chmod"})
      link(tool);
    tool("id", "echo \"${FAKE_UID:-0}\"");
    tool("dpkg-query",
         "for p in \"$@\"; do case $p in -*|*status*) ;; *) grep -qxF \"$p\" \"$STATE/absent\" || echo "
         "\"installed $p\" ;; esac; done");
    tool("apt-get",
         "case $* in\n"
         "  *' update') : >\"$STATE/lists\" ;;\n"
         "  *) [ -e \"$STATE/lists\" ] || { echo 'E: Unable to locate package'; exit 100; }; : "
         ">\"$STATE/absent\" ;;\n"
         "esac");
    tool("cmake",
         "mkdir -p build/release; : >build/release/build.ninja; echo \"CMAKE_HOME_DIRECTORY:INTERNAL=$PWD\" "
         ">build/release/CMakeCache.txt");
    tool("ninja",
         "[ -e \"$STATE/broken\" ] && { echo '[1/9] Building'; echo 'x.cpp:1: error: it is broken'; exit 1; "
         "}\n"
         "echo '[6/9] Building'; sleep $(cat \"$STATE/build_seconds\"); echo '[7/9] Building'; mkdir -p "
         "build/release/bin\n"
         "cat >build/release/bin/attnbench <<'END'\n"
         "#!/bin/sh\n"
         "echo \"in $PWD\"; for a in \"$@\"; do echo \"<$a>\"; done; exit 7\n"
         "END\n"
         "chmod +x build/release/bin/attnbench");
    tool("ctest", "echo \"ctest $*\"");
    absent("");
    build_takes("0.1");
  }

  drive::fs::path root() const { return folder_ / "a tree"; }
  void absent(const std::string& packages) { drive::write(folder_ / "state/absent", packages); }
  void build_takes(const std::string& seconds) { drive::write(folder_ / "state/build_seconds", seconds); }
  void broken() { drive::write(folder_ / "state/broken", ""); }
  void mended() { drive::fs::remove(folder_ / "state/broken"); }
  void with_lists() { drive::write(folder_ / "state/lists", ""); }
  void with_sudo() { tool("sudo", "echo \"sudo\" >>\"$STATE/calls\"; exec \"$@\""); }
  /// Calls of the played tools so far, "apt-get -y … update"; clears them.
  std::vector<std::string> calls() {
    std::istringstream lines(drive::read(folder_ / "state/calls"));
    drive::write(folder_ / "state/calls", "");
    std::vector<std::string> out;
    for (std::string line; std::getline(lines, line);) out.push_back(line);
    return out;
  }
  std::vector<std::string> command(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), (root() / "attnbench").string());
    return arguments;
  }
  Process::Setup setup(const std::string& user = "0") const {
    return {.folder = folder_.path(),
            .environment = {{"PATH", (folder_ / "bin").string()},
                            {"STATE", (folder_ / "state").string()},
                            {"FAKE_UID", user}}};
  }
  drive::Result run(std::vector<std::string> arguments, const std::string& user = "0") const {
    return Process(command(std::move(arguments)), setup(user)).wait();
  }
  const drive::fs::path& folder() const { return folder_.path(); }

 private:
  void link(const std::string& tool) {
    drive::fs::create_directories(folder_ / "bin");
    for (const std::string at : {"/usr/bin/", "/bin/"})
      if (drive::fs::exists(at + tool)) {
        drive::fs::create_symlink(at + tool, folder_ / ("bin/" + tool));
        return;
      }
    throw std::runtime_error("the test needs " + tool);
  }
  void tool(const std::string& name, const std::string& body) {
    const auto path = folder_ / ("bin/" + name);
    drive::write(path, "#!/bin/sh\necho \"" + name + " $*\" >>\"$STATE/calls\"\n" + body + "\n");
    drive::fs::permissions(path, drive::fs::perms::owner_all);
  }
  drive::TempFolder folder_;
};

size_t count(const std::vector<std::string>& calls, const std::string& start, const std::string& part = {}) {
  size_t n = 0;
  for (const std::string& c : calls) n += c.rfind(start, 0) == 0 && c.find(part) != std::string::npos;
  return n;
}

}  // namespace

TEST_CASE("the launcher builds once and hands over arguments, folder and exit status") {
  Tree t;
  t.build_takes("1.2");
  const auto r = t.run({"run", "a file.yaml", "--set", "x=*", ""});
  CAPTURE(r.err);
  CHECK(r.code == 7);
  // Standard output is the program's alone; relative paths keep their meaning.
  CHECK(r.out == "in " + t.folder().string() + "\n<run>\n<a file.yaml>\n<--set>\n<x=*>\n<>\n");
  CHECK_THAT(r.err, ContainsSubstring("attnbench: building"));
  auto calls = t.calls();
  CHECK(count(calls, "cmake --preset release") == 1);
  CHECK(count(calls, "ninja", " attnbench") == 1);
  CHECK(count(calls, "apt-get") == 0);
  CHECK(count(calls, "dpkg-query") >= 1);

  t.build_takes("0");
  // The second call neither looks at packages nor configures.
  CHECK(t.run({"list"}).out == "in " + t.folder().string() + "\n<list>\n");
  calls = t.calls();
  CHECK(count(calls, "cmake") == 0);
  CHECK(count(calls, "dpkg-query") == 0);
  CHECK(count(calls, "ninja") == 1);
}

TEST_CASE("the launcher runs the tests through CTest") {
  Tree t;
  const auto r = t.run({"test", "-R", "cli"});
  CHECK(r.code == 0);
  CHECK(r.out ==
        "ctest --test-dir " + (t.root() / "build/release").string() + " --output-on-failure -j2 -R cli\n");
  CHECK(count(t.calls(), "ninja", " all") == 1);
}

TEST_CASE("missing packages are installed, and lists fetched only when needed") {
  Tree t;
  t.absent("libfmt-dev\ncatch2\n");
  SECTION("known to apt already") {
    t.with_lists();
    const auto r = t.run({"list"});
    CHECK(r.code == 7);
    const auto calls = t.calls();
    CHECK(count(calls, "apt-get", " install --no-install-recommends libfmt-dev catch2") == 1);
    CHECK(count(calls, "apt-get", " update") == 0);
    CHECK(count(calls, "sudo") == 0);
  }
  SECTION("unknown to apt: update, then again") {
    CHECK(t.run({"list"}).code == 7);
    const auto calls = t.calls();
    CHECK(count(calls, "apt-get", " update") == 1);
    CHECK(count(calls, "apt-get", " install ") == 2);
  }
  SECTION("through sudo for others than root") {
    t.with_lists();
    t.with_sudo();
    CHECK(t.run({"list"}, "1000").code == 7);
    CHECK(count(t.calls(), "sudo") >= 1);
  }
  SECTION("without sudo it says what to do") {
    const auto r = t.run({"list"}, "1000");
    CHECK(r.code == 2);
    CHECK(r.out.empty());
    CHECK_THAT(r.err, ContainsSubstring("as root: apt-get install libfmt-dev catch2"));
  }
}

TEST_CASE("--no-install only names what is missing") {
  Tree t;
  t.absent("libfmt-dev\ncatch2\n");
  const auto r = t.run({"--no-install", "list"});
  CHECK(r.code == 2);
  CHECK(r.out.empty());
  CHECK_THAT(r.err, ContainsSubstring("missing packages: libfmt-dev catch2"));
  CHECK_THAT(r.err, ContainsSubstring("apt-get install libfmt-dev catch2"));
  const auto calls = t.calls();
  CHECK(count(calls, "apt-get") == 0);
  CHECK(count(calls, "cmake") == 0);
  CHECK(t.run({"--no-install"}).code == 2);

  t.absent("");
  const auto checked = t.run({"--no-install"});
  CHECK(checked.code == 0);
  CHECK_THAT(checked.err, ContainsSubstring("every package is installed"));
  CHECK(count(t.calls(), "ninja") == 0);
  CHECK(t.run({"--no-install", "list"}).code == 7);
}

TEST_CASE("a failed build shows why, and the next call looks at the packages again") {
  Tree t;
  CHECK(t.run({"list"}).code == 7);
  t.calls();
  t.broken();
  const auto r = t.run({"list"});
  CHECK(r.code == 3);
  CHECK(r.out.empty());
  CHECK_THAT(r.err, ContainsSubstring("x.cpp:1: error: it is broken"));
  t.calls();
  t.mended();
  CHECK(t.run({"list"}).code == 7);
  CHECK(count(t.calls(), "dpkg-query") >= 1);
}

TEST_CASE("launchers at the same time build one after the other") {
  Tree t;
  t.build_takes("0.5");
  Process a(t.command({"a"}), t.setup()), b(t.command({"b"}), t.setup()), c(t.command({"c"}), t.setup());
  const auto ra = a.wait(), rb = b.wait(), rc = c.wait();
  for (const auto* r : {&ra, &rb, &rc}) CHECK(r->code == 7);
  const auto calls = t.calls();
  CHECK(count(calls, "cmake") == 1);
  CHECK(count(calls, "ninja") == 3);
  CHECK_THAT(ra.err + rb.err + rc.err, ContainsSubstring("waiting for another build"));
}

TEST_CASE("a moved tree is configured anew") {
  Tree t;
  CHECK(t.run({"list"}).code == 7);
  t.calls();
  drive::write(t.root() / "build/release/CMakeCache.txt", "CMAKE_HOME_DIRECTORY:INTERNAL=/somewhere/else\n");
  CHECK(t.run({"list"}).code == 7);
  CHECK(count(t.calls(), "cmake") == 1);
}
