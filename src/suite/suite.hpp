// A suite as read and resolved: what `run` executes. Parsing and validation live beside it (parse.hpp).
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "methods/problem.hpp"
#include "methods/value.hpp"

namespace attnbench {

/// Where a piece of a suite came from, 1-based; line 0: made by the program.
struct Place {
  std::string file;
  int line = 0, column = 0;
  std::string str() const;  ///< "suite.yaml:12:5"
};

/// How cases are measured; part of the case id, so that a changed setting is never compared with another.
struct MeasureConfig {
  double precision = 0.01;   ///< stop when the 95% interval of the median is within this share of it
  double max_time_s = 10.0;  ///< per case, sampling only
  int min_samples = 10;
  int max_samples = 100000;
  double min_sample_s = 0.001;  ///< shorter runs are repeated inside one sample
  std::string cache = "auto";  ///< hot | cold: whether caches are flushed between samples; auto: see cache_on
  int threads = 0;             ///< 0: all cores of the process
  bool keep_samples = false;   ///< raw samples go to the results
  bool operator==(const MeasureConfig&) const = default;
  /// "hot" or "cold": what `cache` means on a device. auto is hot on the CPU, where users' data mostly are in
  /// reach of the caches, and cold on the others, where everything else runs in between.
  std::string cache_on(const std::string& device) const {
    return cache != "auto" ? cache : device == "cpu" ? "hot" : "cold";
  }
};

/// One case after axes, defaults and --set are applied.
struct Case {
  std::string name;                   ///< unique within the suite: "hilo", "hilo/batch=64"
  std::string base_name;              ///< without axis values: what claims and baselines name
  std::map<std::string, Value> axes;  ///< the axis values that made it
  std::string method;
  std::map<std::string, Value> params;  ///< as given; resolved when the case is made
  Problem problem;
  std::string device;  ///< "cpu", "cuda"
  Place place;
};

/// A published figure beside the measured one. `expression` is arithmetic over time(case), macs(case),
/// flops(case), counted_flops(case), memory(case), params(case), …: see claims.hpp for the list.
struct Claim {
  std::string id;
  std::string expression;
  double published = 0;
  std::string published_text;     ///< as written: "298.30" says how many digits were published
  double tolerance = 0;           ///< relative share (0.15 for "15%"); 0: exact to the published digits
  std::string compare = "equal";  ///< equal | at_least | at_most: which side of published ± tolerance holds
  std::string where;              ///< source of the figure
  std::string device;             ///< empty: any
  std::string note;
  std::string left_out;  ///< why this run does not evaluate it: its `when` is false; empty: it does
  std::map<std::string, Value> axes;  ///< axis values to which the claim is bound
  Place place;
};

struct Suite {
  std::string name, title, file;
  MeasureConfig measure;
  std::vector<std::string> measures;  ///< time, flops, memory, error
  std::vector<std::string> analyses;
  /// What the suite gives an analysis, by analysis id; those without arguments are not in it.
  std::map<std::string, std::map<std::string, Value>> analysis_params;
  std::string baseline;  ///< base name; empty: none
  std::vector<Case> cases;
  std::vector<Claim> claims;
  std::string resolved_text;  ///< canonical text of everything above: hashed and stored with the results
};

}  // namespace attnbench
