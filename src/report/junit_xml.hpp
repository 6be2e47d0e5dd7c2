// JUnit XML of any tests, as the xUnit schema of Jenkins has it and GitLab, GitHub actions and IDEs read it.
// What the tests are is not its matter: cases and claims in junit.cpp, verdicts of the gate in
// cli/gate_text.cpp.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace attnbench {

struct JunitTest {
  enum class Outcome : uint8_t { passed, skipped, failure, error } outcome = Outcome::passed;
  std::string name, type, message, output;
  double seconds = 0;
};

struct JunitGroup {
  std::string name;  ///< "ci.cases"
  std::vector<JunitTest> tests;
};

/// Groups without tests are left out. `started_at`: ISO 8601, or empty. Everything is escaped.
std::string junit_xml(const std::string& name, const std::vector<JunitGroup>& groups,
                      const std::string& started_at);

}  // namespace attnbench
