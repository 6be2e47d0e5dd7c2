// What a device was seen to do, as one JSON file: which methods verified there in which types, and the ratios
// of results files. Written by `attnbench verify --report`, kept in reports/gpu/. Not results: those have
// their own file.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "measure/results.hpp"

namespace attnbench {

struct DeviceReport {
  /// One method in one type.
  struct Line {
    std::string method, dtype;
    int passed = 0, failed = 0, unsupported = 0;  ///< variations
    double tolerance = 0;
    double worst_relative_l2 = 0;       ///< over all that was compared; NaN wins
    std::vector<std::string> failures;  ///< "odd sizes: o[1, 2]: 0.5 instead of 0.25"
    std::string unsupported_reason;     ///< when nothing ran
  };
  std::string written_at;  ///< ISO 8601 UTC
  std::string device;      ///< "cuda"
  std::string description;
  Environment environment;
  std::vector<Line> lines;
  /// Runs whose ratios and claims are taken over, with their files, of which the report keeps the names.
  std::vector<std::pair<std::string, RunResult>> runs;
};

inline constexpr int kDeviceReportVersion = 1;

/// The file's text; reports/schema/device_report.schema.json describes it. Never a bare NaN or infinity.
std::string to_json(const DeviceReport& report);

}  // namespace attnbench
