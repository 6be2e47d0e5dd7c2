// What this program was built from; the source file is generated at build time.
#pragma once

namespace attnbench {

struct BuildInfo {
  const char* version;   ///< "0.1.0"
  const char* revision;  ///< git revision, "-dirty" when the tree had changes, or "unknown"
  const char* compiler;
  const char* build_type;
  const char* flags;
  const char* sanitize;  ///< empty: none
};
const BuildInfo& build_info();

}  // namespace attnbench
