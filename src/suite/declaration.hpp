// A suite file as declared: its sections with their types checked, before axes, devices and methods meet.
// Internal to parse.cpp.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "suite/expression.hpp"
#include "suite/suite.hpp"
#include "suite/yaml.hpp"

namespace attnbench {

/// A value that a file gives to a key of a problem or to a parameter.
struct Setting {
  Value value;
  yaml::NodePtr node;
  Place place;  ///< of the key
};
using Settings = std::map<std::string, Setting>;

/// An expression of the file with what is needed to point into it. Empty: always true.
struct Condition {
  std::shared_ptr<const Expression> expression;
  yaml::NodePtr node;
};
/// Where an offset inside a scalar's text stands in the file.
Place place_inside(const yaml::Node& node, int offset);

/// One dimension of the product: an axis has one target, a zip group several whose values advance together.
struct AxisGroup {
  struct Row {
    std::vector<Setting> values;  ///< one a target
    std::vector<Condition> when;
  };
  std::vector<std::string> targets;  ///< "problem.batch", "params.alpha", "device"
  std::vector<std::string> labels;   ///< as written by the user: "dtype" for problem.dtype
  std::vector<Place> places;
  std::vector<Row> rows;
};

struct CaseDeclaration {
  std::string name, method;
  Place place, method_place;
  Settings params, problem;
  std::optional<std::vector<std::string>> devices;
  Place devices_place;
  std::vector<AxisGroup> axes;
  Condition when;
};

struct ClaimDeclaration {
  Claim claim;
  std::shared_ptr<const Expression> expression;
  yaml::NodePtr expression_node;
  std::map<std::string, Place> axis_places;
  Condition when;
};

struct SuiteDeclaration {
  std::string name, title;
  MeasureConfig measure;
  std::vector<std::string> devices{"cpu"};
  Settings defaults;  ///< dtype and seed, as problem keys
  Settings problem;
  std::vector<AxisGroup> axes;
  std::vector<CaseDeclaration> cases;
  std::string baseline;
  Place baseline_place;
  std::vector<std::string> measures, analyses;
  std::map<std::string, Settings> analysis_params;
  std::map<std::string, Place> analysis_places;
  std::vector<ClaimDeclaration> claims;
};

SuiteDeclaration read_declaration(const yaml::Node& root, ErrorList& errors);

/// The valid devices of a suite.
const std::vector<std::string>& device_words();
/// "; did you mean 'x'?" or nothing.
std::string suggestion(const std::string& word, const std::vector<std::string>& words);
/// A remark on a number or truth value that stands in quotes, or nothing.
std::string quoted_hint(const yaml::Node& node);

}  // namespace attnbench
